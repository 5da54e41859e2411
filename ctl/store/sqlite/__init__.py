"""Leases in a SQLite file."""
