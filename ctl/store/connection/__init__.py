"""Connections to stores on the network: HTTP with a deadline, names, TLS by files that others renew."""
