"""Every RPC of the contract, with every kind of token: what the table of scopes says happens, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from tls_lab import put
from token_lab import AUDIENCE, ISSUER, Issuer

from promptlooper.errors import DomainError, NotAvailableYet, PermissionDenied, Unauthenticated
from promptlooper.rpc.access import Access, access_by
from promptlooper.rpc.api_keys import key_line, new_key
from promptlooper.rpc.client import domain_errors, open_channel
from promptlooper.rpc.scopes import SCOPES, Scope
from promptlooper.rpc.server import serving
from promptlooper.telemetry import LogLimit
from promptlooper.testing.eventually import eventually
from promptlooper.v1 import adapter_service_pb2, cache_service_pb2, runner_service_pb2, scorer_service_pb2
from promptlooper.v1 import adapter_service_pb2_grpc as adapter
from promptlooper.v1 import cache_service_pb2_grpc as cache
from promptlooper.v1 import runner_service_pb2_grpc as runner
from promptlooper.v1 import scorer_service_pb2_grpc as scorer

_OURS = (runner_service_pb2, adapter_service_pb2, cache_service_pb2, scorer_service_pb2)
METHODS: dict[str, MethodDescriptor] = {
    f"/{service.full_name}/{method.name}": method
    for file in (*_OURS, health_pb2, reflection_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
# All services at once. What none of them implements is answered by the stubs' base: so who gets there is let in.
SERVICES: dict[str, Any] = {
    "promptlooper.v1.RunnerService": (runner.add_RunnerServiceServicer_to_server, runner.RunnerServiceServicer),
    "promptlooper.v1.AdapterService": (adapter.add_AdapterServiceServicer_to_server, adapter.AdapterServiceServicer),
    "promptlooper.v1.CacheService": (cache.add_CacheServiceServicer_to_server, cache.CacheServiceServicer),
    "promptlooper.v1.ScorerService": (scorer.add_ScorerServiceServicer_to_server, scorer.ScorerServiceServicer),
}
ISSUED = Issuer()
STRANGER = Issuer()
KEYS = {name: new_key() for name in ("read", "run", "admin", "expired", "both")}
PAST = datetime.now(UTC) - timedelta(minutes=1)

REFUSED: dict[str, tuple[str, ...]] = {
    "no token": (),
    "a key that nobody has": (new_key(),),
    "a key with the beginning of another": (KEYS["admin"][:24] + new_key()[24:],),
    "a key with more at its end": (KEYS["admin"] + "A",),
    "an expired key": (KEYS["expired"],),
    "the hash of a key": (key_line("x", ["admin"], KEYS["admin"]).split()[2],),  # type: ignore[list-item]
    "no token at all": ("",),
    "what is no token": ("admin",),
    "two tokens": (KEYS["admin"], KEYS["admin"]),
    "an expired JWT": (ISSUED.token(exp=PAST),),
    "a JWT from the future": (ISSUED.token(nbf=datetime.now(UTC) + timedelta(hours=1)),),
    "a JWT for another audience": (ISSUED.token(aud="somebody-else"),),
    "a JWT of another issuer": (ISSUED.token(iss="https://issuer.example.evil"),),
    "a JWT of a stranger's key": (STRANGER.token(),),
    "a JWT of alg none": (ISSUED.unsigned(),),
    "a JWT of HS256 with the public EC key": (ISSUED.signed_with_public_key("es"),),
    "a JWT of HS256 with the public RSA key": (ISSUED.signed_with_public_key("rs"),),
    "a JWT of a list of algs": (ISSUED.of_algorithm(["ES256"]),),
    "a JWT that ends with a text": (ISSUED.token(exp="4000000000"),),
    "a JWT that ends after all time": (ISSUED.token(exp=10**400),),
    **{f"a JWT without {claim}": (ISSUED.token(without=claim),) for claim in ("exp", "aud", "iss", "sub")},
}
TAKEN: dict[str, tuple[str, set[Scope]]] = {
    "a key to read": (KEYS["read"], {Scope.READ}),
    "a key to run": (KEYS["run"], {Scope.READ, Scope.RUN}),
    "a key to administrate": (KEYS["admin"], set(Scope)),
    "a key of two scopes": (KEYS["both"], {Scope.READ, Scope.RUN}),
    "a JWT to read": (ISSUED.token("openid read"), {Scope.READ}),
    "a JWT to run": (ISSUED.token("run"), {Scope.READ, Scope.RUN}),
    "a JWT to administrate, RS256": (ISSUED.token("admin", kid="rs"), set(Scope)),
    "a JWT with a list in scp": (ISSUED.token("", scp=["run", "profile"]), {Scope.READ, Scope.RUN}),
    "a JWT without scopes": (ISSUED.token(without="scope"), set()),
    "a JWT of others' scopes": (ISSUED.token("administrator readwrite"), set()),
}


@asynccontextmanager
async def everything(folder: Path) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a server of all services, with both kinds of token. Files are put into `folder`."""
    lines = [key_line(name, [Scope(name)], KEYS[name]) for name in ("read", "run", "admin")]
    lines.append(key_line("expired", [Scope.ADMIN], KEYS["expired"], PAST))
    lines.append(key_line("both", [Scope.READ, Scope.RUN], KEYS["both"]))
    (folder / "keys.txt").write_text("# who may call\n\n" + "".join(lines))
    (folder / "jwks.json").write_bytes(ISSUED.jwks())
    access = access_by(folder / "keys.txt", folder / "jwks.json", ISSUER, AUDIENCE)
    register = {name: lambda server, add=add, base=base: add(base(), server) for name, (add, base) in SERVICES.items()}
    async with serving("127.0.0.1:0", register, access=access) as running:
        async with open_channel(f"127.0.0.1:{running.port}") as channel:
            yield channel


