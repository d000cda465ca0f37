"""Lists fit the terminal."""

from __future__ import annotations

import json
from typing import Any

import pytest

from promptlooper.completion import ModelInfo, Price
from promptlooper.experiment import ExperimentState
from promptlooper.scoring import ScorerInfo

NO_KEY = "provider 'openai' has no key; set the environment variable 'OPENAI_API_KEY'"


@pytest.fixture
def columns(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("COLUMNS", "80")
    return 80


def test_list_fits_80_columns(promptlooper: Any, runner: Any, make: Any, columns: int) -> None:
    runner.experiments = [
        make.experiment("x1y2z3a4b5c6", name="which prompt finds the capitals of the world best"),
        make.experiment("x1y2z3a4b5c7", name="short", state=ExperimentState.CANCELLED),
    ]
    lines = promptlooper("list").stdout.splitlines()
    assert max(map(len, lines)) <= columns
    assert lines[1].startswith("x1y2z3a4b5c6")
    assert "which pr" in lines[1]
    assert "COMPLETED" in lines[1]


def test_list_of_several_projects_names_them_on_80_columns(
    promptlooper: Any, runner: Any, make: Any, columns: int
) -> None:
    runner.experiments = [make.experiment("aaaaaaaaaaaa"), make.experiment("bbbbbbbbbbbb", project="search")]
    lines = promptlooper("list").stdout.splitlines()
    assert max(map(len, lines)) <= columns
    assert "search" in lines[2]


def test_list_in_a_pipe_keeps_every_column(promptlooper: Any, runner: Any, make: Any, monkeypatch: Any) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    runner.experiments = [make.experiment(name="n" * 40)]
    heading, row = promptlooper("list").stdout.splitlines()
    assert heading.split() == ["id", "project", "name", "state", "runs", "failed", "cost", "created"]
    assert "n" * 40 in row


def test_descriptions_of_scorers_are_wrapped(promptlooper: Any, runner: Any, columns: int) -> None:
    words = "1 if the value is somewhere in the output, in upper or lower case, whatever comes around it, else 0."

    async def listed() -> list[ScorerInfo]:
        settings = {"type": "object", "properties": {"ignore_case": {}, "trim": {}}}
        return [ScorerInfo("json-path-equals", words, {"type": "string"}, settings, True)]

    runner.list_scorers = listed
    lines = promptlooper("scorers").stdout.splitlines()
    assert max(map(len, lines)) <= columns
    assert len(lines) > 3
    assert " ".join(" ".join(line.split()[-4:]) for line in lines).endswith("else 0.")


@pytest.fixture
def many_models(runner: Any) -> None:
    free, some = Price(0, 0), Price(400_000_000, 1_375_000_000)

    async def listed() -> list[ModelInfo]:
        return [
            ModelInfo("mock/echo", "mock", True, None, free),
            ModelInfo("ollama/*", "ollama", True, None, None),
            *(ModelInfo(f"openai/{name}", "openai", False, NO_KEY, some) for name in ("a", "b", "ft:x", "gpt-3.5-")),
        ]

    runner.list_models = listed


def test_what_keeps_models_from_being_asked_is_said_once(promptlooper: Any, many_models: None, columns: int) -> None:
    out = promptlooper("models").stdout
    assert out.count(NO_KEY) == 1
    assert out.splitlines()[-1] == f"openai: {NO_KEY} (2 models)"
    assert [line.split() for line in out.splitlines() if line.startswith(("openai/", "ollama/"))] == [
        ["ollama/*", "not", "checked", "unknown", "unknown"],
        ["openai/a", "no", "$0.40", "$1.375"],
        ["openai/b", "no", "$0.40", "$1.375"],
    ]


def test_names_that_cannot_be_asked_are_not_listed(promptlooper: Any, many_models: None) -> None:
    names = [each["model"] for each in json.loads(promptlooper("models", "--json").stdout)]
    assert names == ["mock/echo", "ollama/*", "openai/a", "openai/b"]
