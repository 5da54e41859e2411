"""What the kernel is asked and told by netlink, with pyroute2. No other package imports it.

message.py packs pyroute2's messages and takes answers apart, socket.py sends them; link, tc, tables
and fib know one kind of them each, session.py what the host has to look like, monitor.py hears of
changes.
"""