async def outcome(
    channel: grpc.aio.Channel, path: str, tokens: Iterable[str], *, refused: bool = False
) -> DomainError | None:
    """What a call comes to; None where it was answered. Where it is to be `refused`, a stream of requests sends none: a
    write to a call that the server has ended makes grpc's client say INTERNAL in the server's place. A stream that is
    let in waits for a request then, and ends at its deadline."""
    method = METHODS[path]
    kind = "_".join("stream" if s else "unary" for s in (method.client_streaming, method.server_streaming))
    metadata = tuple(("authorization", f"Bearer {token}") for token in tokens)
    asked: Any = (None if refused else iter([b""])) if method.client_streaming else b""
    call = getattr(channel, kind)(path)(asked, timeout=10, metadata=metadata)
    try:
        with domain_errors("the server"):
            if method.server_streaming:
                await call.read()
            else:
                await call
    except DomainError as error:
        return error
    finally:
        call.cancel()
    return None


def is_let_in(found: DomainError | None) -> bool:
    return found is None or isinstance(found, NotAvailableYet)


def test_every_rpc_has_a_scope_and_every_scope_an_rpc() -> None:
    assert set(SCOPES) == set(METHODS)
    open_to_all = [path for path, scope in SCOPES.items() if scope is None]
    assert all(path.startswith("/grpc.health.v1.Health/") for path in open_to_all)


def test_what_has_side_effects_can_not_be_done_with_read() -> None:
    for path, method in METHODS.items():
        if path.startswith("/promptlooper.") and SCOPES[path] is Scope.READ:
            assert method.GetOptions().idempotency_level == method.GetOptions().NO_SIDE_EFFECTS, path


@pytest.mark.parametrize("tokens", REFUSED.values(), ids=REFUSED.keys())
async def test_every_rpc_is_refused_without_a_good_token(tokens: tuple[str, ...], tmp_path: Path) -> None:
    async with everything(tmp_path) as channel:
        for path, scope in SCOPES.items():
            found = await outcome(channel, path, tokens, refused=scope is not None)
            if scope is None:
                assert is_let_in(found), path
                continue
            assert isinstance(found, Unauthenticated), (path, found)
            assert not any(token and token in found.message for token in tokens if len(token) > 8)


