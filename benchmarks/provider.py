"""A fast provider in a process of its own: speaks just enough HTTP/1.1 and OpenAI format to answer chat completions.

`python -m benchmarks.provider [DELAY_SECONDS [PIECES]]` prints its base URL and serves until stdin closes. A question
with `stream` is answered by so many pieces, each DELAY_SECONDS after the one before; the first comes at once.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

BODY = (
    b'{"id":"x","object":"chat.completion","model":"fast","choices":[{"index":0,"finish_reason":"stop","message":'
    b'{"role":"assistant","content":"The capital is Paris, of course."}}],'
    b'"usage":{"prompt_tokens":21,"completion_tokens":8,"total_tokens":29}}'
)
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
PIECE = b'data: {"id":"x","model":"fast","choices":[{"index":0,"delta":{"content":"word "}}]}\n\n'
LAST = (
    b'data: {"id":"x","model":"fast","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    b'data: {"id":"x","model":"fast","choices":[],"usage":{"prompt_tokens":21,"completion_tokens":8}}\n\n'
    b"data: [DONE]\n\n"
)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class Provider(asyncio.Protocol):
    """One connection. Requests are not pipelined by clients, so one buffer is one request at most."""

    def __init__(self, delay: float, pieces: int) -> None:
        self._delay, self._pieces, self._buffer = delay, pieces, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        if len(body) < length:
            return
        self._buffer = body[length:]
        if b'"stream":true' in body:
            self._transport.write(STREAM)
            self._tell(self._pieces)
        elif self._delay:
            asyncio.get_running_loop().call_later(self._delay, self._answer)
        else:
            self._answer()

    def _answer(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(ANSWER)

    def _tell(self, left: int) -> None:
        if self._transport.is_closing():
            return
        if left:
            self._transport.write(chunk(PIECE))
            asyncio.get_running_loop().call_later(self._delay, self._tell, left - 1)
        else:
            self._transport.write(chunk(LAST) + b"0\r\n\r\n")


async def serve(delay: float = 0.0, pieces: int = 3) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Provider(delay, pieces), "127.0.0.1", 0, backlog=2048)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    closed = asyncio.Event()
    loop.add_reader(sys.stdin, closed.set)
    await closed.wait()


if __name__ == "__main__":
    import uvloop

    uvloop.run(serve(*(kind(said) for kind, said in zip((float, int), sys.argv[1:], strict=False))))
