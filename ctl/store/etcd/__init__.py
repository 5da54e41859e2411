"""Leases in etcd, in flannel's schema."""
