"""The client of a Runner that wants TLS, a certificate and a token: by arguments, or by variables."""

from __future__ import annotations

from pathlib import Path

import pytest
from client_lab import runner_on_the_wire
from tls_lab import Authority

from promptlooper.client import AsyncClient, run
from promptlooper.errors import PermissionDenied, ServiceUnavailable, Unauthenticated
from promptlooper.rpc.access import access_by
from promptlooper.rpc.api_keys import key_line, new_key
from promptlooper.rpc.certificates import server_credentials
from promptlooper.rpc.scopes import Scope


async def test_a_secured_runner_answers_who_proves_itself(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ca = Authority(here)
    own, caller = ca.issue("runner"), ca.issue("caller")
    keys = {scope: new_key() for scope in (Scope.READ, Scope.RUN)}
    for scope, key in keys.items():
        (here / scope.value).write_text(key)
    (here / "keys.txt").write_text("".join(key_line(scope.value, [scope], key) for scope, key in keys.items()))
    settings = {
        "credentials": server_credentials(own.cert, own.key, ca.file),
        "access": access_by(here / "keys.txt", None),
    }
    shown = {"ca_file": ca.file, "cert_file": caller.cert, "key_file": caller.key}
    with runner_on_the_wire(here, **settings) as address:
        async with AsyncClient(address, token_file="run", **shown) as client:
            assert (await client.run("capitals.yaml")).passed
        async with AsyncClient(address, token_file="read", **shown) as client:
            assert [found.name async for found in client.list()] == ["capitals"]
            with pytest.raises(PermissionDenied, match="'run'"):
                await client.create("capitals.yaml")
        async with AsyncClient(address, **shown) as client:
            with pytest.raises(Unauthenticated):
                await client.get("abc")
        async with AsyncClient(address, ca_file=ca.file, token_file="run") as client:
            with pytest.raises(ServiceUnavailable):
                await client.get("abc")
        for name, path in {**shown, "token_file": here / "run"}.items():
            monkeypatch.setenv(f"PROMPTLOOPER_SERVER_{name.upper()}", str(path))
        assert next(run("capitals.yaml", address).rows()).output == "The capital of France"
