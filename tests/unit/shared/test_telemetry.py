from __future__ import annotations

import json
import logging
import re
from contextvars import Context
from typing import Any

from promptlooper import tracing
from promptlooper.telemetry import JsonFormatter, LineFormatter, LogLimit, work_on


def line(message: str, *args: object, **extra: object) -> str:
    record = logging.getLogger("x").makeRecord("x", logging.INFO, "f", 1, message, args, None, extra=extra)
    return LineFormatter("runner").format(record)


def test_line_has_time_level_service_message_and_facts() -> None:
    found = line("took %s", "over", experiment_id="abc", runs=3, why="a b", none="")
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO runner took over experiment_id=abc runs=3 why='a b' none=''",
        found,
    )


def test_record_can_not_make_a_second_line() -> None:
    assert "\n" not in line("a\nb", c="d\ne")


def test_traceback_follows_the_line() -> None:
    try:
        raise ValueError("why")
    except ValueError as error:
        record = logging.getLogger("x").makeRecord("x", logging.ERROR, "f", 1, "failed", (), (None, error, None))
        record.exc_info = (type(error), error, error.__traceback__)
    lines = LineFormatter("runner").format(record).splitlines()
    assert lines[0].endswith("ERROR runner failed")
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-1] == "ValueError: why"


def entry(message: str, **extra: object) -> dict[str, Any]:
    record = logging.getLogger("x").makeRecord("runner.x", logging.WARNING, "f", 1, message, (), None, extra=extra)
    line = JsonFormatter("runner").format(record)
    assert "\n" not in line
    found: dict[str, Any] = json.loads(line)
    return found


def test_json_has_time_level_service_logger_message_and_facts() -> None:
    found = entry("took\nover", runs=3, why=ValueError("no"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found.pop("time"))
    assert found == {
        "level": "warning",
        "service": "runner",
        "logger": "runner.x",
        "message": "took\nover",
        "runs": 3,
        "why": "no",
    }


def test_json_names_the_experiment_the_run_and_the_trace_of_the_task_that_logs() -> None:
    def of_run() -> dict[str, Any]:
        work_on("abc", 7)
        tracing.current.set("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        return entry("x")

    found = Context().run(of_run)
    assert (found["experiment_id"], found["run_id"]) == ("abc", "abc-7")
    assert found["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
    assert not {"experiment_id", "run_id", "trace_id"} & entry("x").keys()


def test_json_holds_a_traceback_in_its_line() -> None:
    try:
        raise ValueError("why")
    except ValueError as error:
        record = logging.getLogger("x").makeRecord("x", logging.ERROR, "f", 1, "failed", (), (type(error), error, None))
    assert json.loads(JsonFormatter("x").format(record))["traceback"] == "ValueError: why"


def test_limit_takes_so_many_lines_a_second_and_counts_the_others() -> None:
    now = 100.0
    limit = LogLimit(2, monotonic=lambda: now)
    assert [limit.left_out() for _ in range(5)] == [0, 0, None, None, None]
    now += 1.0
    assert [limit.left_out() for _ in range(3)] == [3, 0, None]
