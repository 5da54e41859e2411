"""Ways to carry packets other than vxlan, each with a process or routes of its own."""
