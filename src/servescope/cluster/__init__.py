"""A load driven from the nodes of a Ray cluster: its head, one stage of it, and a node."""
