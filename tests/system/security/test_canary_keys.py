"""Providers' keys on a whole stack that logs all it can: sent to their provider, and found nowhere else."""

from __future__ import annotations

import asyncio
import base64
import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import grpc
import nats
import pytest
from otlp_lab import collector
from redis import Redis
from stack_lab import CommandLine

from promptlooper.testing.provider import FakeProvider, ProviderRequest, Reply, error
from promptlooper.v1 import adapter_service_pb2, completion_pb2
from promptlooper.v1.adapter_service_pb2_grpc import AdapterServiceStub

OF_VARIABLE, OF_FILE, OF_HEADER = "sk-canary-variable-8d1f2c", "canary/file.key+77a0e1", "canary header value 5b3d"
CANARIES = (OF_VARIABLE, OF_FILE, OF_HEADER)
ASKED = "the-marmot-in-the-prompt"  # it is found, so the search can find
WAYS = ("refused", "rejected", "failed", "limited", "moved", "dropped", "nonsense", "ok")
PROVIDERS = """\
providers:
  - name: shop
    type: openai
    base_url: {url}
    keys: [{{api_key_env: SHOP_KEY}}, {{api_key_file: shop.key}}]
    headers: {{X-Team: "{header}"}}
  - name: lab
    type: openai
    base_url: {url}
    api_key_file: shop.key
"""


def experiment(provider: str) -> str:
    return (
        f"name: canaries\nmodel: {provider}/m\ninputs: {json.dumps(list(WAYS))}\n"
        f'prompt: "{{{{ input }}}} {ASKED}"\nlimits: {{stage_timeout: 1s}}\n'
    )


def reflected(request: ProviderRequest) -> Reply:
    """Whoever asks hears his own headers, in every way that there is to fail."""
    key = request.headers["authorization"]
    all_of_it = " ".join(request.headers.values())
    return {
        "refused": error(401, f"Incorrect API key provided: {key}") if "file" in key else error(403, f"not {key}"),
        "rejected": error(400, f"what is {all_of_it}?", code=key),
        "failed": Reply(status=500, body=f"<pre>{all_of_it}</pre>".encode()),
        "limited": error(429, f"{key} has had enough", retry_after="0"),
        "moved": Reply(status=307, headers={"location": f"https://elsewhere.test/?key={quote(key, '')}"}),
        "dropped": Reply(drop=True),
        "nonsense": Reply(body=all_of_it.encode()),
        "ok": Reply("fine"),
    }[request.question.split()[0]]


@dataclass
class Found:
    """Bytes by where they were found."""

    places: dict[str, list[bytes]] = field(default_factory=dict)

    def add(self, place: str, *data: bytes | str) -> None:
        self.places.setdefault(place, []).extend(d.encode() if isinstance(d, str) else d for d in data)

    def with_any_of(self, texts: Iterable[str]) -> dict[str, str]:
        return {
            place: text
            for place, found in self.places.items()
            for text in texts
            if any(form in data for data in found for form in forms(text))
        }


def forms(text: str) -> Iterator[bytes]:
    """As it is, in JSON, in a URL, in base 64."""
    yield text.encode()
    yield quote(text, "").encode()
    yield text.replace("/", "\\/").encode()
    yield base64.b64encode(text.encode())[:-4]


async def test_keys_are_sent_to_their_provider_and_found_nowhere(tmp_path: Path) -> None:
    (tmp_path / "shop.key").write_text(OF_FILE)
    found = Found()
    async with collector() as traces, FakeProvider(reflected) as provider:
        (tmp_path / "providers.yaml").write_text(PROVIDERS.format(url=provider.base_url, header=OF_HEADER))
        env = {"SHOP_KEY": OF_VARIABLE, "PROMPTLOOPER_LOG_LEVEL": "debug", **traces.environment()}
        stack = CommandLine(tmp_path, env)

        async def run(*args: str) -> str:
            done = await asyncio.to_thread(stack, *args)
            found.add(f"promptlooper {args[0]}", done.stdout, done.stderr)
            return done.stdout

        try:
            await run("up", "-d", "--port-base", "0", "--providers", "providers.yaml")
            parts = {row["kind"]: row for row in stack.status()}
            for process in stack.processes():
                found.add("ps", *process.cmdline())
            for name in ("shop", "lab"):
                (tmp_path / f"{name}.yaml").write_text(experiment(name))
                await run("run", f"{name}.yaml", "--server", parts["runner"]["address"])
            await run("show", "latest", "--json", "--server", parts["runner"]["address"])
            await run("export", "latest", "--server", parts["runner"]["address"])
            await run("models", "--json", "--server", parts["runner"]["address"])
            await run("status", "--json")
            await look_at_errors(parts["adapter"]["address"], found)
            await look_at_events(parts["nats"]["address"], found)
            look_at_redis(parts["redis"]["address"], found)
        finally:
            await run("down")
        found.add("traces", traces.raw)
        assert {call.asker for call in provider.history} == {OF_VARIABLE, OF_FILE}
        assert provider.requests[0].headers["x-team"] == OF_HEADER
    look_at_files(stack.data, found)

    assert set(found.with_any_of((ASKED,))) >= {"SQL", "files", "promptlooper export"}
    assert {"SQL", "redis", "events", "errors", "ps", "files", "traces", "logs"} <= set(found.places)
    assert found.with_any_of(CANARIES) == {}
    assert any(b"***" in data for data in found.places["errors"])


async def look_at_errors(address: str, found: Found) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        for way in WAYS[:-1]:
            message = completion_pb2.Message(role="user", content=f"{way} directly")
            question = completion_pb2.CompletionRequest(model="shop/m", messages=[message], timeout_ms=1000)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await AdapterServiceStub(channel).Complete(adapter_service_pb2.CompleteRequest(request=question))
            found.add("errors", repr(caught.value), str(caught.value.details()))
            for _, value in caught.value.trailing_metadata() or ():
                found.add("errors", value)


async def look_at_events(address: str, found: Found) -> None:
    client = await nats.connect(f"nats://{address}")
    stream = client.jetstream()
    subscription = await stream.subscribe("promptlooper.v1.events.>", ordered_consumer=True)
    for _ in range((await stream.stream_info("PROMPTLOOPER_EVENTS")).state.messages):
        message = await subscription.next_msg(10)
        found.add("events", message.subject, message.data, *(message.headers or {}).values())
    await client.close()


def look_at_redis(address: str, found: Found) -> None:
    host, port = address.rsplit(":", 1)
    with Redis(host=host, port=int(port)) as client:
        for key in client.scan_iter():
            found.add(
                "redis", key, client.dump(key) or b"", *([client.get(key)] if client.type(key) == b"string" else [])
            )


def look_at_files(folder: Path, found: Found) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            found.add("files", path.read_bytes())
            if path.suffix == ".log":
                found.add("logs", path.read_bytes())
            if path.read_bytes().startswith(b"SQLite format 3"):
                with sqlite3.connect(path) as database:
                    found.add("SQL", *database.iterdump())
