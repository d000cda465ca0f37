"""Images that callers name by address: fetched from the internet, and from nowhere else, over real TLS."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

from promptlooper.adapter.images import LARGEST_IMAGE, LARGEST_SUM, ImageFetcher, Room, is_public, with_bytes
from promptlooper.adapter.retrying import AttemptFailed, Kind
from promptlooper.completion import CompletionRequest, Message
from tests.tls_lab import Authority

HOST = "images.test"
INSIDE = (
    "0.0.0.0 10.1.2.3 100.64.0.1 100.100.100.200 127.0.0.1 127.255.255.254 168.63.129.16 169.254.169.254 172.16.0.1 "
    "172.31.255.255 192.0.0.192 192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 "
    "240.0.0.1 255.255.255.255 :: ::1 ::127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 64:ff9b::7f00:1 "
    "64:ff9b::a9fe:a9fe 64:ff9b:1::1 100::1 2001::1 2001:db8::1 2002:7f00:1:: 2002:a9fe:a9fe:: fc00::1 "
    "fd00:ec2::254 fe80::1 fec0::1 ff02::1 5f00::1 3fff::1"
)


class Names(AbstractResolver):
    """Says the next of its answers each time it is asked, the last one for ever."""

    def __init__(self, *answers: list[str]) -> None:
        self._answers = list(answers)
        self.asked = 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked += 1
        addresses = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in addresses
        ]

    async def close(self) -> None: ...


class Site:
    """An https server on loopback, and a client that trusts it."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        self.requests: list[dict[str, str]] = []
        self.port = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append({name.lower(): text for name, text in request.headers.items()})
        if request.path == "/redirect":
            return web.Response(status=302, headers={"location": f"https://127.0.0.1:{self.port}/image"})
        if request.path == "/text":
            return web.Response(text="not an image")
        if request.path == "/large":
            return web.Response(body=b"x" * (LARGEST_IMAGE + 1), content_type="image/png")
        if request.path == "/slow":
            await asyncio.sleep(60)
        if request.path.startswith("/full"):
            return web.Response(body=b"x" * LARGEST_IMAGE, content_type="image/png")
        if request.path == "/image":
            return web.Response(body=b"\x89PNG", content_type="image/png")
        return web.Response(status=int(request.path[1:]))

    def url(self, path: str, host: str = HOST) -> str:
        return f"https://{host}:{self.port}/{path}"


@pytest.fixture
async def site(tmp_path) -> AsyncIterator[Site]:
    authority = Authority(tmp_path)
    pair = authority.issue("images", host=HOST)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(pair.cert, pair.key)
    found = Site(ssl.create_default_context(cafile=str(authority.file)))
    app = web.Application()
    app.router.add_get("/{path}", found.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    server = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=serving)
    await server.start()
    found.port = runner.addresses[0][1]
    yield found
    await runner.cleanup()


async def failure_of(fetcher: ImageFetcher, url: str):
    try:
        with pytest.raises(AttemptFailed) as caught:
            await fetcher.fetch(url, Room())
        return caught.value.failure
    finally:
        await fetcher.aclose()


async def test_an_image_is_fetched_without_anything_of_ours(site):
    fetcher = ImageFetcher(resolver=Names(["127.0.0.1"]), context=site.context, may_connect=lambda address: True)
    image = await fetcher.fetch(site.url("image"), Room())
    await fetcher.aclose()
    assert (image.media_type, image.data) == ("image/png", b"\x89PNG")
    (sent,) = site.requests
    assert set(sent) == {"host", "connection", "accept", "accept-encoding", "user-agent"}


