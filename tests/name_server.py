"""A DNS server on loopback with one name, as a headless Service has it: an address for each replica that is there."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

_A, _ANSWER, _QUESTION_AT = 1, 0x8180, 12


@dataclass
class Name(asyncio.DatagramProtocol):
    """Every question for an IPv4 address is answered with `addresses`, whatever the name."""

    addresses: list[str] = field(default_factory=list)
    port: int = 0

    def target(self, port: int) -> str:
        """What grpc calls the name, asked of this server."""
        return f"dns://127.0.0.1:{self.port}/adapters.test:{port}"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, sender: tuple[str, int]) -> None:
        name_end = data.index(b"\0", _QUESTION_AT) + 1
        (kind,) = struct.unpack_from(">H", data, name_end)
        found = self.addresses if kind == _A else []
        header = data[:2] + struct.pack(">5H", _ANSWER, 1, len(found), 0, 0)
        # Each record: the name at 12, type A, class IN, a TTL of 0 s, four bytes.
        records = [b"\xc0\x0c" + struct.pack(">HHIH", _A, 1, 0, 4) + socket.inet_aton(address) for address in found]
        self._transport.sendto(header + data[_QUESTION_AT : name_end + 4] + b"".join(records), sender)


@asynccontextmanager
async def name_server() -> AsyncIterator[Name]:
    loop = asyncio.get_running_loop()
    transport, name = await loop.create_datagram_endpoint(Name, local_addr=("127.0.0.1", 0))
    try:
        yield name
    finally:
        transport.close()
