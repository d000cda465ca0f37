"""`run`, `validate` and `render`: from a file to results, exit codes and farewells."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from promptlooper.errors import Problem, ServiceUnavailable
from promptlooper.experiment import CacheMode, ExperimentState, GateResult
from promptlooper.run import RunError

EXPERIMENT = """\
name: capitals
inputs:
  - {country: France, expected: Paris}
  - {country: Japan, expected: Tokyo}
model: mock/echo
prompts:
  direct: "Capital of {{ input.country }}?"
  polite: "Please: {{ input.country }}"
scorers:
  - {icontains: "{{ expected }}"}
"""
TWO_STAGES = """\
config: {tone: formal}
inputs: [France, Japan]
model: mock/echo
params: {max_tokens: 8}
pipelines:
  chain:
    - {name: think, system: "Be {{ config.tone }}.", prompt: "Think about {{ input }}."}
    - {prompt: "{{ stages.think.output }} and {{ prev_output }}: {{ input }}?", params: {temperature: 0}}
"""
SERVER = ("--server", "127.0.0.1:7051")


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    path = tmp_path / "promptlooper.yaml"
    path.write_text(EXPERIMENT)
    return path


def test_run_prints_table_cache_and_where_the_results_are(promptlooper: Any, runner: Any, experiment: Path) -> None:
    result = promptlooper("run")
    assert result.exit_code == 0
    assert "direct · local/smollm2-135m-instruct" in result.stdout
    assert "COMPLETED in 1.2 s: 4 runs, 4 completed, 0 failed; cost $0.000003" in result.stdout
    assert "Cache: none of 4 runs served from the cache" in result.stdout
    assert "Results: experiment new1 in .promptlooper/promptlooper.db" in result.stdout
    assert "promptlooper show new1" in result.stdout
    assert "promptlooper export new1" in result.stdout


def test_run_says_plainly_that_everything_came_from_the_cache(promptlooper: Any, runner: Any, experiment: Path) -> None:
    runner.cached_runs = 4
    assert "Cache: all 4 runs were served from the cache, saved $0" in promptlooper("run").stdout
    runner.cached_runs = 3
    assert "Cache: 3 of 4 runs served from the cache, saved $0" in promptlooper("run").stdout


def test_run_json_prints_the_summary_and_nothing_else(promptlooper: Any, runner: Any, experiment: Path) -> None:
    result = promptlooper("run", "--json", "-q")
    document = json.loads(result.stdout)
    assert document["experiment_id"] == "new1"
    assert document["state"] == "COMPLETED"
    assert result.stderr == ""


def test_progress_goes_to_stderr_and_quiet_is_silent(promptlooper: Any, runner: Any, experiment: Path) -> None:
    assert "capitals: 4/4 runs" in promptlooper("run").stderr
    assert promptlooper("run", "-q").stderr == ""


def test_failed_runs_are_exit_1_and_named_on_stderr(promptlooper: Any, runner: Any, experiment: Path) -> None:
    runner.failed_runs = 1
    result = promptlooper("run")
    assert result.exit_code == 1
    assert "run 0 failed: PROVIDER_UNAVAILABLE: the provider is down" in result.stderr


def test_missed_gate_is_exit_100(promptlooper: Any, runner: Any, experiment: Path) -> None:
    runner.gates = (GateResult("min_scores.icontains", "0123456789ab", 0.9, 0.75, False),)
    result = promptlooper("run")
    assert result.exit_code == 100
    assert "0.75, wanted at least 0.9" in result.stdout


def test_cancelled_experiment_is_exit_1(promptlooper: Any, runner: Any, experiment: Path) -> None:
    runner.ends_as = ExperimentState.CANCELLED
    assert promptlooper("run").exit_code == 1


def test_flags_change_the_experiment(promptlooper: Any, runner: Any, experiment: Path) -> None:
    flags = "-n 1 -m mock/fixed -p temperature=0.5 -p user=END --var tone=formal --var n=3 --tag a --metadata k=v"
    more = "--name other --project search --repeats 2 -j 3 --no-cache --filter pipeline=direct --budget-usd 0.5"
    assert promptlooper("run", *flags.split(), *more.split()).exit_code == 0
    spec, _ = runner.created[0]
    assert [row.value for row in spec.inputs] == [{"country": "France"}]
    assert [pipeline.name for pipeline in spec.pipelines] == ["direct"]
    assert [entry.model for entry in spec.pipelines[0].models] == ["mock/fixed"]
    assert spec.params == {"temperature": 0.5, "user": "END"}
    assert spec.config == {"tone": "formal", "n": 3}
    assert (spec.tags, spec.metadata) == (("a",), {"k": "v"})
    assert (spec.name, spec.project, spec.repeats) == ("other", "search", 2)
    assert (spec.limits.max_concurrency, spec.limits.budget_nanousd) == (3, 500_000_000)
    assert spec.cache.mode is CacheMode.OFF


@pytest.mark.parametrize(
    "flags",
    [
        ["--no-cache", "--cache", "refresh"],
        ["--seed", "3"],
        ["--var", "novalue"],
        ["-p", "=3"],
        ["--detach"],
        ["-n", "0"],
        ["--cache", "sometimes"],
        ["-o", "rows.parquet"],
        ["-o", "nowhere/rows.csv"],
        ["--filter", "colour=red"],
    ],
)
def test_wrong_flags_are_exit_2_and_nothing_is_created(
    promptlooper: Any, runner: Any, experiment: Path, flags: list[str]
) -> None:
    result = promptlooper("run", *flags)
    assert result.exit_code == 2
    assert result.stderr
    assert runner.created == []


def test_problems_of_a_file_are_lines_all_at_once(promptlooper: Any, runner: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(EXPERIMENT.replace("model:", "modle:").replace("icontains", "icontain"))
    result = promptlooper("run", "bad.yaml")
    assert result.exit_code == 2
    assert "bad.yaml:5: " in result.stderr
    assert "bad.yaml:10: " in result.stderr
    assert runner.created == []


def test_problems_of_the_runner_are_said_of_the_lines_of_the_file(
    promptlooper: Any, runner: Any, experiment: Path
) -> None:
    runner.problems = (
        Problem("pipelines[0].models[0].model", "provider 'mock' has no key"),
        Problem("scorers[0]", "too strict"),
    )
    lines = promptlooper("run").stderr.splitlines()
    assert lines == [
        "promptlooper.yaml:5: provider 'mock' has no key",
        "promptlooper.yaml:10: too strict",
    ]
    error = json.loads(promptlooper("validate", "--json").stdout)["error"]
    assert (error["reason"], error["file"], error["line"]) == ("INVALID_EXPERIMENT", "promptlooper.yaml", 5)


def test_file_that_is_not_there_is_exit_2(promptlooper: Any, runner: Any) -> None:
    result = promptlooper("run", "nope.yaml", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["file"] == "nope.yaml"


def test_files_are_written_at_the_end(promptlooper: Any, runner: Any, experiment: Path, tmp_path: Path) -> None:
    result = promptlooper("run", "-o", "rows.jsonl", "-o", "rows.csv", "--json")
    assert result.exit_code == 0
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 4
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 5
    json.loads(result.stdout)


def test_detach_prints_the_id_and_leaves(promptlooper: Any, runner: Any, experiment: Path) -> None:
    result = promptlooper("run", "--detach", *SERVER)
    assert (result.exit_code, result.stdout) == (0, "new1\n")
    assert runner.watches == []


def test_create_on_a_server_always_has_a_request_id(promptlooper: Any, runner: Any, experiment: Path) -> None:
    promptlooper("run", "--detach", *SERVER)
    promptlooper("run", "--detach", "--request-id", "mine", *SERVER)
    assert runner.created[0][1]
    assert runner.created[1][1] == "mine"


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_with_a_server_leaves_the_experiment_running(
    promptlooper: Any, runner: Any, experiment: Path, signum: signal.Signals, code: int
) -> None:
    runner.hold = asyncio.Event()
    runner.on_watch = lambda: os.kill(os.getpid(), signum)
    result = promptlooper("run", *SERVER)
    assert result.exit_code == code
    assert "promptlooper watch new1 --server 127.0.0.1:7051" in result.stderr
    assert "promptlooper cancel new1 --server 127.0.0.1:7051" in result.stderr
    assert runner.cancelled == []


def test_signal_without_a_server_says_what_is_kept(promptlooper: Any, runner: Any, experiment: Path) -> None:
    runner.hold = asyncio.Event()
    runner.on_watch = lambda: os.kill(os.getpid(), signal.SIGINT)
    result = promptlooper("run", "--json", "-o", "rows.jsonl")
    assert result.exit_code == 130
    assert json.loads(result.stdout)["error"]["reason"] == "INTERRUPTED"
    assert "promptlooper show new1" in result.stderr
    assert not Path("rows.jsonl").exists()


def test_server_lost_for_good_says_how_to_watch_again(promptlooper: Any, runner: Any, experiment: Path) -> None:
    runner.watch_errors = [ServiceUnavailable("no runner answers.")]
    result = promptlooper("run", *SERVER)
    assert result.exit_code == 1
    assert "promptlooper watch new1 --server 127.0.0.1:7051" in result.stderr


def test_validate_says_runs_calls_and_cost(promptlooper: Any, runner: Any, experiment: Path) -> None:
    assert (
        promptlooper("validate").stdout
        == "promptlooper.yaml is valid: 4 runs, 4 calls, estimated cost $0.012 (prices: list 7)\n"
    )
    document = json.loads(promptlooper("validate", "--json").stdout)
    assert document == {
        **{"valid": True, "name": "capitals", "runs": 4, "calls": 4, "calls_at_least": False},
        **{"estimated_cost_usd": 0.012, "price_versions": ["list 7"]},
    }
    assert runner.created == []


def test_render_prints_exact_messages_and_placeholders(promptlooper: Any, runner: Any, tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(TWO_STAGES)
    result = promptlooper("render", "two.yaml", "--run-index", "1", "--json")
    document = json.loads(result.stdout)
    first, second = document["stages"]
    assert first["messages"] == [
        {"role": "system", "content": "Be formal."},
        {"role": "user", "content": "Think about Japan."},
    ]
    assert second["messages"][0]["content"] == "<output of think> and <output of think>: Japan?"
    assert second["params"] == {"max_tokens": 8, "temperature": 0}
    text = promptlooper("render", "two.yaml", "--var", "tone=brief").stdout
    assert "[system]\nBe brief.\n[user]\nThink about France." in text
    assert runner.targets == []


def test_render_shows_what_is_sent_beside_the_messages(promptlooper: Any, runner: Any, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(292))
    (tmp_path / "e.yaml").write_text(
        "model: mock/echo\npipelines:\n  p:\n    - prompt: Look\n      images: [{file: photo.png}, 'https://a.example/b.png']\n"
        "      tools: [{name: now, parameters: {type: object}}]\n      tool_choice: now\n"
        "      response_schema: {type: object}\n"
    )
    text = promptlooper("render", "e.yaml").stdout
    assert text.endswith(
        "[user]\nLook\n[image] data:image/png;base64,… (300 bytes)\n[image] https://a.example/b.png\n"
        '[tool] now {"type":"object"}\n[tool_choice] now\n[response_schema] {"type":"object"}\n'
    )
    (stage,) = json.loads(promptlooper("render", "e.yaml", "--json").stdout)["stages"]
    assert stage["tools"] == [{"name": "now", "description": "", "parameters": {"type": "object"}}]
    assert (stage["tool_choice"], stage["response_schema"]) == ("now", {"type": "object"})


def test_render_of_a_run_that_is_not_there_names_those_that_are(promptlooper: Any, runner: Any, tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(TWO_STAGES)
    result = promptlooper("render", "two.yaml", "--run-index", "2")
    assert result.exit_code == 2
    assert "0 to 1" in result.stderr


def test_validate_warns_of_a_budget_below_the_estimate(promptlooper: Any, runner: Any, experiment: Path) -> None:
    enough = promptlooper("validate", "--budget-usd", "0.012")
    assert enough.stderr == ""
    less = promptlooper("validate", "--budget-usd", "0.01", "--json")
    assert less.exit_code == 0
    assert json.loads(less.stdout)["valid"] is True
    assert less.stderr == (
        "Warning: the budget of $0.01 is below the estimated cost of $0.012; "
        "the experiment may end before every run has been made.\n"
    )


def test_failures_are_counted_by_reason_at_the_end_also_when_quiet(
    promptlooper: Any, runner: Any, make: Any, experiment: Path
) -> None:
    runner.failed_runs = 3
    other = RunError("TEMPLATE_ERROR", "'input.x' is not there", 0, "", 0, False)
    runner.runs["new1"] = [make.failed_run(1), replace(make.failed_run(2), error=other), make.failed_run(3)]
    runner.runs["new2"] = runner.runs["new3"] = runner.runs["new1"]
    said = [
        "2 runs failed: PROVIDER_UNAVAILABLE: the provider is down",
        "  promptlooper show new1 --run 1",
        "1 run failed: TEMPLATE_ERROR: 'input.x' is not there",
        "  promptlooper show new1 --run 2",
        "Run them again, each from the stage that failed:",
        "  promptlooper retry new1",
    ]
    quiet = promptlooper("run", "-q")
    assert "\n".join(said) in quiet.stdout
    assert quiet.stderr.splitlines() == said
    loud = promptlooper("run")
    assert said[0] in loud.stdout
    assert said[0] not in loud.stderr
    as_json = promptlooper("run", "--json", "-q")
    assert as_json.stderr.splitlines()[0] == said[0]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_without_a_server_names_the_command_that_resumes(
    promptlooper: Any, runner: Any, experiment: Path, signum: signal.Signals, code: int
) -> None:
    (experiment.parent / "my.env").write_text("A=1\n")
    runner.hold = asyncio.Event()
    runner.on_watch = lambda: os.kill(os.getpid(), signum)
    result = promptlooper("run", "-o", "my rows.csv", "--env-file", "my.env")
    assert result.exit_code == code
    assert "\n  promptlooper run --resume new1 -o 'my rows.csv' --env-file my.env\n" in result.stderr
    assert "\n  promptlooper cancel new1 --env-file my.env\n" in result.stderr


def test_signal_after_the_end_says_how_to_get_the_results(promptlooper: Any, runner: Any, experiment: Path) -> None:
    async def killed(experiment_id: str) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.Event().wait()

    runner.summarize = killed
    result = promptlooper("run", "-o", "rows.csv")
    assert result.exit_code == 143
    assert "experiment new1 had ended. Its results:\n  promptlooper run --resume new1 -o rows.csv\n" in result.stderr
