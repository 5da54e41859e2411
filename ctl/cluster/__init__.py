"""Our place among the other nodes, by the store."""
