"""What a node is told: flags, variables, the file."""
