"""Where requests go: to the addresses of the configuration, whatever a question says, and through its proxy or none."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields, replace
from typing import Any, get_args

import pytest

from promptlooper.adapter.config import ProviderEntry
from promptlooper.completion import CompletionRequest, Message, Tool, ToolCall
from promptlooper.errors import CompletionFailed, InvalidArgument, ProviderUnavailable

WITH_ADDRESS = [
    name for name in get_args(ProviderEntry.model_fields["type"].annotation) if name not in ("local", "mock")
]
BASE = "/tenant/7"


class Listener:
    """An HTTP server that remembers how each request began, and refuses all."""

    def __init__(self) -> None:
        self.port = 0
        self.heads: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        body = b'{"error": {"message": "no"}}'
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()


@asynccontextmanager
async def listening() -> AsyncIterator[Listener]:
    listener = Listener()
    server = await asyncio.start_server(listener.hear, "127.0.0.1", 0)
    listener.port = server.sockets[0].getsockname()[1]
    async with server:
        yield listener


def hostile(url: str) -> dict[str, list[Any]]:
    """Of each field of a question what would lead elsewhere, if anything did."""
    image = f"{url}/image.png".replace("http:", "https:")
    names = ("base_url", "api_base", "endpoint", "url", "host", "proxy", "path", "extra_query", "api_key", "region")
    return {
        "model": [
            f"here/{name}"
            for name in (
                "../../../admin",
                f"@{url}/m",
                f"{url}/m",
                "m?key=x&y=z#f",
                "m\r\nHost: evil\r\nX-Evil: 1",
                "..",
            )
        ],
        "messages": [
            (Message("user", f"see {url}/"),),
            (Message("user", "hi", images=(image,)),),
            (
                Message("user", "hi"),
                Message("assistant", "", tool_calls=(ToolCall(url, "t", "{}"),), provider_data=f'{{"url": "{url}"}}'),
                Message("tool", "ok", tool_call_id=url, name="t"),
            ),
        ],
        "params": [
            dict.fromkeys(names, url),
            {"extra_headers": {"host": "evil"}, "headers": {"x-evil": "1"}, "timeout": 0.1},
        ],
        "timeout": [10.0],
        "once": [True],
        "tools": [(Tool("t", url, {"$ref": f"{url}/schema"}),)],
        "tool_choice": [url],
        "experiment_id": [url],
        "response_schema": [{"$ref": f"{url}/schema", "$id": url}],
    }


@pytest.mark.parametrize("kind", WITH_ADDRESS)
@pytest.mark.parametrize("field", [field.name for field in fields(CompletionRequest)])
async def test_nothing_in_a_question_says_where_it_goes(gateways, kind, field):
    async with listening() as here, listening() as elsewhere:
        text = f"providers: [{{name: here, type: {kind}, base_url: '{here.url}{BASE}', api_key_env: KEY}}]"
        gateway = gateways(text, KEY="k-canary")
        plain = CompletionRequest("here/m", (Message("user", "hi"),), {})
        with pytest.raises(CompletionFailed):
            await gateway.complete(plain)
        expected = headers_of(here.heads.pop())
        for value in hostile(elsewhere.url)[field]:
            with pytest.raises((CompletionFailed, InvalidArgument)):
                await gateway.complete(replace(plain, **{field: value}))
        assert elsewhere.heads == []
        for head in here.heads:
            method, target, _ = head.split("\r\n")[0].split(" ")
            assert (method, target[: len(BASE) + 1]) == ("POST", f"{BASE}/")
            assert ".." not in target.split("/")
            assert "k-canary" not in target
            assert headers_of(head) == expected


def headers_of(head: str) -> dict[str, str]:
    lines = [line.split(": ", 1) for line in head.strip().split("\r\n")[1:]]
    assert len({line[0].lower() for line in lines}) == len(lines)
    return {line[0].lower(): line[1] for line in lines if line[0].lower() != "content-length"}


async def test_proxies_of_the_environment_are_not_used(gateways, fake, asking, monkeypatch):
    async with listening() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        gateway = gateways(OPENAI_BASE_URL=fake.base_url)
        assert (await gateway.complete(asking())).output == "ok"
        assert proxy.heads == []


async def test_the_configured_proxy_is_used_and_sees_no_key_of_an_encrypted_call(gateways, asking):
    async with listening() as proxy:
        text = """
providers:
  - {{name: plain, type: openai, base_url: "http://provider.test/v1", proxy: "{0}", api_key_env: KEY}}
  - {{name: safe, type: openai, base_url: "https://provider.test/v1", proxy: "{0}", api_key_env: KEY}}
"""
        gateway = gateways(text.format(proxy.url), KEY="k-canary")
        with pytest.raises(CompletionFailed):
            await gateway.complete(asking(model="plain/m"))
        (head,) = proxy.heads
        assert head.startswith("POST http://provider.test/v1/chat/completions HTTP/1.1\r\n")
        proxy.heads.clear()
        with pytest.raises(ProviderUnavailable):
            await gateway.complete(asking(model="safe/m"))
        assert all(head.startswith("CONNECT provider.test:443 HTTP/1.1\r\n") for head in proxy.heads)
        assert "k-canary" not in "".join(proxy.heads)


async def test_a_proxy_that_is_away_is_said(gateways, asking):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    text = f"providers: [{{name: a, type: openai, base_url: 'http://provider.test', proxy: 'http://127.0.0.1:{port}'}}]"
    with pytest.raises(ProviderUnavailable, match=r"cannot connect to the proxy of http://provider\.test"):
        await gateways(text).complete(asking(model="a/m"))
