"""The datapath's C sources, as package data."""
