"""Runs as frames: the columns of CSV files, with types."""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from promptlooper.client import MissingPackage
from promptlooper.client.frames import ARROW, PANDAS, Table
from promptlooper.experiment import (
    Experiment,
    ExperimentState,
    ExperimentSummary,
    RunCounts,
    ScorerSummary,
    VariantSummary,
)
from promptlooper.run import Run, RunError, RunState, Score

EPOCH = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
VARIANT = VariantSummary(
    *("0123456789ab", "direct", "direct", "mock/echo", {"temperature": 0.5, "max-tokens": 8}, 2, 2, 0, 0.5, None),
    *((ScorerSummary("is-json", 0.5, 2, 0),), 10, 20, 100, 200, 5, 1),
)
SUMMARY = ExperimentSummary(
    Experiment("abc", "default", "demo", ExperimentState.COMPLETED, RunCounts(2, completed=2), EPOCH), (VARIANT,), ()
)
RUN = Run(
    *("abc-0", "abc", "default", 1, 0, RunState.COMPLETED, 0, "in0", "0123456789ab", "direct", "mock/echo"),
    *({"temperature": 0.5, "max-tokens": 8}, 0, {"n": 1, "text": "a", "mixed": 1, "on": True}, "Paris", "Paris"),
    *(1.0, True, (Score("is-json", "is-json", 1.0, True),), None, 12, 3, 0, 0, 1500, 0, 80, 90, False, 1, ()),
    *(("demo",), {"owner": "search"}, EPOCH, EPOCH, EPOCH),
)
FAILED = replace(
    RUN,
    run_id="abc-1",
    run_index=1,
    state=RunState.FAILED,
    input={"n": None, "mixed": [1], "half": 0.5},
    output=None,
    score=None,
    passed=None,
    scores=(),
    error=RunError("PROVIDER_REJECTED", "no", 0, "", 1, False),
    cost_nanousd=None,
    duration_ms=None,
    completed_at=None,
)


def table(package: tuple[str, str, str], *runs: Run) -> Table:
    table = Table(SUMMARY, package)
    for run in runs:
        table.add(run)
    return table


def test_a_pandas_frame_has_types() -> None:
    frame = table(PANDAS, RUN, FAILED).to_pandas()
    assert frame.run_id.tolist() == ["abc-0", "abc-1"]
    kinds = {name: str(frame[name].dtype) for name in frame.columns}
    assert kinds["run_index"] == kinds["input_n"] == kinds["duration_ms"] == kinds["error_stage_index"] == "Int64"
    assert kinds["score"] == kinds["score_is_json"] == kinds["param_temperature"] == kinds["cost_usd"] == "float64"
    assert kinds["passed"] == kinds["cached"] == kinds["input_on"] == kinds["error_retryable"] == "boolean"
    assert kinds["created_at"] == kinds["completed_at"] == "datetime64[us, UTC]"
    assert frame.loc[1, "error_reason"] == "PROVIDER_REJECTED"
    assert frame.cost_usd.sum() == pytest.approx(0.0000015)
    assert frame.score.mean() == 1.0
    assert frame.created_at[0].to_pydatetime() == EPOCH


def test_an_arrow_table_has_types_and_nulls() -> None:
    found = table(ARROW, RUN, FAILED).to_arrow()
    rows = found.to_pylist()
    assert str(found.schema.field("created_at").type) == "timestamp[us, tz=UTC]"
    assert str(found.schema.field("input_half").type) == "double"
    assert rows[0]["created_at"] == EPOCH
    assert rows[0]["param_max_tokens"] == 8
    assert rows[0]["metadata"] == '{"owner":"search"}'
    assert [row["input_mixed"] for row in rows] == ["1", "[1]"]
    assert [row["input_n"] for row in rows] == [1, None]
    assert [row["score_is_json"] for row in rows] == [1.0, None]
    assert rows[1]["output"] is None
    assert "stages" not in found.column_names


def test_columns_are_those_of_csv_files_also_without_runs() -> None:
    empty = table(ARROW).to_arrow()
    assert empty.num_rows == 0
    assert [name for name in empty.column_names if name.startswith(("param_", "score_"))] == [
        *("param_temperature", "param_max_tokens", "score_is_json", "score_is_json_error"),
    ]
    assert list(table(PANDAS).to_pandas().columns) == empty.column_names


@pytest.mark.parametrize("value", [2**63, 2**64 - 1])
def test_integers_beyond_64_bits_are_text(value: int) -> None:
    found = table(ARROW, replace(RUN, input={"n": 1}), replace(RUN, input={"n": value})).to_arrow()
    assert [row["input_n"] for row in found.to_pylist()] == ["1", str(value)]


@pytest.mark.parametrize("package", [ARROW, PANDAS])
def test_a_package_that_is_missing_is_named_with_its_installation(
    package: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package[0], None)  # type: ignore[arg-type]
    with pytest.raises(MissingPackage, match=rf"not installed \({package[0]}\): pip install {package[0]}"):
        table(package)
