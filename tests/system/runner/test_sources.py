"""Experiments sent as their files are, with the files that they name, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import replace

import pytest
from runner_lab import Lab, ended, experiment, exported

from promptlooper.errors import (
    ExperimentNotFound,
    FilesMissing,
    InvalidArgument,
    InvalidExperiment,
    RequestIdReused,
    TooLarge,
)
from promptlooper.experiments import Experiments
from promptlooper.runner.store import uploads
from promptlooper.runner.store.database import Database
from promptlooper.sources import LARGEST_FILE, PIECE, ExperimentSource, FilePiece, FileReference

TEXT = """
name: capitals
inputs: {file: data/rows.csv}
model: mock/m
prompt: {file: prompt.txt}
files: {notes: ./notes.md}
"""
FILES = {
    "data/rows.csv": b"country,expected\nFrance,Paris\nJapan,Tokyo\n",
    "prompt.txt": b"The capital of {{ input.country }}, by {{ files.notes }}?\n",
    "notes.md": b"the book",
}


def reference(path: str, content: bytes) -> FileReference:
    return FileReference(path, hashlib.sha256(content).hexdigest(), len(content))


def pieces(content: bytes) -> list[FilePiece]:
    sha256 = hashlib.sha256(content).hexdigest()
    offsets = range(0, max(1, len(content)), PIECE)
    return [FilePiece(sha256, len(content), offset, content[offset : offset + PIECE]) for offset in offsets]


async def sent(runner: Experiments, text: str, files: Mapping[str, bytes]) -> ExperimentSource:
    """The source with what it lacks, as a client finds out and sends it."""
    source = ExperimentSource(text)
    try:
        await runner.validate(source)
    except FilesMissing as error:
        for problem in error.missing:
            for piece in pieces(files[problem.field]):
                await runner.upload(piece)
            source = replace(source, files=(*source.files, reference(problem.field, files[problem.field])))
    return source


async def test_a_client_that_cannot_read_the_file_sends_what_the_runner_asks_for(lab: Lab) -> None:
    async with lab.runner() as runner:
        with pytest.raises(FilesMissing, match=r"'data/rows\.csv', 'notes\.md'") as raised:
            await runner.create(ExperimentSource(TEXT), "first")
        assert [problem.field for problem in raised.value.missing] == sorted(FILES)
        source = await sent(runner, TEXT, FILES)
        created = await runner.create(source, "first")
        await ended(runner, created.experiment_id)
        runs = await exported(runner, created.experiment_id)
        again = await runner.create(source, "first")
        with pytest.raises(RequestIdReused):
            await runner.create(ExperimentSource("model: mock/m\nprompt: hi"), "first")
    assert created.name == "capitals"
    assert [(run.input, run.expected) for run in runs] == [
        ({"country": "France"}, "Paris"),
        ({"country": "Japan"}, "Tokyo"),
    ]
    assert runs[0].stages[0].messages[0].content == "The capital of France, by the book?"
    assert again.experiment_id == created.experiment_id


async def test_files_of_many_pieces_come_in_any_order_and_more_than_once(lab: Lab) -> None:
    rows = b"n,expected\n" + b"".join(b"%d,%s\n" % (n, b"x" * 500) for n in range(5_000))
    parts = pieces(rows)
    assert len(parts) == 3
    text = "inputs: {file: rows.csv, limit: 3}\nmodel: mock/m\nprompt: '{{ input.n }}'"
    async with lab.runner() as runner:
        assert (await runner.upload(parts[2])).received_bytes == len(parts[2].data)
        assert not (await runner.upload(parts[2])).complete
        with pytest.raises(FilesMissing, match=r"'rows\.csv'"):
            await runner.create(ExperimentSource(text, files=(reference("rows.csv", rows),)))
        done = await asyncio.gather(runner.upload(parts[0]), runner.upload(parts[1]), runner.upload(parts[0]))
        assert any(one.complete for one in done)
        assert (await runner.upload(parts[1])).received_bytes == len(rows)
        created = await runner.create(ExperimentSource(text, files=(reference("./rows.csv", rows),)))
    assert created.counts.total == 3


async def test_a_file_that_is_not_what_was_said_is_dropped_and_can_be_sent_again(lab: Lab) -> None:
    (good,) = pieces(b"right")
    async with lab.runner() as runner:
        with pytest.raises(InvalidArgument, match="send the file again"):
            await runner.upload(replace(good, data=b"wrong"))
        assert (await runner.upload(good)).complete
        with pytest.raises(InvalidArgument, match="one of the two is wrong"):
            await runner.upload(replace(good, size=4, data=b"righ"))
        assert (await runner.upload(pieces(b"")[0])).complete


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sha256": "ABC"}, "64 lowercase hex digits"),
        ({"size": LARGEST_FILE + 1}, "may have up to"),
        ({"offset": 1}, "no multiple"),
        ({"offset": PIECE}, "no multiple of 1,048,576 within the 5 bytes"),
        ({"data": b""}, "must have 5"),
    ],
)
async def test_pieces_of_no_file_are_refused(lab: Lab, change: dict[str, object], said: str) -> None:
    async with lab.runner() as runner:
        with pytest.raises(InvalidArgument, match=said):
            await runner.upload(replace(pieces(b"right")[0], **change))  # type: ignore[arg-type]


async def test_files_that_there_is_no_room_for_are_refused(lab: Lab) -> None:
    (small,), large = pieces(b"small"), pieces(bytes(PIECE + 1))
    async with lab.runner(upload_limit=PIECE + 5) as runner:
        assert not (await runner.upload(large[1])).complete  # its first piece takes the room of all
        with pytest.raises(TooLarge, match=r"no room for 5 bytes.* 1,048,577 of the 1,048,581.*_UPLOAD_LIMIT"):
            await runner.upload(small)
        assert (await runner.upload(large[0])).complete
        assert (await runner.upload(pieces(b"tiny")[0])).complete


async def test_a_short_text_can_not_name_a_long_one_without_end(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("promptlooper.runner.spec.files.MAX_SENT_BYTES", 10)
    text = "model: mock/m\nprompts: {a: {file: long.txt}, b: {file: ./long.txt}%s}\n"
    async with lab.runner() as runner:
        source = await sent(runner, text % "", {"long.txt": b"five!"})
        assert (await runner.validate(source)).calls == 2
        with pytest.raises(InvalidExperiment, match=r"with 'long\.txt' the files have more than 10 bytes"):
            await runner.validate(replace(source, text=text % ", c: {file: long.txt}"))


async def test_everything_wrong_is_said_with_file_and_line(lab: Lab) -> None:
    text = "model: mock/m\nprompt: '{{ wrong }}'\ninputs: {file: rows.jsonl}\nrepeats: -1\n"
    rows = b'{"n": 1}\n{"n": \n'
    async with lab.runner() as runner:
        source = await sent(runner, text, {"rows.jsonl": rows})
        with pytest.raises(InvalidExperiment) as raised:
            await runner.create(source)
        places = sorted(problem.place for problem in raised.value.problems)
        assert places == ["promptlooper.yaml:2", "promptlooper.yaml:4", "rows.jsonl:2"]
        late = ExperimentSource(
            "prompt: hi\nmodel: mock/m\nscorers:\n  - {type: max-words, value: many}\n", "my/exp.yaml"
        )
        (problem,) = (await runner.validate(late)).problems
        assert problem.place == "my/exp.yaml:4"
        with pytest.raises(InvalidArgument, match="not a relative path"):
            await runner.create(ExperimentSource(text, files=(reference("/etc/passwd", b""),)))
        with pytest.raises(TooLarge, match="into files of their own"):
            await runner.create(ExperimentSource("#" * (3 * PIECE + 1)))
        with pytest.raises(InvalidExperiment, match="outside the folder"):
            await runner.create(ExperimentSource("model: mock/m\nprompt: {file: ../secret}"))


async def test_what_services_refuse_is_said_with_the_mistakes_of_the_file(lab: Lab) -> None:
    text = "model: mock/m\nprompt: '{{ wrong }}'\nscorers:\n  - {type: max-words, value: many}\nrepeats: -1\n"
    async with lab.runner() as runner:
        for call in (runner.create, runner.validate):
            with pytest.raises(InvalidExperiment) as raised:
                await call(ExperimentSource(text))
            assert [problem.line for problem in raised.value.problems] == [2, 4, 5]


async def test_files_that_nobody_uses_any_more_are_forgotten(lab: Lab) -> None:
    (old,), (kept,) = pieces(b"old"), pieces(b"kept")
    async with lab.runner() as runner:
        await runner.upload(old)
        await runner.upload(kept)
    database = Database(lab.database_url)
    database.writing(lambda c: uploads.used(c, [old.sha256], 0))
    database.writing(lambda c: uploads.forget_old(c, uploads.KEPT_US + 1))
    found = [
        database.reading(lambda c, p=p: uploads.content(c, FileReference("f", p.sha256, p.size))) for p in (old, kept)
    ]
    database.close()
    assert found == [None, b"kept"]


async def test_runs_are_rendered_from_a_source_a_spec_and_a_stored_experiment(lab: Lab) -> None:
    async with lab.runner() as runner:
        source = await sent(runner, TEXT, FILES)
        rendered = await runner.render(source, 1)
        assert (rendered.run_index, rendered.runs, rendered.stages[0].model) == (1, 2, "mock/m")
        assert rendered.stages[0].messages[0].content == "The capital of Japan, by the book?"
        two = experiment("{{ input.n }}", "{{ prev_output }}!", rows=[{"n": 1}, {"n": 2}])
        assert [s.messages[0].content for s in (await runner.render(two, 1)).stages] == ["2", "<output of stage 0>!"]
        created = await runner.create(two)
        assert await runner.render(created.experiment_id, 1) == await runner.render(two, 1)
        with pytest.raises(InvalidArgument, match="the runs are 0 to 1"):
            await runner.render(created.experiment_id, 2)
        with pytest.raises(ExperimentNotFound):
            await runner.render("nothing")
        with pytest.raises(InvalidExperiment, match="wrong"):
            await runner.render(experiment("{{ wrong }}"))
