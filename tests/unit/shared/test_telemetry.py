from __future__ import annotations

import logging
import re

from promptlooper.telemetry import LineFormatter


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
