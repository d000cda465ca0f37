"""A whole stack whose services know each other by certificate and token, and its users by token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stack_lab import CommandLine
from tls_lab import Authority

from promptlooper.clients.runner import connected
from promptlooper.errors import PermissionDenied, ServiceUnavailable, Unauthenticated
from promptlooper.rpc.api_keys import key_line, new_key
from promptlooper.rpc.scopes import Scope
from promptlooper.rpc.security import ChannelSecurity

EXPERIMENT = """\
name: echoes
inputs: [{country: France}, {country: Japan}]
model: mock/echo
prompt: "Where is {{ input.country }}?"
scorers: [{contains: "{{ input.country }}"}]
"""


async def test_stack_with_certificates_and_tokens_runs_experiments_for_those_who_may(tmp_path: Path) -> None:
    (tmp_path / "echoes.yaml").write_text(EXPERIMENT)
    authority = Authority(tmp_path)
    own, user = authority.issue("stack"), authority.issue("user")
    keys = {scope: new_key() for scope in Scope}
    (tmp_path / "keys.txt").write_text("".join(key_line(f"ci-{scope}", [scope], key) for scope, key in keys.items()))
    tokens = {scope: tmp_path / f"{scope}.token" for scope in Scope}
    for scope, path in tokens.items():
        path.write_text(keys[scope])
    settings = {
        "TLS_CERT_FILE": own.cert,
        "TLS_KEY_FILE": own.key,
        "TLS_CLIENT_CA_FILE": authority.file,
        "TLS_CA_FILE": authority.file,
        "API_KEYS_FILE": tmp_path / "keys.txt",
        "SERVICE_TOKEN_FILE": tokens[Scope.ADMIN],
        "SERVER_CA_FILE": authority.file,
        "SERVER_CERT_FILE": user.cert,
        "SERVER_KEY_FILE": user.key,
        "SERVER_TOKEN_FILE": tokens[Scope.RUN],
    }
    stack = CommandLine(tmp_path, {f"PROMPTLOOPER_{name}": str(path) for name, path in settings.items()})
    try:
        started = stack("up", "-d", "--port-base", "0")
        assert started.returncode == 0, started.stderr
        server = stack.server()
        done = stack("run", "echoes.yaml", "--json", "--server", server)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["counts"]["completed"] == 2
        # From the Runner's own call to the Cache: it is the service that may, and the caller who may not.
        assert (await as_caller(server, authority, own.cert, own.key, tokens[Scope.ADMIN])) == 2
        with pytest.raises(PermissionDenied, match="needs the scope 'admin', and the token of 'ci-run' has run"):
            await as_caller(server, authority, own.cert, own.key, tokens[Scope.RUN])
        with pytest.raises(Unauthenticated, match="PROMPTLOOPER_SERVER_TOKEN_FILE"):
            await as_caller(server, authority, own.cert, own.key, None)
        with pytest.raises(ServiceUnavailable, match="a client certificate"):
            await as_caller(server, authority, None, None, tokens[Scope.ADMIN])
    finally:
        stack("down")


async def as_caller(server: str, authority: Authority, cert: Path | None, key: Path | None, token: Path | None) -> int:
    """How many answers a caller could clear from the cache."""
    security = ChannelSecurity(authority.file, cert, key, token)
    async with connected(server, security=security) as client:
        return await client.purge_cache("")
