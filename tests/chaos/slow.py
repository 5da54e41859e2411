"""A TCP proxy that takes its time: `python3 slow.py PORT HOST PORT FILE`.

Listens on the first PORT of loopback. What comes from the other end is passed on as many
seconds late as FILE says at that moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: Path | None) -> None:
    """All bytes until the end of either side."""
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            if delay is not None:
                await asyncio.sleep(float(delay.read_text()))
            writer.write(data)
            await writer.drain()
    writer.close()


async def main(port: int, host: str, target: int, delay: Path) -> None:
    """Serve until killed."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(host, target)
        except OSError:
            writer.close()
            return
        await asyncio.gather(pump(reader, far_writer, None), pump(far_reader, writer, delay))

    server = await asyncio.start_server(accept, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])))