@pytest.mark.parametrize(("token", "scopes"), TAKEN.values(), ids=TAKEN.keys())
async def test_every_rpc_is_for_those_of_its_scope(token: str, scopes: set[Scope], tmp_path: Path) -> None:
    async with everything(tmp_path) as channel:
        for path, scope in SCOPES.items():
            found = await outcome(channel, path, [token], refused=scope is not None and scope not in scopes)
            if scope is None or scope in scopes:
                assert is_let_in(found), (path, found)
            else:
                assert isinstance(found, PermissionDenied), (path, found)
                assert found.metadata == {"scope": scope}


@pytest.mark.parametrize(
    "path",
    [
        "promptlooper.v1.RunnerService/GetRun",
        "//promptlooper.v1.RunnerService/GetRun",
        "/promptlooper.v1.RunnerService/getrun",
        "/promptlooper.v1.RunnerService/GetRun?x=1",
        "/promptlooper.v1.RunnerService%2FGetRun",
        "/grpc.health.v1.Health/../../promptlooper.v1.RunnerService/GetRun",
        "/nobody.Service/Method",
    ],
)
async def test_paths_that_only_look_like_ours_lead_nowhere(path: str, tmp_path: Path) -> None:
    async with everything(tmp_path) as channel:
        for tokens, code in (
            ((), grpc.StatusCode.UNAUTHENTICATED),
            ((("authorization", f"Bearer {KEYS['admin']}"),), grpc.StatusCode.UNIMPLEMENTED),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(path)(b"", metadata=tokens, timeout=10)
            assert caught.value.code() is code


async def test_rpc_without_a_scope_is_refused_to_everyone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = "/promptlooper.v1.RunnerService/GetRun"
    monkeypatch.delitem(SCOPES, path)
    async with everything(tmp_path) as channel:
        assert isinstance(await outcome(channel, path, [KEYS["admin"]]), PermissionDenied)


async def test_who_is_refused_again_and_again_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    access = Access(limit=LogLimit(2, monotonic=lambda: now))
    path = "/promptlooper.v1.RunnerService/GetRun"
    caplog.set_level("INFO")
    async with serving("127.0.0.1:0", {}, access=access) as running:
        async with open_channel(f"127.0.0.1:{running.port}") as channel:
            for _ in range(5):
                assert isinstance(await outcome(channel, path, ()), Unauthenticated)
            now = 1.0
            await outcome(channel, path, ())
    lines = [vars(record) for record in caplog.records if record.message == "call refused"]
    assert [line.get("not_logged_before", 0) for line in lines] == [0, 0, 3]
    assert access.refused == {(path, "UNAUTHENTICATED"): 6}


async def test_revoked_keys_are_refused_at_once_also_those_that_were_just_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, by_jwt = "/promptlooper.v1.RunnerService/GetRun", ISSUED.token()
    async with everything(tmp_path) as channel:

        async def refused(token: str) -> bool:
            return isinstance(await outcome(channel, path, [token]), Unauthenticated)

        assert not await refused(KEYS["admin"])
        assert not await refused(by_jwt)
        put(tmp_path / "keys.txt", key_line("read", [Scope.READ], KEYS["read"]).encode())
        put(tmp_path / "jwks.json", ISSUED.jwks("rs"))
        await eventually(lambda: refused(KEYS["admin"]))
        await eventually(lambda: refused(by_jwt))
        assert not await refused(KEYS["read"])

        put(tmp_path / "keys.txt", b"read everything please\n")  # what can't be read changes nothing
        put(tmp_path / "jwks.json", b"{}")

        async def told() -> bool:
            await asyncio.gather(refused(KEYS["read"]), refused(by_jwt))
            return caplog.text.count("what was read before stays") == 2

        await eventually(told)
        assert not await refused(KEYS["read"])
        assert not await refused(ISSUED.token(kid="rs"))
    assert KEYS["read"] not in caplog.text
    assert by_jwt not in caplog.text
