"""`export`, and files that appear whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from promptlooper.cli.outcome import Refused
from promptlooper.cli.output import output_file, written
from promptlooper.experiment import ExperimentState, RunCounts


@pytest.fixture
def stored(runner: Any, make: Any) -> Any:
    runner.experiments = [make.experiment()]
    runner.runs = {"abc123": [make.run(0), make.run(1, input={"city": 'a "b",\nc'}), make.failed_run(2)]}
    return runner


def test_export_writes_json_lines_to_stdout_in_run_order(promptlooper: Any, stored: Any) -> None:
    result = promptlooper("export")
    assert result.exit_code == 0
    assert [json.loads(line)["run_index"] for line in result.stdout.splitlines()] == [0, 1, 2]


def test_export_writes_several_files_by_extension(promptlooper: Any, stored: Any, tmp_path: Path) -> None:
    result = promptlooper("export", "latest", "-o", "a.jsonl", "-o", "b.json", "-o", "c.csv")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 3
    whole = json.loads((tmp_path / "b.json").read_text())
    assert list(whole) == ["summary", "runs"]
    assert whole["runs"][1] == json.loads((tmp_path / "a.jsonl").read_text().splitlines()[1])
    rows = list(csv.DictReader(io.StringIO((tmp_path / "c.csv").read_text())))
    assert [row["input_country"] for row in rows] == ["France", "", "France"]
    assert rows[1]["input_city"] == 'a "b",\nc'
    assert rows[2]["error_reason"] == "PROVIDER_UNAVAILABLE"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.json", "c.csv"]


def test_export_without_runs_has_a_header_and_an_empty_list(promptlooper: Any, stored: Any, tmp_path: Path) -> None:
    stored.runs = {}
    assert promptlooper("export", "-o", "b.json", "-o", "c.csv").exit_code == 0
    assert json.loads((tmp_path / "b.json").read_text())["runs"] == []
    assert (tmp_path / "c.csv").read_text().startswith("schema_version,project,")


def test_export_of_a_running_experiment_exits_0_and_says_that_it_goes_on(
    promptlooper: Any, stored: Any, make: Any
) -> None:
    counts = RunCounts(total=9, pending=5, running=1, completed=3)
    stored.experiments = [make.experiment(state=ExperimentState.RUNNING, counts=counts)]
    result = promptlooper("export", "--server", "127.0.0.1:7051")
    assert result.exit_code == 0
    assert "6 runs not ended yet" in result.stderr


@pytest.mark.parametrize("name", ["x.parquet", "x.html", "x.junit.xml"])
def test_later_formats_are_refused(promptlooper: Any, stored: Any, name: str) -> None:
    result = promptlooper("export", "-o", name)
    assert result.exit_code == 2
    assert "not available yet" in result.stderr


@pytest.mark.parametrize("name", ["x.txt", "noextension", "missing/folder/x.json", "folder.json"])
def test_file_that_cannot_be_written_is_refused_before_anything_is_read(
    promptlooper: Any, stored: Any, tmp_path: Path, name: str
) -> None:
    (tmp_path / "folder.json").mkdir()
    result = promptlooper("export", "-o", name)
    assert result.exit_code == 2
    assert name in result.stderr
    assert stored.targets == []


def test_file_keeps_its_old_content_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("old")

    def fail_halfway() -> None:
        with written(path) as stream:
            stream.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real.jsonl").write_text("old")
    (tmp_path / "link.jsonl").symlink_to("real.jsonl")
    with written(output_file(str(tmp_path / "link.jsonl")).path) as stream:
        stream.write(b"new")
    assert (tmp_path / "link.jsonl").is_symlink()
    assert (tmp_path / "real.jsonl").read_text() == "new"


def test_device_is_written_to_and_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "null.jsonl").symlink_to(os.devnull)
    with written(output_file(str(tmp_path / "null.jsonl")).path) as stream:
        stream.write(b"gone")
    assert not Path(os.devnull).is_file()


def test_refusal_leaves_no_trial_file(tmp_path: Path) -> None:
    output_file(str(tmp_path / "x.jsonl"))
    with pytest.raises(Refused):
        output_file(str(tmp_path / "x.xlsx"))
    assert list(tmp_path.iterdir()) == []
