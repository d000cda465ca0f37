"""Commands that read, stop and delete experiments."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from promptlooper.caching import CacheStats, Worth
from promptlooper.cli.main import main
from promptlooper.completion import Message, ToolCall
from promptlooper.errors import NotAvailableYet, ServiceUnavailable
from promptlooper.experiment import ExperimentState, GateResult, RunCounts
from promptlooper.experiments import ExperimentFilter
from promptlooper.run import RunError

LATER = ["compare", "rescore"]


@pytest.mark.parametrize("command", LATER)
def test_later_command_is_refused_with_exit_code_2(promptlooper: Any, command: str) -> None:
    result = promptlooper(command, "abc", "--anything", "x")
    assert result.exit_code == 2
    assert "not available yet" in result.stderr


def test_later_command_says_so_as_json(promptlooper: Any) -> None:
    result = promptlooper("compare", "a", "b", "--json")
    assert json.loads(result.stdout)["error"]["reason"] == "NOT_AVAILABLE_YET"
    assert list(json.loads(result.stdout)["error"]) == ["reason", "message", "file", "line"]


def test_help_lists_every_command_and_hides_later_ones(promptlooper: Any) -> None:
    result = promptlooper("--help")
    assert result.exit_code == 0
    listed = {line.split()[0] for line in result.stdout.partition("Commands:")[2].splitlines() if line.strip()}
    assert listed >= {"run", "validate", "render", "init", "up", "down", "status", "serve", "migrate", "list", "cache"}
    assert not listed & set(LATER)


def test_help_of_the_whole_imports_neither_grpc_nor_sql_nor_rich() -> None:
    import subprocess
    import sys

    code = (
        "import sys\nfrom promptlooper.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'grpc', 'sqlalchemy', 'rich', 'pydantic', 'asyncio'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"


def test_unknown_command_is_usage(promptlooper: Any) -> None:
    result = promptlooper("bogus")
    assert result.exit_code == 2
    assert "No such command 'bogus'" in result.stderr


def test_list_prints_a_line_per_experiment_newest_first(promptlooper: Any, runner: Any, make: Any) -> None:
    runner.experiments = [make.experiment("bbb"), make.experiment("aaa", project="other")]
    lines = promptlooper("list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["id", "bbb", "aaa"]
    assert len(promptlooper("list", "--project", "other").stdout.splitlines()) == 2


def test_list_json_is_one_document(promptlooper: Any, runner: Any, make: Any) -> None:
    runner.experiments = [make.experiment("bbb")]
    assert [each["experiment_id"] for each in json.loads(promptlooper("list", "--json").stdout)] == ["bbb"]


def test_list_reads_page_after_page_up_to_the_limit(promptlooper: Any, runner: Any, make: Any) -> None:
    runner.experiments = [make.experiment(f"e{i}") for i in range(450)]
    assert len(json.loads(promptlooper("list", "-n", "420", "--json").stdout)) == 420


def test_show_takes_a_unique_prefix_and_latest(promptlooper: Any, runner: Any, make: Any) -> None:
    runner.experiments = [make.experiment("xyz111"), make.experiment("abc222")]
    assert json.loads(promptlooper("show", "abc", "--json").stdout)["experiment_id"] == "abc222"
    assert json.loads(promptlooper("show", "latest", "--json").stdout)["experiment_id"] == "xyz111"


def test_latest_is_the_newest_of_the_project(promptlooper: Any, runner: Any, make: Any) -> None:
    runner.experiments = [make.experiment("new", project="search"), make.experiment("old")]
    assert json.loads(promptlooper("show", "latest", "--json").stdout)["experiment_id"] == "old"
    named = promptlooper("show", "latest", "--project", "search", "--json")
    assert json.loads(named.stdout)["experiment_id"] == "new"


def test_latest_of_an_empty_project_names_the_project_that_has_one(promptlooper: Any, runner: Any, make: Any) -> None:
    runner.experiments = [make.experiment("new", project="search")]
    result = promptlooper("show", "latest")
    assert result.exit_code == 1
    assert "--project search" in result.stderr


def test_a_whole_id_that_begins_another_one_is_itself(promptlooper: Any, runner: Any, make: Any) -> None:
    runner.experiments = [make.experiment("abcd"), make.experiment("abc")]
    assert json.loads(promptlooper("show", "abc", "--json").stdout)["experiment_id"] == "abc"


def test_prefix_of_several_experiments_is_refused_with_their_names(promptlooper: Any, runner: Any, make: Any) -> None:
    runner.experiments = [make.experiment("abc1"), make.experiment("abc2")]
    result = promptlooper("show", "abc")
    assert result.exit_code == 2
    assert "abc1, abc2" in result.stderr


def test_unknown_id_says_what_to_do(promptlooper: Any) -> None:
    result = promptlooper("show", "nope", "--json")
    assert result.exit_code == 1
    error = json.loads(result.stdout)["error"]
    assert error["reason"] == "EXPERIMENT_NOT_FOUND"
    assert "promptlooper list" in error["message"]


def test_show_prints_table_gates_and_failures(promptlooper: Any, runner: Any, make: Any) -> None:
    counts = RunCounts(total=2, completed=1, failed=1)
    runner.experiments = [make.experiment(counts=counts)]
    runner.runs = {"abc123": [make.run(0), make.failed_run(1)]}
    runner.gates = (GateResult("min_scores.icontains", "0123456789ab", 0.8, None, False),)
    out = promptlooper("show", "latest").stdout
    row = next(line for line in out.splitlines() if line.startswith("direct · local/smollm2-135m-instruct"))
    assert row.split()[3:] == ["2", "1", "0.75", "50%", "0.75", "24", "6", "$0.000003", "80", "ms", "1.5", "s"]
    assert "Gate MISS: min_scores.icontains [direct · local/smollm2-135m-instruct]: cannot be computed" in out
    assert "run 1 failed: PROVIDER_UNAVAILABLE: the provider is down" in out


def test_show_run_prints_what_was_sent_and_answered(promptlooper: Any, runner: Any, make: Any) -> None:
    runner.experiments = [make.experiment()]
    runner.runs = {"abc123": [make.run(0)]}
    out = promptlooper("show", "latest", "--run", "0").stdout
    assert "[system] Be brief." in out
    assert "[user] Capital of France?" in out
    assert "[answer] Paris" in out
    assert json.loads(promptlooper("show", "latest", "--run", "0", "--json").stdout)["run_id"] == "abc123-0"


def test_show_run_prints_calls_of_tools_and_answers_that_cannot_be_used(
    promptlooper: Any, runner: Any, make: Any
) -> None:
    run = make.run(0)
    call = ToolCall("c1", "now", '{"zone":"UTC"}')
    asks = replace(run.stages[0], output="", tool_calls=(call,), finish_reason="tool_calls")
    told = Message("assistant", "", tool_calls=(call,))
    invalid = RunError("OUTPUT_INVALID", "The answer is not JSON.", 0, "")
    wrong = replace(run.stages[0], messages=(told,), output="noon", error=invalid)
    runner.experiments = [make.experiment()]
    runner.runs = {"abc123": [replace(run, stages=(asks, wrong))]}
    out = promptlooper("show", "latest", "--run", "0").stdout
    assert '[user] Capital of France?\n[calls] now {"zone":"UTC"}\n\n' in out
    said = '[assistant] \n[calls] now {"zone":"UTC"}\n[answer] noon\nOUTPUT_INVALID: The answer is not JSON.\n'
    assert said in out


def test_show_exits_0_also_for_a_failed_experiment(promptlooper: Any, runner: Any, make: Any) -> None:
    runner.experiments = [make.experiment(state=ExperimentState.FAILED, reason="no database")]
    assert promptlooper("show", "latest").exit_code == 0


def test_cancel_prints_the_state_as_json(promptlooper: Any, runner: Any, make: Any) -> None:
    runner.experiments = [make.experiment(state=ExperimentState.RUNNING)]
    result = promptlooper("cancel", "abc", "--json")
    assert json.loads(result.stdout)["state"] == "CANCELLING"
    assert runner.cancelled == ["abc123"]


def test_delete_needs_yes_without_a_terminal(promptlooper: Any, runner: Any, make: Any) -> None:
    runner.experiments = [make.experiment()]
    result = promptlooper("delete", "latest")
    assert result.exit_code == 2
    assert "--yes" in result.stderr
    assert runner.deleted == []
    assert promptlooper("delete", "latest", "--yes").exit_code == 0
    assert runner.deleted == ["abc123"]


def test_deleting_again_is_fine_and_says_so(promptlooper: Any, runner: Any, make: Any) -> None:
    runner.experiments = [make.experiment()]
    promptlooper("delete", "abc123", "--yes")
    again = promptlooper("delete", "abc123")
    assert (again.exit_code, again.stderr) == (0, "Experiment abc123 was deleted before.\n")
    assert promptlooper("delete", "nope", "--yes").exit_code == 1


def test_delete_never_reaches_into_another_project(promptlooper: Any, runner: Any, make: Any) -> None:
    runner.experiments = [make.experiment()]
    assert promptlooper("delete", "abc123", "--project", "other", "--yes").exit_code == 1
    assert runner.deleted == []


def test_delete_of_a_running_experiment_says_to_cancel_it(promptlooper: Any, runner: Any, make: Any) -> None:
    runner.experiments = [make.experiment(state=ExperimentState.RUNNING)]
    result = promptlooper("delete", "latest", "--yes")
    assert result.exit_code == 1
    assert "cancel it first" in result.stderr


def test_cache_stats_say_what_was_saved(promptlooper: Any, runner: Any) -> None:
    runner.cached = CacheStats(
        "redis",
        3,
        2_000_000,
        hits=5,
        misses=5,
        busy=1,
        stored=4,
        stored_bytes=9_000,
        errors=2,
        unreadable=1,
        saved=Worth(12_000, 3_000, 250_000, 1_230_000_000),
        saved_unpriced=1,
        breaker="half_open",
        counted_since=1_700_000_000.0,
    )
    assert json.loads(promptlooper("cache", "stats", "--json").stdout) == {
        "backend": "redis",
        "entries": 3,
        "bytes": 2_000_000,
        "hits": 5,
        "misses": 5,
        "busy": 1,
        "stored": 4,
        "stored_bytes": 9_000,
        "errors": 2,
        "unreadable": 1,
        "saved_usd": 1.23,
        "saved_unpriced": 1,
        "saved_tokens_in": 12_000,
        "saved_tokens_out": 3_000,
        "saved_ms": 250_000,
        "breaker": "half_open",
        "counted_since": "2023-11-14T22:13:20.000000Z",
    }
    since = datetime.fromtimestamp(1_700_000_000).strftime("%Y-%m-%d %H:%M:%S")
    assert promptlooper("cache", "stats").stdout == (
        "3 answers in a redis store, 2.0 MB\n"
        "The breaker is half open: one call tries whether the store answers again.\n"
        f"5 hits (50%), 5 misses, 4 stored since {since}\n"
        "saved over $1.23, 12,000 tokens in and 3,000 out, 4 min 10 s of the models' time\n"
        "2 calls failed, 1 stored answer could not be read\n"
    )


def test_cache_stats_are_short_where_nothing_happened_yet(promptlooper: Any, runner: Any) -> None:
    assert promptlooper("cache", "stats").stdout == ("3 answers in a file store, 2.0 MB\n0 hits, 0 misses, 0 stored\n")


def test_cache_stats_say_that_the_store_is_away(promptlooper: Any, runner: Any) -> None:
    runner.cached = CacheStats("redis", None, None, 0, 2, errors=2, breaker="open")
    assert promptlooper("cache", "stats").stdout == (
        "The redis store is away: every question is asked anew. What this Cache did:\n"
        "The breaker is open: the store did not answer, and is not asked for a moment.\n"
        "0 hits (0%), 2 misses, 0 stored\n"
        "2 calls failed, 0 stored answers could not be read\n"
    )
    document = json.loads(promptlooper("cache", "stats", "--json").stdout)
    assert (document["entries"], document["bytes"], document["breaker"]) == (None, None, "open")


def test_cache_is_cleared_of_what_the_options_say(promptlooper: Any, runner: Any) -> None:
    assert promptlooper("cache", "clear").exit_code == 2
    for options in ((), ("--namespace", "n1"), ("--project", "p"), ("--project", "p", "--namespace", "n")):
        assert promptlooper("cache", "clear", "--yes", *options).stderr == "Deleted 3 remembered answers.\n"
    told = promptlooper("cache", "clear", "--yes", "--model", "openai/m", "--project", "p").stderr
    assert told == (
        "Forgot the remembered answers of project p and model openai/m. Their room is given back in time.\n"
    )
    assert promptlooper("cache", "clear", "-m", "openai/m", "--yes").exit_code == 0
    assert runner.purged == [
        ("", ""),
        ("*.n1", ""),
        ("p.*", ""),
        ("p.n", ""),
        ("p.*", "openai/m"),
        ("*.*", "openai/m"),
    ]


def test_models_say_price_and_problem(promptlooper: Any) -> None:
    out = promptlooper("models").stdout
    assert "openai: OPENAI_API_KEY is not set (1 model)" in out
    listed = json.loads(promptlooper("models", "--json").stdout)
    assert listed[0] == {
        "model": "local/smollm2-135m-instruct",
        "provider": "local",
        "available": True,
        "problem": None,
        "input_usd_per_mtok": 0.0,
        "output_usd_per_mtok": 0.0,
        "request_usd": 0.0,
        "price_version": "free",
        "limits": [],
    }
    assert listed[1]["input_usd_per_mtok"] is None
    assert listed[1]["price_version"] is None


def test_scorers_are_listed_with_their_settings(promptlooper: Any) -> None:
    assert "contains" in promptlooper("scorers").stdout
    assert json.loads(promptlooper("scorers", "--json").stdout)[0]["value_required"] is True


def test_server_option_and_variable_name_the_runner(
    promptlooper: Any, runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    promptlooper("list", "--server", "10.0.0.1:7051")
    monkeypatch.setenv("PROMPTLOOPER_SERVER", "10.0.0.2:7051")
    promptlooper("list")
    monkeypatch.setenv("PROMPTLOOPER_SERVER", "")
    monkeypatch.setenv("PROMPTLOOPER_HOME", "elsewhere")
    promptlooper("list")
    assert [target.server for target in runner.targets] == ["10.0.0.1:7051", "10.0.0.2:7051", None]
    assert runner.targets[2].home == Path.cwd() / "elsewhere"


def test_dead_server_is_exit_1_and_says_what_to_start(promptlooper: Any, runner: Any) -> None:
    runner.unreachable = ServiceUnavailable("Nothing answers at 127.0.0.1:1.", address="127.0.0.1:1")
    result = promptlooper("list", "--server", "127.0.0.1:1")
    assert result.exit_code == 1
    assert "promptlooper up" in result.stderr
    assert "promptlooper serve runner" in result.stderr


def test_env_file_in_the_folder_is_read_and_does_not_override(
    promptlooper: Any, runner: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PROMPTLOOPER_HOME", "kept")
    monkeypatch.setenv("PROMPTLOOPER_SERVER", "to be restored")
    monkeypatch.delenv("PROMPTLOOPER_SERVER")
    (tmp_path / ".env").write_text("PROMPTLOOPER_SERVER=10.0.0.3:7051\nPROMPTLOOPER_HOME=other\n")
    promptlooper("list")
    assert runner.targets[0].server == "10.0.0.3:7051"
    assert runner.targets[0].home.name == "kept"


def test_env_file_that_is_not_there_is_usage(promptlooper: Any) -> None:
    assert promptlooper("list", "--env-file", "nope.env").exit_code == 2


async def test_fake_runner_filters_as_the_protocol_says(runner: Any, make: Any) -> None:
    runner.experiments = [make.experiment("abc"), make.experiment("xyz")]
    page = await runner.list_experiments(ExperimentFilter(experiment_id_prefix="x"))
    assert [each.experiment_id for each in page.experiments] == ["xyz"]


def test_list_that_a_filter_leaves_empty_says_so(promptlooper: Any, runner: Any, make: Any) -> None:
    assert promptlooper("list").stderr.startswith("There is no experiment in ")
    runner.experiments = [make.experiment()]
    assert "No experiment matches this filter" in promptlooper("list", "--state", "RUNNING").stderr


def test_another_service_at_the_address_is_no_service(promptlooper: Any, runner: Any) -> None:
    runner.unreachable = NotAvailableYet(
        "127.0.0.1:7054 is not a Runner of this version: give the right address", feature=""
    )
    result = promptlooper("list", "--server", "127.0.0.1:7054", "--json")
    assert result.exit_code == 1
    error = json.loads(result.stdout)["error"]
    assert error["reason"] == "SERVICE_UNAVAILABLE"
    assert "give the right address. Start a Runner with" in error["message"]


def test_a_package_that_is_missing_is_named_with_its_installation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "promptlooper.embedded.composition", None)  # type: ignore[arg-type]
    done = CliRunner().invoke(main, ["list"], env={"PROMPTLOOPER_SERVER": "", "PROMPTLOOPER_HOME": str(tmp_path)})
    assert done.exit_code == 1
    assert "pip install 'promptlooper[local]'." in done.stderr
    assert "Traceback" not in done.stderr
