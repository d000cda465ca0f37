"""What is said to who follows an experiment on a server while the connection is lost."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from promptlooper.errors import DomainError, ServiceUnavailable, StoreUnavailable
from promptlooper.experiment import ExperimentState

SERVER = ("--server", "127.0.0.1:7051")
LOST = "The connection to 127.0.0.1:7051 is lost; trying again for up to 60 s."
BACK = "The connection to 127.0.0.1:7051 is back."
FOLLOWING = [["watch"], ["resume"], ["retry"], ["run", "--resume"]]


@pytest.fixture
def cut(runner: Any, make: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that says how the connection goes in the next watch."""
    runner.experiments = [make.experiment(state=ExperimentState.RUNNING)]
    monkeypatch.setattr("promptlooper.cli.connection.SILENT_FOR", 0.0)
    watch = runner.watch

    def cuts(error: DomainError, *, lasting: bool = True) -> None:
        async def with_a_cut(*args: Any, **options: Any) -> Any:
            runner.listener.lost(error, 60.0)
            if lasting:
                due: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                asyncio.get_running_loop().call_later(0.0, due.set_result, None)
                await due
            runner.listener.back()
            async for message in watch(*args, **options):
                yield message

        runner.watch = with_a_cut

    return cuts


@pytest.mark.parametrize("command", FOLLOWING)
def test_connection_that_stays_lost_is_said_and_its_return(promptlooper: Any, cut: Any, command: list[str]) -> None:
    cut(ServiceUnavailable("nobody answers"))
    result = promptlooper(*command, "abc", *SERVER, "--json")
    assert result.exit_code == 0
    assert [line for line in result.stderr.splitlines() if "connection" in line] == [LOST, BACK]
    assert all(json.loads(line) for line in result.stdout.splitlines())


@pytest.mark.parametrize("command", FOLLOWING)
def test_connection_that_is_back_soon_is_not_spoken_of(promptlooper: Any, cut: Any, command: list[str]) -> None:
    cut(ServiceUnavailable("nobody answers"), lasting=False)
    assert "connection" not in promptlooper(*command, "abc", *SERVER).stderr


def test_quiet_command_says_nothing_of_the_connection(promptlooper: Any, cut: Any) -> None:
    cut(ServiceUnavailable("nobody answers"))
    assert "connection" not in promptlooper("resume", "abc", "-q", *SERVER).stderr


def test_server_that_answers_but_cannot_go_on_is_not_called_lost(promptlooper: Any, cut: Any) -> None:
    cut(StoreUnavailable("the database is gone"))
    said = promptlooper("resume", "abc", *SERVER).stderr
    assert "The Runner at 127.0.0.1:7051 cannot go on (STORE_UNAVAILABLE); trying again for up to 60 s." in said
    assert "connection to 127.0.0.1:7051 is lost" not in said


@pytest.mark.parametrize("command", FOLLOWING)
def test_connection_that_is_given_up_leaves_what_to_type_next(
    promptlooper: Any, runner: Any, make: Any, command: list[str]
) -> None:
    runner.experiments = [make.experiment(state=ExperimentState.RUNNING)]
    runner.watch_errors = [ServiceUnavailable("nobody answers at 127.0.0.1:7051 (refused)")]
    result = promptlooper(*command, "abc", *SERVER)
    assert result.exit_code == 1
    assert result.stderr.endswith(
        "Error: nobody answers at 127.0.0.1:7051 (refused). "
        "Experiment abc123 may go on: promptlooper watch abc123 --server 127.0.0.1:7051\n"
    )
