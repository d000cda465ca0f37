"""docs/clients.md and the shell page: complete, and what they say is so."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from promptlooper.errors import ERRORS_BY_REASON
from promptlooper.rpc.status import code_of
from promptlooper.v1.error_reason_pb2 import ErrorReason

if TYPE_CHECKING:
    from .conftest import GatedStack

ROOT = Path(__file__).parents[3]
CLIENTS_PAGE = (ROOT / "docs" / "clients.md").read_text()
SHELL_PAGE = (ROOT / "examples" / "clients" / "shell" / "README.md").read_text()


def test_every_error_reason_is_documented_with_its_code() -> None:
    documented = re.findall(r"^\| `([A-Z_]+)` \| ([A-Z_]+|–) \| \S", CLIENTS_PAGE, re.MULTILINE)
    names = [name.removeprefix("ERROR_REASON_") for name in ErrorReason.keys()][1:]  # noqa: SIM118
    assert sorted(reason for reason, _ in documented) == sorted(names)
    codes = {name: code_of(ERRORS_BY_REASON[name]("")).name if name in ERRORS_BY_REASON else "–" for name in names}
    assert dict(documented) == codes


@pytest.mark.asyncio(loop_scope="session")
async def test_shell_page_runs_an_experiment(stack: GatedStack, tmp_path: Path) -> None:
    (tmp_path / "countries.csv").write_text("country,expected\nFrance,Paris\nJapan,Tokyo\n")
    (tmp_path / "promptlooper.yaml").write_text(
        "inputs: {file: countries.csv}\nmodel: openai/any\nprompt: '{{ input.country }}: {{ expected }}'\n"
        "scorers: [{icontains: '{{ expected }}', threshold: 1}]\ncache: {mode: 'off'}\n"
    )
    commands = "\n".join(re.findall(r"^```sh run\n(.*?)^```$", SHELL_PAGE, re.MULTILINE | re.DOTALL))
    path = f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"
    process = await asyncio.create_subprocess_exec(
        *("bash", "-e", "-c", commands),
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "PROMPTLOOPER_SERVER": stack.server},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    while b'"snapshot"' not in (line := await process.stdout.readline()):
        assert line, await process.communicate()
    stack.release(3)  # the third is ExecuteRun's
    out, err = await process.communicate()
    assert process.returncode == 0, out.decode() + err.decode()
    assert "names files that are not here: 'countries.csv'" in err.decode()
    assert '"experiment.completed"' in out.decode()
    assert '{"state":"RUN_STATE_COMPLETED","output":"Peru: Lima","score":1}' in out.decode()
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["output"] for row in rows] == ["France: Paris", "Japan: Tokyo"]
