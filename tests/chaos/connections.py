"""Connections both ways, for use in a container: `python -m tests.chaos.connections PEER`.

Serves TCP and UDP on port PORT, and with the same program in the container at PEER:

    stream     one TCP connection for all the time; both ends compare length and checksum
    fresh      each 1/RATE s a new TCP connection, and a new UDP flow: something there and back

SIGUSR2 begins, SIGUSR1 ends: then what is under way comes to its end, and a JSON line is printed.
SIGTERM ends the program.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import socket
import struct
import sys
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Final, cast

PORT: Final = 9410
RATE: Final = 20
"""New TCP connections, and new UDP flows, a second."""
PATIENCE_S: Final = 8.0
"""A flow that has not succeeded by then has failed."""
MOST: Final = 5000
"""Failures that are told one by one."""
BLOCK: Final = 32 << 10
PAUSE_S: Final = 0.02
_STREAM, _FRESH = b"s", b"f"
_REPLY: Final = struct.Struct("!QI")
"""Bytes and CRC of a stream as it arrived."""
_TCP_INFO_RETRANSMITTED: Final = 100
"""Offset of tcpi_total_retrans in struct tcp_info, linux/tcp.h."""


class Echo(asyncio.DatagramProtocol):
    """Sends back what comes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)  # it only says that it is one

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        self._transport.sendto(data, address)


class Answer(asyncio.DatagramProtocol):
    """Waits for a first datagram."""

    def __init__(self) -> None:
        self.came: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        if not self.came.done():
            self.came.set_result(data)


async def serve_tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection, by its first byte."""
    try:
        if await reader.readexactly(1) == _STREAM:
            total, checksum = 0, 0
            while block := await reader.read(1 << 18):
                total, checksum = total + len(block), zlib.crc32(block, checksum)
            writer.write(_REPLY.pack(total, checksum))
        else:
            writer.write(await reader.read())
        await writer.drain()
    except (OSError, EOFError):
        pass  # the client counts it
    finally:
        writer.close()


class Client:
    """What this side begins, and how it went."""

    def __init__(self, peer: str) -> None:
        self._peer = peer
        self.stop = asyncio.Event()
        self.fresh: Counter[str] = Counter()
        self.failures: list[tuple[float, str]] = []
        """When they were begun (wall clock), and what became of them: the first thousands."""
        self.stream: dict[str, object] = {}
        self.lag = 0.0
        """Seconds for which we were not run, at the worst."""

    async def run(self) -> None:
        """Until `stop`, and until all that was begun has ended."""
        before = counters()
        stream = asyncio.create_task(self._stream())
        flows: set[asyncio.Task[None]] = set()
        due = time.monotonic()
        while not self.stop.is_set():
            flows |= {asyncio.create_task(self._fresh("tcp")), asyncio.create_task(self._fresh("udp"))}
            flows = {flow for flow in flows if not flow.done()}
            due = max(due + 1 / RATE, time.monotonic() - 1 / RATE)
            await asyncio.sleep(due - time.monotonic())
            self.lag = max(self.lag, time.monotonic() - due)
        await asyncio.gather(stream, *flows)
        after = counters()
        self.counters = {name: after[name] - before[name] for name in after}

    async def _fresh(self, kind: str) -> None:
        begun = time.time()
        try:
            async with asyncio.timeout(PATIENCE_S):
                again = await (self._tcp() if kind == "tcp" else self._udp())
        except (OSError, TimeoutError) as error:
            self._failed(kind, "failed", begun, repr(error))
        else:
            self.fresh[f"{kind}_ok"] += 1
            if again:
                self._failed(kind, "again", begun, "sent again")

    def _failed(self, kind: str, how: str, begun: float, why: str) -> None:
        self.fresh[f"{kind}_{how}"] += 1
        if len(self.failures) < MOST:
            self.failures.append((begun, f"{kind} {how}: {why}"))

    async def _tcp(self) -> int:
        """How many segments were sent again, the SYN one of them."""
        reader, writer = await asyncio.open_connection(self._peer, PORT)
        try:
            writer.write(_FRESH + b"x" * 3000)
            writer.write_eof()
            if len(await reader.read()) != 3000:
                raise OSError("the echo was cut off")
            return retransmitted(writer)
        finally:
            writer.close()

    async def _udp(self) -> int:
        loop = asyncio.get_running_loop()
        transport, answer = await loop.create_datagram_endpoint(Answer, remote_addr=(self._peer, PORT))
        try:
            transport.sendto(b"x" * 100)
            await answer.came
            return 0  # nobody sends it again
        finally:
            transport.close()

    async def _stream(self) -> None:
        total, checksum, number = 0, 0, 0
        try:
            reader, writer = await asyncio.open_connection(self._peer, PORT)
            writer.write(_STREAM)
            while not self.stop.is_set():
                block = number.to_bytes(4, "big") * (BLOCK // 4)
                writer.write(block)
                total, checksum, number = total + BLOCK, zlib.crc32(block, checksum), number + 1
                await writer.drain()
                await asyncio.sleep(PAUSE_S)
            writer.write_eof()
            async with asyncio.timeout(PATIENCE_S):
                arrived = _REPLY.unpack(await reader.readexactly(_REPLY.size))
            self.stream = {"bytes": total, "whole": arrived == (total, checksum),
                           "retransmitted": retransmitted(writer), "error": ""}  # fmt: skip
            writer.close()
        except (OSError, EOFError, TimeoutError) as error:
            self.stream = {"bytes": total, "whole": False, "retransmitted": 0, "error": repr(error)}


def retransmitted(writer: asyncio.StreamWriter) -> int:
    """Segments of a connection that were sent again so far."""
    info = writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    count: int = struct.unpack_from("=I", info, _TCP_INFO_RETRANSMITTED)[0]
    return count


def counters() -> dict[str, int]:
    """TCP's of this network namespace: sent again, of that without need, of that SYNs."""
    found = {}
    for name in ("snmp", "netstat"):
        lines = [line.split() for line in Path("/proc/self/net", name).read_text().splitlines()]
        for names, values in zip(lines[::2], lines[1::2], strict=True):
            found.update({f"{names[0]}{key}": value for key, value in zip(names, values, strict=True)})
    return {
        "retransmitted": int(found["Tcp:RetransSegs"]),
        "needless": int(found["TcpExt:TCPDSACKRecv"]),
        "syn": int(found["TcpExt:TCPSynRetrans"]),
    }


async def work(peer: str) -> None:
    """Serve, wait for the signals, be a client between them."""
    loop = asyncio.get_running_loop()
    client, begin, end = Client(peer), asyncio.Event(), asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR2, begin.set)
    loop.add_signal_handler(signal.SIGUSR1, client.stop.set)
    loop.add_signal_handler(signal.SIGTERM, end.set)
    servers = (
        await loop.create_datagram_endpoint(Echo, local_addr=("0.0.0.0", PORT)),
        await asyncio.start_server(serve_tcp, "0.0.0.0", PORT, backlog=1024),
    )
    await begin.wait()
    await client.run()
    facts = {"stream": client.stream, "fresh": client.fresh, "failures": client.failures}
    print(json.dumps({**facts, "counters": client.counters, "lag": client.lag}), flush=True)
    await end.wait()
    del servers  # nothing else keeps them


def main() -> int:
    """Run until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peer")
    asyncio.run(work(parser.parse_args().peer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