async def test_a_question_for_a_provider_that_wants_bytes_gets_each_image_once(site):
    fetcher = ImageFetcher(resolver=Names(["127.0.0.1"]), context=site.context, may_connect=lambda address: True)
    ours, theirs = "data:image/gif;base64,AAAA", site.url("image")
    messages = (
        Message("user", "a", images=(theirs, ours)),
        Message("user", "b", images=(theirs,)),
    )
    asked = await with_bytes(CompletionRequest("p/m", messages, {}), fetcher)
    await fetcher.aclose()
    fetched = "data:image/png;base64,iVBORw=="
    assert [message.images for message in asked.messages] == [(fetched, ours), (fetched,)]
    assert len(site.requests) == 1


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        ([f"full{n}" for n in range(LARGEST_SUM // LARGEST_IMAGE + 1)], "more than 32 MiB in all"),
        (["slow", "404"], "answered HTTP 404"),
    ],
)
async def test_a_question_fails_with_one_image_and_fetches_no_others(site, paths, said):
    fetcher = ImageFetcher(resolver=Names(["127.0.0.1"]), context=site.context, may_connect=lambda address: True)
    message = Message("user", "a", images=tuple(site.url(path) for path in paths))
    before = asyncio.all_tasks()
    with pytest.raises(AttemptFailed, match=said):
        await with_bytes(CompletionRequest("p/m", (message,), {}), fetcher)
    assert not [task for task in asyncio.all_tasks() - before if "fetch" in repr(task.get_coro())]
    await fetcher.aclose()


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f000001", "127.1", "0", "[::1]", "[::ffff:127.0.0.1]"]
)
async def test_no_way_of_writing_this_machine_leads_to_it(site, host):
    failure = await failure_of(ImageFetcher(context=site.context), site.url("image", host))
    assert failure.kind in (Kind.PERMANENT, Kind.TRANSIENT)
    assert site.requests == []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        await failure_of(ImageFetcher(), f"https://{host}:{listener.getsockname()[1]}/image")
        with pytest.raises(BlockingIOError):  # nobody has knocked
            listener.accept()


async def test_a_name_is_checked_when_it_is_connected_to_whatever_it_meant_before(site):
    names = Names(["203.0.113.9"], ["127.0.0.1"])
    public = ipaddress.ip_address("203.0.113.9")
    assert await names.resolve(HOST)  # somebody looked before
    fetcher = ImageFetcher(resolver=names, context=site.context, may_connect=lambda address: address == public)
    failure = await failure_of(fetcher, site.url("image"))
    assert (failure.kind, failure.message) == (
        Kind.PERMANENT,
        f"the image can't be fetched from {HOST!r}: it is not at a public address",
    )
    assert (names.asked, site.requests) == (2, [])


async def test_of_several_addresses_only_public_ones_are_tried(site):
    tried: list[str] = []

    def may_connect(address) -> bool:
        tried.append(str(address))
        return is_public(address)

    names = Names(["10.0.0.1", "127.0.0.1", "::1", "169.254.169.254"])
    failure = await failure_of(
        ImageFetcher(resolver=names, context=site.context, may_connect=may_connect), site.url("image")
    )
    assert failure.kind is Kind.PERMANENT
    assert set(tried) == {"10.0.0.1", "127.0.0.1", "169.254.169.254", "::1"}
    assert site.requests == []


@pytest.mark.parametrize(
    ("path", "kind", "said"),
    [
        ("redirect", Kind.PERMANENT, "redirects, which is not followed"),
        ("text", Kind.PERMANENT, "no image that models know"),
        ("large", Kind.PERMANENT, "larger than 8 MiB"),
        ("404", Kind.PERMANENT, "answered HTTP 404"),
        ("503", Kind.TRANSIENT, "answered HTTP 503"),
    ],
)
async def test_what_is_no_image_is_said(site, path, kind, said):
    fetcher = ImageFetcher(resolver=Names(["127.0.0.1"]), context=site.context, may_connect=lambda address: True)
    failure = await failure_of(fetcher, site.url(path))
    assert failure.kind is kind
    assert said in failure.message
    assert len(site.requests) == 1


@pytest.mark.parametrize(
    "url",
    [
        "http://images.test/a.png",
        "https://",
        "https://me:secret@images.test/a",
        "https://images.test:0/a",
        "file:///etc/passwd",
        "https://[::1/a",
        "https://images.test:99999/",
        "gopher://images.test/",
        "https://a..b/image",
        f"https://{'a' * 64}.test/image",
    ],
)
async def test_an_address_of_another_kind_is_refused_before_anything_is_asked(url):
    names = Names(["127.0.0.1"])
    failure = await failure_of(ImageFetcher(resolver=names), url)
    assert failure.kind is Kind.PERMANENT
    assert "https://host/path" in failure.message
    assert "secret" not in failure.message
    assert names.asked == 0


@pytest.mark.parametrize(
    "address",
    INSIDE.split(),
)
def test_addresses_within_are_not_public(address):
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "64:ff9b::808:808"]
)
def test_addresses_of_the_internet_are(address):
    assert is_public(ipaddress.ip_address(address))
