"""The `udp` backend: user space over a TUN device, on the wire as flannel's.

    container -> kernel routing -> TUN -> forwarder -> UDP 8285 -> forwarder -> TUN -> ...

The raw IPv4 packet is the UDP payload: no header, one packet in each datagram. TTL goes
down by one at each forwarder. What cannot be carried is answered by ICMP (net unreachable,
time exceeded, fragmentation needed). What comes from a host that is no peer, or with an
inner source that is not in that peer's subnet, is refused and counted.

The forwarder is a process of its own (`python -m ctl.backend.udp`), which outlives the
agent that started it: a restarted agent adopts it, and no packet is lost. The agent calls
`ctl.backend.udp.client`:

    forwarder = ForwarderProcess(state_dir, local=host_address, port=8285)
    started = forwarder.start(routes)    # adopts the one that runs, or starts one
    # device `forwarder.device` exists now; the agent gives it <subnet base>/32,
    # MTU underlay - OVERHEAD, sets it up and routes the network to it (netlink)
    forwarder.update(routes)             # after every change of leases
    forwarder.stats()                    # None if it does not run; else counters for metrics
    forwarder.stop(remove=True)          # teardown: process, files and device

`start` is also the repair: call it in every reconcile. A forwarder with other settings
(port, address, version) is replaced, and so is one that ended.
The agent must not be stopped with its whole control group (systemd: KillMode=process).

    packet    pure: IPv4 headers, TTL, ICMP errors
    table     pure: which subnet is behind which host
    stats     the counters, in a small file that the forwarder maps
    files     the names that both sides agree on
    tun       the device
    underlay  the UDP socket
    forwarder the loop
    client    ForwarderProcess: the agent's side
    backend   the udp backend as a part of a node

This module and those that the forwarder loads import little: each node pays for it.
"""
