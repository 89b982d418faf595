"""The parts of the report, one a file, in the order in which a reader wants them."""
