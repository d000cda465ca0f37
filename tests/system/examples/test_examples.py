"""The examples do what their files and READMEs say."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from promptlooper.testing.provider import FakeProvider, ProviderRequest

EXAMPLES = Path(__file__).parents[3] / "examples"


@dataclass(frozen=True)
class Ended:
    code: int
    stdout: str
    stderr: str


CommandLine = Callable[..., Coroutine[Any, Any, Ended]]


@pytest.fixture
def promptlooper(tmp_path: Path) -> CommandLine:
    """The command line as a process of its own, with no keys and a home of its own."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PROMPTLOOPER_", "OPENAI_")) and not name.endswith("_API_KEY")
    }

    async def run(*args: str, **env: str) -> Ended:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "promptlooper.cli.main", *args),
            cwd=tmp_path,
            env={**kept, **env},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        stdout, stderr = await process.communicate()
        assert process.returncode is not None
        return Ended(process.returncode, stdout.decode(), stderr.decode())

    return run


def by_pipeline(summary: dict[str, Any], scorer: str) -> dict[str, float]:
    return {variant["pipeline"]: variant["scores"][scorer]["mean"] for variant in summary["variants"]}


async def test_quickstart_shows_that_its_two_pipelines_differ_and_is_cached_the_second_time(
    promptlooper: CommandLine,
) -> None:
    file = str(EXAMPLES / "quickstart" / "promptlooper.yaml")
    first = await promptlooper("run", file, "--json")
    assert first.code == 0, first.stderr
    summary = json.loads(first.stdout)
    right, brief = by_pipeline(summary, "right"), by_pipeline(summary, "brief")
    assert right["direct"] >= right["examples"] + 0.2  # it knows more …
    assert brief["examples"] >= brief["direct"] + 0.5  # … but talks too much
    assert summary["counts"]["completed"] == 28

    second = await promptlooper("run", file)
    assert second.code == 0, second.stderr
    assert "all 28 runs were served from the cache" in second.stdout
    assert all(pipeline in second.stdout for pipeline in ("direct · local/", "examples · local/"))


async def test_two_stages_are_as_right_as_the_first_and_brief(promptlooper: CommandLine, tmp_path: Path) -> None:
    file = str(EXAMPLES / "two-stage" / "promptlooper.yaml")
    ended = await promptlooper("run", file, "--json", "-o", "rows.jsonl")
    assert ended.code == 0, ended.stderr
    summary = json.loads(ended.stdout)
    right, brief = by_pipeline(summary, "right"), by_pipeline(summary, "brief")
    assert right["two-stage"] >= right["one-stage"] - 0.2
    assert brief["two-stage"] >= brief["one-stage"] + 0.5
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    fed = [row for row in rows if row["pipeline"] == "two-stage"]
    assert [row["stages"][1]["prompt_sent"] for row in fed] == [row["stages"][0]["output"] for row in fed]


async def test_extraction_gives_json_that_matches_its_schema(promptlooper: CommandLine, tmp_path: Path) -> None:
    ended = await promptlooper("run", str(EXAMPLES / "extraction" / "promptlooper.yaml"), "-o", "rows.jsonl")
    assert ended.code == 0, ended.stderr
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [set(row["parsed"]) for row in rows] == [{"name", "age", "city"}] * 4


async def test_chat_sends_the_whole_conversation(promptlooper: CommandLine, tmp_path: Path) -> None:
    ended = await promptlooper("run", str(EXAMPLES / "chat" / "promptlooper.yaml"), "-o", "rows.jsonl")
    assert ended.code == 0, ended.stderr
    for row in map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines()):
        assert [(stage["index"], stage["iteration"]) for stage in row["stages"]] == [(0, 0), (0, 1), (0, 2), (1, 0)]
        said = [message["content"] for message in row["stages"][-1]["messages"] if message["role"] == "assistant"]
        assert said == [stage["output"] for stage in row["stages"][:3]]


