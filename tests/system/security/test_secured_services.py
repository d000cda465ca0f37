"""Services as processes, by their settings: who they let in, and what they refuse to be started with."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tls_lab import Authority, Pair
from token_lab import AUDIENCE, ISSUER, Issuer

from promptlooper.cli.main import main
from promptlooper.clients import cache, scorer
from promptlooper.errors import CacheUnavailable, ServiceUnavailable
from promptlooper.rpc.security import ChannelSecurity
from promptlooper.scoring import ScoreItem, ScorerCall


@asynccontextmanager
async def process(service: str, **settings: Any) -> AsyncIterator[Callable[[str], Any]]:
    """A service, and a coroutine function that returns the first log line with a text in it."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PROMPTLOOPER_")}
    env |= {f"PROMPTLOOPER_{name.upper()}": str(value) for name, value in settings.items()}
    env.setdefault("PROMPTLOOPER_LISTEN", "127.0.0.1:0")
    env["PYTHONPATH"] = os.pathsep.join(sys.path)
    env["PROMPTLOOPER_HEALTH_LISTEN"] = "127.0.0.1:0"
    command = (sys.executable, "-m", f"promptlooper.{service}")
    running = await asyncio.create_subprocess_exec(*command, env=env, stderr=asyncio.subprocess.PIPE)
    log = running.stderr
    assert log is not None

    async def line_with(text: str) -> str:
        said = ""
        while line := (await log.readline()).decode():
            said += line
            if text in line:
                return line
        raise AssertionError(f"the log ended without {text!r}: {said}")

    try:
        yield line_with
    finally:
        if running.returncode is None:
            running.kill()
        await log.read()
        await running.wait()


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def new_token(folder: Path, name: str, scopes: str) -> Path:
    """What `promptlooper token new` prints, in a file; servers read keys.txt."""
    command = ["token", "new", "--name", name, "--scopes", scopes, "--file", str(folder / "keys.txt")]
    made = CliRunner().invoke(main, command, catch_exceptions=False)
    path = folder / f"{name}.token"
    path.write_text(made.stdout)
    return path


def of(ca: Authority, pair: Pair | None, token: Path | None) -> ChannelSecurity:
    return ChannelSecurity(ca.file, pair and pair.cert, pair and pair.key, token)


async def test_service_with_tls_and_tokens_answers_those_who_have_both(ca: Authority, tmp_path: Path) -> None:
    own, caller = ca.issue("scorer"), ca.issue("caller")
    ci, issuer = new_token(tmp_path, "ci", "run"), Issuer()
    (tmp_path / "jwks.json").write_bytes(issuer.jwks())
    by_jwt = tmp_path / "jwt"
    by_jwt.write_text(issuer.token("read"))
    settings = {
        "tls_cert_file": own.cert,
        "tls_key_file": own.key,
        "tls_client_ca_file": ca.file,
        "api_keys_file": tmp_path / "keys.txt",
        "jwks_file": tmp_path / "jwks.json",
        "jwt_issuer": ISSUER,
        "jwt_audience": AUDIENCE,
    }
    async with process("scorer", listen="0.0.0.0:0", **settings) as line_with:
        found = re.search(r"\bport=(\d+)", await line_with("serving"))
        assert found is not None
        address = f"127.0.0.1:{found[1]}"
        for token in (ci, by_jwt):
            async with scorer.connected(address, security=of(ca, caller, token)) as client:
                assert await client.list_scorers()
        async with scorer.connected(address, security=of(ca, caller, by_jwt)) as client:
            with pytest.raises(ServiceUnavailable, match=r"refuses this service.*needs the scope 'run'"):
                await client.score([ScoreItem("an output", (ScorerCall("length", {"min": 1}),))])
        async with scorer.connected(address, security=of(ca, caller, None)) as client:
            with pytest.raises(ServiceUnavailable, match="SERVICE_TOKEN_FILE: this server needs a token"):
                await client.list_scorers()
        async with scorer.connected(address, security=of(ca, None, ci)) as client:
            with pytest.raises(ServiceUnavailable, match="no scorer answers"):
                await client.list_scorers()


async def test_cache_that_refuses_us_is_a_cache_that_is_away(tmp_path: Path) -> None:
    ci = new_token(tmp_path, "ci", "read")
    async with process("cache", api_keys_file=tmp_path / "keys.txt", redis_url="redis://127.0.0.1:1/0") as line_with:
        found = re.search(r"\bport=(\d+)", await line_with("serving"))
        assert found is not None
        async with cache.connected(f"127.0.0.1:{found[1]}", security=ChannelSecurity(token_file=ci)) as client:
            with pytest.raises(CacheUnavailable, match="needs the scope 'admin'"):
                await client.purge("")
        refused = await line_with("call refused")
    assert "caller=ci" in refused
    assert ci.read_text().strip() not in refused


async def test_service_refuses_to_be_open_to_everyone() -> None:
    command = [sys.executable, "-m", "promptlooper.scorer"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PROMPTLOOPER_")}
    env |= {"PROMPTLOOPER_LISTEN": "0.0.0.0:0", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = await asyncio.to_thread(subprocess.run, command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "PROMPTLOOPER_ALLOW_UNAUTHENTICATED=true" in done.stderr
    async with process("scorer", listen="0.0.0.0:0", allow_unauthenticated="true") as line_with:
        await line_with("serving")
