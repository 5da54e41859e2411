"""A service as kube-proxy makes one: an address that the client's host translates to the server's."""

from __future__ import annotations

from typing import Final

from tests.host import Container

ADDRESS: Final = "10.96.0.1"
RULES: Final = """
table ip lab_service
flush table ip lab_service
table ip lab_service {{
    chain prerouting {{
        type nat hook prerouting priority dstnat
        ip daddr {service} dnat to {server}
    }}
}}
"""


def serve(client: Container, server: Container) -> None:
    """Have ADDRESS lead from the client's host to the server, whatever it led to before."""
    client.host.nft(RULES.format(service=ADDRESS, server=server.address))
