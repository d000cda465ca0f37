"""`pause`, `resume`, `retry`, `update`, `events` and `run --resume`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from promptlooper.embedded.working import working_on
from promptlooper.errors import ExperimentCancelled
from promptlooper.experiment import Experiment, ExperimentState, RunCounts
from promptlooper.experiments import ExperimentUpdate
from promptlooper.run import Event
from promptlooper.runner.spec.normal import body_sha256
from promptlooper.runner.spec.reading import read_experiment

EXPERIMENT = "inputs: [1, 2]\nmodel: mock/echo\nprompt: '{{ input }}'\n"
SERVER = ("--server", "127.0.0.1:7051")
COUNTS = RunCounts(total=5, pending=3, completed=2)


@pytest.fixture
def paused(runner: Any, make: Any) -> Any:
    runner.experiments = [make.experiment(state=ExperimentState.PAUSED, counts=COUNTS), make.experiment("old")]
    return runner


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "promptlooper.yaml"
    path.write_text(EXPERIMENT)
    return path


def test_pause_says_how_to_go_on(promptlooper: Any, runner: Any, make: Any) -> None:
    runner.experiments = [make.experiment(state=ExperimentState.RUNNING), make.experiment("old")]
    result = promptlooper("pause", "latest", *SERVER)
    assert result.exit_code == 0
    assert result.stderr == (
        "Experiment abc123 is paused: `promptlooper resume abc123 --server 127.0.0.1:7051` goes on with it.\n"
    )
    assert json.loads(promptlooper("pause", "abc", "--json").stdout)["state"] == "PAUSED"
    assert "had ended before: it is COMPLETED" in promptlooper("pause", "old").stderr


def test_resume_follows_to_the_end_and_reports_as_run_does(promptlooper: Any, paused: Any) -> None:
    result = promptlooper("resume", "latest")
    assert result.exit_code == 0
    assert paused.resumed == [("abc123", "")]
    assert "capitals: 5/5 runs" in result.stderr
    assert "COMPLETED in 1.2 s: 5 runs, 5 completed" in result.stdout
    assert json.loads(promptlooper("resume", "abc", "--json", "-q").stdout)["generation"] == 2


def test_exit_codes_of_resume_are_those_of_run(promptlooper: Any, paused: Any) -> None:
    paused.failed_runs = 1
    assert promptlooper("resume", "abc").exit_code == 1
    assert promptlooper("resume", "nope").exit_code == 1


def test_resume_writes_files(promptlooper: Any, paused: Any, make: Any, tmp_path: Path) -> None:
    paused.runs["abc123"] = [make.run(0), make.run(1)]
    assert promptlooper("resume", "abc", "-o", "rows.jsonl").exit_code == 0
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("command", ["resume", "retry"])
def test_detached_on_a_server_prints_the_id_and_leaves(promptlooper: Any, paused: Any, command: str) -> None:
    assert promptlooper(command, "abc", "--detach").exit_code == 2
    assert paused.resumed == paused.retried == []
    result = promptlooper(command, "abc", "--detach", *SERVER)
    assert (result.exit_code, result.stdout) == (0, "abc123\n")
    assert paused.watches == []


def test_what_starts_on_a_server_always_has_a_request_id(promptlooper: Any, paused: Any) -> None:
    promptlooper("resume", "abc", "--detach", *SERVER)
    promptlooper("resume", "abc", "--detach", "--request-id", "mine", *SERVER)
    promptlooper("run", "--resume", "abc", "--detach", "--request-id", "other", *SERVER)
    promptlooper("retry", "abc", "--detach", *SERVER)
    ids = [request_id for _, request_id in (*paused.resumed, *paused.retried)]
    assert all(ids)
    assert ids[1:3] == ["mine", "other"]
    assert len(set(ids)) == 4


@pytest.mark.parametrize("command", [["resume"], ["retry"], ["run", "--resume"]])
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_names_the_command_that_resumes(
    promptlooper: Any, paused: Any, command: list[str], signum: signal.Signals, code: int
) -> None:
    paused.hold = asyncio.Event()
    paused.on_watch = lambda: os.kill(os.getpid(), signum)
    result = promptlooper(*command, "abc", "-o", "rows.csv")
    assert result.exit_code == code
    assert "\n  promptlooper run --resume abc123 -o rows.csv\n" in result.stderr
    assert f"Stopped by {signum.name}. At least 2 of 5 runs had ended. What was answered of experiment abc123" in (
        result.stderr
    )


def test_signal_before_a_run_has_ended_counts_none(promptlooper: Any, runner: Any, make: Any) -> None:
    runner.experiments = [make.experiment(state=ExperimentState.RUNNING, counts=RunCounts(total=4, pending=4))]
    runner.hold = asyncio.Event()
    runner.on_watch = lambda: os.kill(os.getpid(), signal.SIGINT)
    result = promptlooper("resume", "abc", "-q")
    assert result.stderr.startswith("Error: Stopped by SIGINT. What was answered of experiment abc123 is kept. Run the")


def test_signal_while_runs_wait_for_batches_says_that_these_go_on(promptlooper: Any, runner: Any, make: Any) -> None:
    counts = RunCounts(total=4, pending=4, in_batch=3)
    runner.experiments = [make.experiment(state=ExperimentState.RUNNING, counts=counts)]
    runner.hold = asyncio.Event()
    runner.on_watch = lambda: os.kill(os.getpid(), signal.SIGINT)
    result = promptlooper("resume", "abc", "-q")
    assert " is kept. Batches for 3 runs go on at their provider and are billed. Run the rest:\n" in result.stderr


@pytest.mark.parametrize("command", [["resume"], ["run", "--resume"]])
def test_signal_where_another_process_works_on_it_ends_only_the_watching(
    promptlooper: Any, paused: Any, tmp_path: Path, command: list[str]
) -> None:
    paused.hold = asyncio.Event()
    paused.on_watch = lambda: os.kill(os.getpid(), signal.SIGINT)
    with working_on(tmp_path / ".promptlooper", "abc123"):
        result = promptlooper(*command, "latest", "-q")
    assert result.exit_code == 130
    assert result.stderr == (
        "Error: Stopped watching by SIGINT; experiment abc123 goes on in another process.\n"
        "  promptlooper watch abc123\n"
        "  promptlooper cancel abc123\n"
    )


def test_signal_while_it_is_paused_says_so_and_what_goes_on_with_it(
    promptlooper: Any, paused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def paused_again(experiment_id: str, request_id: str = "") -> Experiment:
        found: Experiment = paused.experiments[0]
        return found

    monkeypatch.setattr(paused, "resume", paused_again)
    paused.hold = asyncio.Event()
    paused.on_watch = lambda: os.kill(os.getpid(), signal.SIGTERM)
    with working_on(tmp_path / ".promptlooper", "abc123"):
        result = promptlooper("resume", "latest", "-q")
    assert result.exit_code == 143
    assert result.stderr == (
        "Error: Stopped watching by SIGTERM; experiment abc123 is paused.\n"
        "  promptlooper resume abc123\n"
        "  promptlooper cancel abc123\n"
    )


def test_retry_runs_failed_runs_again(promptlooper: Any, runner: Any, make: Any) -> None:
    counts = RunCounts(total=3, completed=1, failed=2)
    runner.experiments = [make.experiment(counts=counts)]
    result = promptlooper("retry", "latest", "--json", "-q")
    assert result.exit_code == 0
    assert runner.retried == [("abc123", "")]
    document = json.loads(result.stdout)
    assert (document["generation"], document["counts"]["failed"]) == (2, 0)
    again = promptlooper("retry", "latest", "-q")
    assert "No run of experiment abc123 has failed: there is nothing to retry." in again.stderr
    assert again.exit_code == 0


def test_retry_of_a_cancelled_experiment_is_told_what_to_do(promptlooper: Any, paused: Any) -> None:
    async def retry(experiment_id: str, request_id: str = "") -> Any:
        raise ExperimentCancelled("Experiment 'abc123' was cancelled: resume it instead.")

    paused.retry = retry
    result = promptlooper("retry", "abc", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["reason"] == "EXPERIMENT_CANCELLED"
    assert result.stderr == "Error: Experiment 'abc123' was cancelled: resume it instead.\n"


@pytest.mark.parametrize("command", [["resume"], ["run", "--resume"], ["retry"]])
def test_progress_of_what_had_ended_is_one_line(promptlooper: Any, paused: Any, command: list[str]) -> None:
    lines = promptlooper(*command, "old").stderr.splitlines()
    assert len([line for line in lines if "2/2 runs" in line]) == 1


def test_update_changes_what_is_given_and_prints_what_holds_now(promptlooper: Any, paused: Any) -> None:
    result = promptlooper("update", "abc", "-j", "3", "--budget-usd", "2.5")
    assert result.exit_code == 0
    assert paused.updated == [ExperimentUpdate(3, 2_500_000_000, None)]
    assert result.stderr == "Experiment abc123: at most 3 runs at once, a budget of $2.50.\n"
    document = json.loads(promptlooper("update", "abc", "--budget-tokens", "9", "--json").stdout)
    assert (document["max_concurrency"], document["budget_usd"], document["budget_tokens"]) == (3, 2.5, 9)


@pytest.mark.parametrize("flags", [[], ["-j", "0"], ["--budget-usd", "0"], ["--budget-tokens", "x"]])
def test_update_without_a_right_limit_is_usage(promptlooper: Any, paused: Any, flags: list[str]) -> None:
    assert promptlooper("update", "abc", *flags).exit_code == 2
    assert paused.updated == []


@pytest.fixture
def many_events(runner: Any, make: Any) -> Any:
    runner.experiments = [make.experiment()]
    at = make.experiment().created_at
    runner.events = [
        Event("abc123", seq, "default", "run.completed" if seq % 2 else "run.started", at, 1, seq, {})
        for seq in range(1, 1_202)
    ]
    return runner


def test_events_are_read_to_the_last_page(promptlooper: Any, many_events: Any) -> None:
    lines = promptlooper("events", "latest").stdout.splitlines()
    assert len(lines) == 1_201
    assert lines[0].endswith("#1  run.completed  run 1")
    assert lines[-1].endswith("#1201  run.completed  run 1201")


def test_events_are_json_lines(promptlooper: Any, many_events: Any) -> None:
    out = promptlooper("events", "abc", "--after", "600", "--kind", "run.started", "--json").stdout
    found = [json.loads(line) for line in out.splitlines()]
    assert [event["event_seq"] for event in found] == list(range(602, 1_202, 2))
    assert list(found[0])[:4] == ["experiment_id", "event_seq", "project", "kind"]


@pytest.mark.parametrize(
    ("kind", "nearest"),
    [("nonsense", ""), ("run.complete", "run.completed"), ("experiment.canceled", "experiment.cancelled")],
)
@pytest.mark.parametrize("command", ["events", "watch"])
def test_unknown_kind_of_event_is_refused_with_the_nearest(
    promptlooper: Any, many_events: Any, command: str, kind: str, nearest: str
) -> None:
    result = promptlooper(command, "abc", "--kind", "run.failed", "--kind", kind)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"There is no kind '{kind}'; the nearest is '{nearest}" in result.stderr
    assert many_events.event_pages == many_events.watches == []
    assert json.loads(promptlooper(command, "abc", "--kind", kind, "--json").stdout)["error"]["reason"] == (
        "INVALID_ARGUMENT"
    )


def test_event_of_changed_limits_does_not_name_one_that_did_not_change(
    promptlooper: Any, many_events: Any, make: Any
) -> None:
    at = make.experiment().created_at
    many_events.events = [
        Event("abc123", 1, "default", "experiment.updated", at, 1, None, {"max_concurrency": 3}),
        Event("abc123", 2, "default", "experiment.updated", at, 1, None, {}),
    ]
    lines = promptlooper("events", "abc").stdout.splitlines()
    assert lines[0].endswith("experiment.updated  limits changed  at most 3 at once")
    assert lines[1].endswith("experiment.updated  limits changed")


def test_events_end_at_the_limit(promptlooper: Any, many_events: Any) -> None:
    assert len(promptlooper("events", "abc", "-n", "700").stdout.splitlines()) == 700
    assert many_events.event_pages == [(0, 500), (0, 200)]


def test_events_begin_with_the_earliest_that_is_kept(promptlooper: Any, many_events: Any) -> None:
    many_events.first_event_seq = 1_000
    result = promptlooper("events", "abc", "-n", "2")
    assert result.exit_code == 0
    assert [line.split("  ")[1] for line in result.stdout.splitlines()] == ["#1000", "#1001"]
    assert result.stderr == "Events before number 1000 of experiment abc123 are no longer kept.\n"
    assert promptlooper("events", "abc", "--after", "999").stderr == ""


def test_events_go_on_where_they_are_overtaken_by_retention(promptlooper: Any, many_events: Any) -> None:
    listed = many_events.list_events

    async def overtaken(experiment_id: str, *args: Any) -> Any:
        page = await listed(experiment_id, *args)
        many_events.first_event_seq = 1_100
        return page

    many_events.list_events = overtaken
    result = promptlooper("events", "abc", "--json")
    found = [json.loads(line)["event_seq"] for line in result.stdout.splitlines()]
    assert found == [*range(1, 501), *range(1_100, 1_202)]
    assert result.stderr == "Events before number 1100 of experiment abc123 are no longer kept.\n"


@pytest.mark.parametrize("after", ["0", "998"])
def test_events_after_a_number_that_is_too_old_are_refused(promptlooper: Any, many_events: Any, after: str) -> None:
    many_events.first_event_seq = 1_000
    result = promptlooper("events", "abc", "--after", after, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["reason"] == "RESUME_TOKEN_EXPIRED"


@pytest.mark.parametrize("flag", ["-j", "--max-concurrency", "--concurrency"])
def test_concurrency_has_one_word_and_takes_the_other(
    promptlooper: Any, paused: Any, file: Path, tmp_path: Path, flag: str
) -> None:
    assert promptlooper("update", "abc", flag, "3").exit_code == 0
    assert promptlooper("run", flag, "3").exit_code == 0
    assert paused.updated == [ExperimentUpdate(3)]
    assert [spec.limits.max_concurrency for spec, _ in paused.created] == [3]


@pytest.mark.parametrize("command", ["run", "validate", "render", "update"])
def test_help_names_one_word_for_concurrency(promptlooper: Any, command: str) -> None:
    said = promptlooper(command, "--help").stdout
    assert "-j, --max-concurrency N" in said
    assert "--concurrency" not in said


def test_run_resume_goes_on_instead_of_creating(promptlooper: Any, paused: Any) -> None:
    result = promptlooper("run", "--resume", "latest")
    assert result.exit_code == 0
    assert paused.resumed == [("abc123", "")]
    assert paused.created == []
    assert "COMPLETED in 1.2 s: 5 runs, 5 completed" in result.stdout


def test_run_resume_of_a_completed_experiment_prints_its_report(promptlooper: Any, paused: Any) -> None:
    result = promptlooper("run", "--resume", "old", "--json", "-q")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["state"] == "COMPLETED"


def test_run_resume_with_its_file_checks_that_it_is_the_same(
    promptlooper: Any, runner: Any, make: Any, file: Path
) -> None:
    same = body_sha256(read_experiment(file).spec)
    runner.experiments = [make.experiment(spec_sha256=same)]
    assert promptlooper("run", "promptlooper.yaml", "--resume", "latest").exit_code == 0
    other = promptlooper("run", "promptlooper.yaml", "--resume", "latest", "-n", "1", "--json")
    assert other.exit_code == 2
    message = json.loads(other.stdout)["error"]["message"]
    assert message == (
        "Experiment abc123 was made of something else than 'promptlooper.yaml' with these flags. Go on with it as it "
        "is with `promptlooper run --resume abc123`, or leave --resume out to make a new one."
    )
    assert len(runner.resumed) == 1


@pytest.mark.parametrize("flags", [["-j", "1"], ["--budget-usd", "3"]])
def test_run_resume_with_another_limit_names_update(
    promptlooper: Any, runner: Any, make: Any, file: Path, flags: list[str]
) -> None:
    runner.experiments = [make.experiment(spec_sha256=body_sha256(read_experiment(file).spec))]
    result = promptlooper("run", "--resume", "abc", *flags)
    assert result.exit_code == 2
    assert "`promptlooper update abc123` changes its limits." in result.stderr


@pytest.mark.parametrize(
    ("flags", "update"),
    [
        (["-j", "3"], "`promptlooper update latest -j 3`"),
        (["-j", "3", "--budget-usd", "0.5"], "`promptlooper update latest -j 3 --budget-usd 0.5`"),
        (["-n", "2"], ""),
        (["--var", "a=1"], ""),
    ],
)
def test_run_resume_with_flags_but_no_file_says_what_they_are(
    promptlooper: Any, paused: Any, flags: list[str], update: str
) -> None:
    result = promptlooper("run", "--resume", "latest", *flags)
    assert result.exit_code == 2
    assert f"flags such as {', '.join(flags[::2])} are part of that: name the FILE" in result.stderr
    assert update in result.stderr
    assert ("promptlooper update" in result.stderr) is bool(update)
    assert paused.resumed == []


def test_run_resume_of_older_data_compares_nothing(promptlooper: Any, paused: Any, file: Path) -> None:
    assert promptlooper("run", "promptlooper.yaml", "--resume", "latest").exit_code == 0


def test_run_resume_latest_with_a_file_looks_in_its_project(
    promptlooper: Any, paused: Any, make: Any, file: Path
) -> None:
    paused.experiments.append(make.experiment("found", project="search"))
    file.write_text(EXPERIMENT + "project: search\n")
    assert promptlooper("run", "promptlooper.yaml", "--resume", "latest").exit_code == 0
    assert promptlooper("run", "--resume", "latest").exit_code == 0
    assert promptlooper("run", "--resume", "latest", "--project", "search").exit_code == 0
    assert [name for name, _ in paused.resumed] == ["found", "abc123", "found"]


def test_run_resume_needs_no_file(promptlooper: Any, paused: Any, tmp_path: Path) -> None:
    assert list(tmp_path.glob("*.yaml")) == []
    assert promptlooper("run", "--resume", "abc").exit_code == 0
    assert promptlooper("run", "nope.yaml", "--resume", "abc").exit_code == 2


def test_pause_by_someone_else_is_said_where_it_is_followed(promptlooper: Any, paused: Any) -> None:
    async def stays(experiment_id: str, request_id: str = "") -> Any:
        return await paused.get(experiment_id)

    paused.resume = stays
    assert "is paused: `promptlooper resume abc123` goes on" in promptlooper("resume", "abc").stderr


def test_resume_of_what_is_being_cancelled_says_so(promptlooper: Any, runner: Any, make: Any) -> None:
    runner.experiments = [make.experiment(state=ExperimentState.CANCELLING)]
    result = promptlooper("resume", "abc")
    assert result.exit_code == 1
    assert "still being cancelled" in result.stderr
