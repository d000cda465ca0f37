"""Files of API keys and of public keys: what is taken, and what is said of what is not."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from token_lab import AUDIENCE, ISSUER, Issuer

from promptlooper.errors import InvalidArgument, Unauthenticated
from promptlooper.reloading import Reloaded
from promptlooper.rpc.access import Access
from promptlooper.rpc.api_keys import FOREVER, PREFIX, key_line, new_key, read_keys
from promptlooper.rpc.callers import Caller
from promptlooper.rpc.scopes import Scope
from promptlooper.rpc.web_tokens import LEEWAY, WebTokens

HASH = "sha256:" + "0" * 64


def test_key_is_known_by_its_line_and_the_line_does_not_hold_it() -> None:
    key, end = new_key(), datetime(2030, 1, 31, 12, tzinfo=UTC)
    line = key_line("ci", [Scope.READ, Scope.RUN], key, end)
    assert line.split()[:2] == ["ci", "read,run"]
    assert key not in line
    assert key.removeprefix(PREFIX) not in line
    known = read_keys(f"# comment\n\n{line}  # another\n".encode())
    assert known.caller(key) == Caller("ci", frozenset({Scope.READ, Scope.RUN}), end.timestamp())
    assert known.caller(new_key()) is None


def test_keys_are_long_and_never_the_same() -> None:
    keys = {new_key() for _ in range(1000)}
    assert len(keys) == 1000
    assert all(len(key) == len(PREFIX) + 43 for key in keys)


@pytest.mark.parametrize(
    ("text", "until"),
    [("", FOREVER), ("1970-01-02", 86400), ("1970-01-01T00:01:00Z", 60), ("1970-01-01T01:00+01:00", 0)],
)
def test_expiry_is_a_day_or_a_time(text: str, until: float) -> None:
    assert next(iter(read_keys(f"a read {HASH} {text}".encode()).callers.values())).until == until


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("ci", "line 2: write NAME SCOPES sha256:HASH"),
        (f"ci all {HASH}", "'all' is no scope: use read, run or admin"),
        (f"ci read,, {HASH}", "'' is no scope"),
        (f"-ci read {HASH}", "'-ci' is no name"),
        ("ci read sha256:12", "64 hexadecimal digits"),
        (f"ci read {PREFIX}secret", "this is a key itself"),
        (f"ci read {HASH} tomorrow", "'tomorrow' is no time"),
        (f"ci read {HASH} 2030-01-01 more", "write NAME SCOPES"),
        (f"ci read {HASH}\nops run {HASH}", "line 3: the same key as that of 'ci'"),
    ],
)
def test_line_that_can_not_be_read_is_named(line: str, said: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        read_keys(f"# who may call\n{line}\n".encode())
    assert said in caught.value.message
    assert "secret" not in caught.value.message


def test_each_scope_includes_those_before_it() -> None:
    granted = {scope: [other for other in Scope if Caller("", frozenset({scope}), 0).may(other)] for scope in Scope}
    assert granted == {
        Scope.READ: [Scope.READ],
        Scope.RUN: [Scope.READ, Scope.RUN],
        Scope.ADMIN: [Scope.READ, Scope.RUN, Scope.ADMIN],
    }
    assert not Caller("", frozenset(), 0).may(Scope.READ)


def jwks_of(key: Any, algorithm: str) -> bytes:
    kind = jwt.algorithms.RSAAlgorithm if algorithm == "RS256" else jwt.algorithms.ECAlgorithm
    return json.dumps({"keys": [{**json.loads(kind.to_jwk(key)), "alg": algorithm}]}).encode()


@pytest.mark.parametrize(
    "jwks",
    [
        b"",
        b"[]",
        b"{}",
        b'{"keys": []}',
        json.dumps({"keys": [{"kty": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0", "alg": "HS256"}]}).encode(),
        Issuer().jwks("es").replace(b'"use": "sig"', b'"use": "enc"'),
        jwks_of(rsa.generate_private_key(public_exponent=65537, key_size=2048), "RS256"),  # not for others' eyes
        jwks_of(ec.generate_private_key(ec.SECP256R1()), "ES256"),
        jwks_of(ec.generate_private_key(ec.SECP384R1()).public_key(), "ES256"),
    ],
)
def test_file_without_a_key_that_can_be_used_is_refused(jwks: bytes) -> None:
    with pytest.raises(InvalidArgument):
        WebTokens(jwks, ISSUER, AUDIENCE)


def test_keys_for_other_algorithms_are_passed_over() -> None:
    issuer = Issuer()
    secret = {"kty": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0", "alg": "HS256", "kid": "shared"}
    keys = [*json.loads(issuer.jwks())["keys"], secret]
    tokens = WebTokens(json.dumps({"keys": keys}).encode(), ISSUER, AUDIENCE)
    assert tokens.caller(issuer.token("read", kid="rs")).scopes == {Scope.READ}
    with pytest.raises(Unauthenticated):
        tokens.caller(issuer.token(kid="es").replace(".", ".x", 1))


def test_verified_token_is_taken_again_until_it_ends_and_no_longer(tmp_path: Path) -> None:
    issuer, now = Issuer(), 3_999_999_000.0
    path = tmp_path / "jwks.json"
    path.write_bytes(issuer.jwks())
    tokens = Reloaded("the JWKS", [path], lambda data: WebTokens(data[0], ISSUER, AUDIENCE))
    access = Access(None, tokens, now=lambda: now)
    metadata = [("authorization", "bearer " + issuer.token(exp=4_000_000_000))]
    assert access.caller(metadata) == access.caller(metadata)
    now = 4_000_000_000 + LEEWAY - 1
    assert access.caller(metadata).name == "ci"
    now += 1
    with pytest.raises(Unauthenticated, match="has expired"):
        access.caller(metadata)


def test_more_tokens_than_are_remembered_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("promptlooper.rpc.web_tokens.REMEMBERED", 2)
    issuer = Issuer()
    tokens = WebTokens(issuer.jwks("es"), ISSUER, AUDIENCE)
    made = {name: issuer.token(sub=name) for name in "abc"}
    for _ in range(2):
        assert [tokens.caller(token).name for token in made.values()] == list(made)


@pytest.mark.parametrize(
    "values",
    [["Basic abc"], ["Bearer"], ["Bearer "], ["Bearer a", "Bearer a"], [b"Bearer a"], ["plk_x"], ["Bearer \u00e9"]],
)
def test_metadata_that_is_no_bearer_token_is_refused(values: list[str | bytes]) -> None:
    with pytest.raises(Unauthenticated, match="given once"):
        Access().caller([("authorization", value) for value in values])
