"""Traffic with a memory, for use inside containers: `python3 traffic.py COMMAND ...`.

    udp-sink PORT             count numbered datagrams; a JSON line with the tally each 0.1 s
    udp-send HOST PORT RATE   send numbered datagrams at RATE per second until SIGTERM or --count
    tcp-sink PORT             take connections; a JSON line about each when it ends
    tcp-send HOST PORT BYTES  send that much, then close; a JSON line with the time of each phase

Standard library only, and no import from this package: it also runs in images that
have nothing but Python. The last line of stdout is always the newest and complete.
"""

from __future__ import annotations

import argparse
import json
import signal
import socket
import struct
import sys
import threading
import time
from dataclasses import dataclass, field

SEQUENCE = struct.Struct("!QI")
"""Number of the datagram from 0, and the sender's run, so that a restart is told apart."""


def say(facts: dict[str, object]) -> None:
    """One JSON line, out at once."""
    sys.stdout.write(json.dumps(facts, sort_keys=True) + "\n")
    sys.stdout.flush()


def family(ipv6: bool) -> socket.AddressFamily:
    """Of a socket."""
    return socket.AF_INET6 if ipv6 else socket.AF_INET


@dataclass
class Tally:
    """What a sink has seen of one numbered stream."""

    seen: set[int] = field(default_factory=set)
    duplicates: int = 0
    late: int = 0
    highest: int = -1
    longest_gap_ms: float = 0.0
    last: float = 0.0
    sources: set[str] = field(default_factory=set)

    def add(self, number: int, source: str, now: float) -> None:
        """Count a datagram; `now` in seconds of a monotonic clock."""
        if self.last:
            self.longest_gap_ms = max(self.longest_gap_ms, (now - self.last) * 1e3)
        self.last = now
        self.sources.add(source)
        if number in self.seen:
            self.duplicates += 1
        elif number < self.highest:
            self.late += 1
        self.seen.add(number)
        self.highest = max(self.highest, number)

    def facts(self) -> dict[str, object]:
        """`lost` counts numbers below the highest seen that never came."""
        return {
            "received": len(self.seen),
            "highest": self.highest,
            "lost": self.highest + 1 - len(self.seen),
            "duplicates": self.duplicates,
            "late": self.late,
            "longest_gap_ms": round(self.longest_gap_ms, 1),
            "sources": sorted(self.sources),
        }


def udp_sink(args: argparse.Namespace) -> None:
    tally = Tally()
    with socket.socket(family(args.ipv6), socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        sock.bind(("", args.port))
        sock.settimeout(0.1)
        say(tally.facts())
        spoke = time.monotonic()
        while True:
            try:
                data, source = sock.recvfrom(65536)
                tally.add(SEQUENCE.unpack_from(data)[0], source[0], time.monotonic())
                if len(tally.seen) <= args.echo:
                    sock.sendto(data, source)
            except TimeoutError:
                pass
            if time.monotonic() - spoke > 0.1:
                say(tally.facts())
                spoke = time.monotonic()


def udp_send(args: argparse.Namespace) -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    sent, failed = 0, 0
    run = int(time.time()) & 0xFFFFFFFF
    with socket.socket(family(":" in args.host), socket.SOCK_DGRAM) as sock:
        sock.connect((args.host, args.port))
        pad = bytes(max(0, args.size - SEQUENCE.size))
        start = time.monotonic()
        while not stop.is_set() and (args.count is None or sent < args.count):
            due = start + sent / args.rate
            while (ahead := due - time.monotonic()) > 0 and not stop.is_set():
                time.sleep(ahead)
            try:
                sock.send(SEQUENCE.pack(sent, run) + pad)
            except OSError:
                failed += 1
            sent += 1
    say({"sent": sent, "failed": failed})


def _take(conn: socket.socket, source: tuple[str, int, *tuple[int, ...]]) -> None:
    started, total, end = time.monotonic(), 0, "fin"
    with conn:
        try:
            conn.sendall(source[0].encode() + b"\n")
            while chunk := conn.recv(1 << 20):
                total += len(chunk)
        except ConnectionResetError:
            end = "rst"
    seconds = time.monotonic() - started
    say({"source": source[0], "port": source[1], "bytes": total, "end": end, "seconds": round(seconds, 3)})


def tcp_sink(args: argparse.Namespace) -> None:
    with socket.create_server(("", args.port), family=family(args.ipv6), backlog=64) as server:
        say({"listening": args.port})
        while True:
            conn, source = server.accept()
            threading.Thread(target=_take, args=(conn, source), daemon=True).start()


def tcp_send(args: argparse.Namespace) -> None:
    started = time.monotonic()
    with socket.create_connection((args.host, args.port), timeout=args.timeout) as sock:
        connected = time.monotonic()
        seen_as = sock.makefile("r").readline().strip()
        left, block = args.bytes, bytes(1 << 18)
        while left > 0:
            left -= sock.send(block[: min(left, len(block))])
        sent = time.monotonic()
        if args.reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            sock.shutdown(socket.SHUT_WR)
            sock.recv(1)  # the sink closes when it has seen our FIN: this is the close, both ways
    ended = time.monotonic()
    say(
        {
            "seen_as": seen_as,
            "connect_ms": round((connected - started) * 1e3, 1),
            "send_ms": round((sent - connected) * 1e3, 1),
            "close_ms": round((ended - sent) * 1e3, 1),
        }
    )


def main() -> None:
    """Run one command of the table above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("udp-sink")
    command.add_argument("port", type=int)
    command.add_argument("--echo", type=int, default=0, help="send the first so many back")
    command.add_argument("--ipv6", action="store_true")
    command.set_defaults(func=udp_sink)
    command = commands.add_parser("udp-send")
    command.add_argument("host")
    command.add_argument("port", type=int)
    command.add_argument("rate", type=float, help="datagrams per second")
    command.add_argument("--count", type=int)
    command.add_argument("--size", type=int, default=64, help="payload bytes")
    command.set_defaults(func=udp_send)
    command = commands.add_parser("tcp-sink")
    command.add_argument("port", type=int)
    command.add_argument("--ipv6", action="store_true")
    command.set_defaults(func=tcp_sink)
    command = commands.add_parser("tcp-send")
    command.add_argument("host")
    command.add_argument("port", type=int)
    command.add_argument("bytes", type=int)
    command.add_argument("--reset", action="store_true", help="end with RST instead of FIN")
    command.add_argument("--timeout", type=float, default=10)
    command.set_defaults(func=tcp_send)
    args = parser.parse_args()
    args.func(args)


if __name__ == "__main__":
    main()
