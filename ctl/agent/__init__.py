"""The process that runs a node."""
