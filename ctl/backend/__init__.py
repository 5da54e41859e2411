"""Ways to carry packets between hosts. Empty: the udp forwarder is imported through it."""
