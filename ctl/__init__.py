"""The control side of ovnet: node agent, lease stores, and the ovctl command."""

__version__ = "0.1.0"