async def test_tools_are_called_where_they_help(promptlooper: CommandLine, tmp_path: Path) -> None:
    folder = EXAMPLES / "tools"
    providers = str(folder / "providers.yaml")
    file = str(folder / "promptlooper.yaml")
    ended = await promptlooper("run", file, "-o", "rows.jsonl", PROMPTLOOPER_PROVIDERS=providers)
    assert ended.code == 0, ended.stderr
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [[call["name"] for stage in row["stages"] for call in stage["tool_calls"]] for row in rows] == [
        ["get_weather"],
        [],
    ]
    assert rows[0]["stages"][1]["messages"][-1]["content"] == "Oslo: rain, 8 °C"


async def test_reviews_go_by_batches_but_for_what_expires(promptlooper: CommandLine, tmp_path: Path) -> None:
    folder = EXAMPLES / "batch"
    providers = str(folder / "providers.yaml")
    file = str(folder / "promptlooper.yaml")
    ended = await promptlooper("run", file, "-o", "rows.jsonl", PROMPTLOOPER_PROVIDERS=providers)
    assert ended.code == 0, ended.stderr
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [[stage["batched"] for stage in row["stages"]] for row in rows] == [[True, True]] * 2 + [[False, True]]


async def test_the_handbook_makes_the_answers_right(promptlooper: CommandLine) -> None:
    ended = await promptlooper("run", str(EXAMPLES / "files" / "promptlooper.yaml"), "--json")
    assert ended.code == 0, ended.stderr
    right = by_pipeline(json.loads(ended.stdout), "right")
    assert right["with"] >= right["without"] + 0.5


async def test_openai_example_asks_both_models_through_another_server(
    promptlooper: CommandLine, tmp_path: Path
) -> None:
    expected = {"charged": "billing", "invoice": "billing", "crashes": "bug", "Search": "bug"}

    def answer(request: ProviderRequest) -> str:
        label = next((label for word, label in expected.items() if word in request.question), "feature")
        return label if "exactly one" in request.question else f"This is about {label}."

    async with FakeProvider(answer) as provider:
        file = str(EXAMPLES / "openai" / "promptlooper.yaml")
        checked = await promptlooper("validate", file, OPENAI_BASE_URL=provider.base_url)
        assert checked.code == 0, checked.stderr
        assert "24 runs, 24 calls, estimated cost unknown: a model has no price, or max_tokens" in checked.stdout
        assert not provider.requests

        ended = await promptlooper("run", file, "--json", OPENAI_BASE_URL=provider.base_url)
        assert ended.code == 0, ended.stderr
        assert len(provider.requests) == 24
        assert {request.model for request in provider.requests} == {"gpt-4.1-mini", "gpt-4.1-nano"}
        assert {request.body["max_tokens"] for request in provider.requests} == {16}
    summary = json.loads(ended.stdout)
    assert [variant["label"] for variant in summary["variants"]] == [
        "plain · openai/gpt-4.1-mini",
        "plain · nano",
        "strict · openai/gpt-4.1-mini",
        "strict · nano",
    ]
    assert all(variant["scores"]["right"]["mean"] == 1 for variant in summary["variants"])
    assert [variant["scores"]["clean"]["mean"] for variant in summary["variants"]] == [0, 0, 1, 1]
    assert summary["cost_usd"] is None  # nobody knows what another server costs
    assert summary["cost_unknown_calls"] == 24


async def test_openai_example_with_a_key_may_have_a_budget_in_dollars(promptlooper: CommandLine) -> None:
    file = str(EXAMPLES / "openai" / "promptlooper.yaml")
    checked = await promptlooper("validate", file, "--budget-usd", "0.01", OPENAI_API_KEY="not-used-by-validate")
    assert checked.code == 0, checked.stderr
    assert "24 runs, 24 calls, estimated cost $0.0" in checked.stdout


async def test_openai_example_without_a_key_says_so(promptlooper: CommandLine) -> None:
    ended = await promptlooper("run", str(EXAMPLES / "openai" / "promptlooper.yaml"))
    assert ended.code == 2
    assert "OPENAI_API_KEY" in ended.stderr


async def test_what_init_writes_runs_as_it_is(promptlooper: CommandLine) -> None:
    assert (await promptlooper("init")).code == 0
    ended = await promptlooper("run")
    assert ended.code == 0, ended.stderr
