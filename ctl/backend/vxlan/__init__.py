"""VXLAN, by eBPF and by the kernel's device."""
