"""What machines and engines said of themselves, in one vocabulary whoever said it."""
