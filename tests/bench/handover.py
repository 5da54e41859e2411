"""What handing IPv6 over costs a packet: `python -m tests.bench.handover`, as root, a minute; a table.

IPv4: its programs with the call compiled in, and without, as tests.bench.tracer compares. IPv6: its
programs called by those for IPv4, and alone.
"""

from __future__ import annotations

from ctl.core.abi import Hook
from ctl.kernel.bpf import syscall
from ctl.kernel.bpf.child import Bcc
from ctl.kernel.bpf.loader import Program, hand_over
from ctl.kernel.bpf.source import source
from tests.bench.tracer import LOADS, PACKETS, cell, compared, load, without
from tests.datapath import INET6, Datapath

CALLS = ("\thand_over(skb, HOOK_{});\n", "\txdp_hand_over(xdp);\n")
PACKETS_IPV6 = {
    Hook.FROM_CONTAINER: INET6.sent(),
    Hook.FROM_WIRE: INET6.wire(INET6.received()),
    Hook.TO_CONTAINER: INET6.received(),
    Hook.FROM_WIRE_XDP: INET6.wire(INET6.received()),
}


def main() -> None:
    """Measure, and print."""
    tc = (Hook.FROM_CONTAINER, Hook.TO_OVERLAY, Hook.FROM_WIRE, Hook.TO_CONTAINER)
    calls = [CALLS[0].format(hook.name) for hook in tc] + [CALLS[1]]
    with (
        Datapath() as four,
        Datapath(cast=INET6) as six,
        Bcc(without(calls, source())) as bare,
        Bcc(source()) as calling,
        Bcc(source(6)) as called,
    ):
        four.furnish()
        six.furnish()
        print("| hook | IPv4: no call compiled in | with it | IPv6: alone | called |\n|" + "---|" * 5)
        for hook, packet in PACKETS.items():
            ipv4 = [[load(bcc, four, hook) for bcc in (bare, calling)] for _ in range(LOADS)]
            ipv6 = [[load(called, six, hook), caller] for _, caller in ipv4]
            figures = [*compared(ipv4, packet)]
            program = ipv6[0][0]
            hand_over(four.maps, {hook.label: Program(hook.label, program, syscall.prog_info(program).id)})
            figures += compared(ipv6, PACKETS_IPV6[hook])
            print(f"| `{hook.label}` | {' | '.join(map(cell, figures))} |")


if __name__ == "__main__":
    main()
