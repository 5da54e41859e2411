"""What the kernel is asked and told by netlink, with pyroute2. No other package imports it.

message.py packs pyroute2's messages and takes answers apart, socket.py sends them; link, address, addressing,
tc, tables, fib, rules and xfrm know one kind of them each, session.py what the host has to look like,
uplink, rename and headroom a part of that. monitor.py hears of changes, and classify.py says what they
are about.
"""
