"""The example clients on a real stack: over three cuts each is told everything once, and they print what is stored."""

from __future__ import annotations

import asyncio
import json
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from google.protobuf import json_format

from promptlooper.testing.proxy import fault_proxy
from promptlooper.v1 import run_pb2
from promptlooper.v1 import runner_service_pb2 as pb
from promptlooper.v1.runner_service_pb2_grpc import RunnerServiceStub

if TYPE_CHECKING:
    from .conftest import GatedStack

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(900),  # the first of each language builds its client
    pytest.mark.parametrize("language", ["node", "go", "cpp"]),
]
Program = Callable[[str], tuple[str, ...]]
ROWS = 12
EXPERIMENT = """\
name: followed
inputs: {file: data/rows.csv}
files: {handbook: handbook.txt}
model: openai/any
prompt: "Is it {{ expected }}, {{ input.country }}?{{ files.handbook[:0] }}"
scorers:
  - {icontains: "{{ expected }}", threshold: 1}
gates: [{min_scores: {icontains: 0.9}}]
limits: {max_concurrency: 4}
cache: {mode: "off"}
"""


@pytest.fixture
def experiment(tmp_path: Path, language: str) -> Path:
    """A file that names two others: one in a folder below, one larger than a piece."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/rows.csv").write_text(
        "country,expected\n" + "".join(f"Ö{i},{language}{i}\n" for i in range(ROWS))
    )
    (tmp_path / "handbook.txt").write_text(f"{language} knows. " * 100_000)
    (tmp_path / "promptlooper.yaml").write_text(EXPERIMENT)
    return tmp_path / "promptlooper.yaml"


@asynccontextmanager
async def started(*words: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(*words, stdin=asyncio.subprocess.DEVNULL, stdout=PIPE, stderr=PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def lines_until(process: Process, wanted: str, times: int = 1) -> list[str]:
    """What is printed up to the line that is the `times`-th to hold `wanted`."""
    assert process.stdout is not None
    lines: list[str] = []
    while times:
        raw = await process.stdout.readline()
        assert raw, "".join(lines) + (await process.communicate())[1].decode()
        lines.append(raw.decode())
        times -= wanted in lines[-1]
    return lines


async def test_client_is_told_everything_once_over_three_cuts(
    language: str, program: Program, stack: GatedStack, experiment: Path, tmp_path: Path
) -> None:
    words = await asyncio.to_thread(program, language)
    rows_file = tmp_path / "rows.jsonl"
    async with fault_proxy(stack.port) as proxy:
        async with started(*words, "--server", proxy.address, "-o", str(rows_file), str(experiment)) as client:
            lines = await lines_until(client, "following")
            for _ in range(3):
                stack.release(2)
                lines += await lines_until(client, "run.completed", times=2)
                await proxy.cut()
            stack.release(ROWS - 6)
            out, err = await client.communicate()
        assert proxy.accepted == 4, err.decode()
    assert client.returncode == 0, err.decode()
    assert err.decode().count("no connection") == 3
    assert "sent handbook.txt" in err.decode()
    lines += out.decode().splitlines(keepends=True)
    experiment_id, told_before = lines[0].split()[1], int(lines[0].split()[-1])
    printed = [line.split() for line in lines[1:] if line[0].isdigit() and " rows in " not in line]

    async with grpc.aio.insecure_channel(stack.server) as channel:
        runner = RunnerServiceStub(channel)
        stored = await runner.ListEvents(pb.ListEventsRequest(experiment_id=experiment_id, page_size=1000))
        summary = await runner.SummarizeExperiment(pb.SummarizeExperimentRequest(experiment_id=experiment_id))
        exported = [
            run
            async for response in runner.ExportRuns(pb.ExportRunsRequest(experiment_id=experiment_id))
            for run in response.runs
        ]
    assert [int(seq) for seq, *_ in printed] == list(range(told_before + 1, len(stored.events) + 1))
    assert printed == [
        [str(event.event_seq), event.kind, *filter(None, [event.run_id])] for event in stored.events[told_before:]
    ]
    assert [without_microseconds(json.loads(line)) for line in rows_file.read_text().splitlines()] == [
        without_microseconds(json_format.MessageToDict(run)) for run in exported
    ]
    assert len(exported) == ROWS
    text = "".join(lines)
    assert f"COMPLETED: {ROWS} of {ROWS} runs completed, 0 failed\n{ROWS} rows in {rows_file}\n" in text
    (variant,) = summary.summary.variants
    assert f"{variant.label}" in text
    assert f"gate min_scores.icontains of {variant.variant_id}: wanted 0.9" in text


def without_microseconds(row: dict[str, object]) -> run_pb2.Run:
    """The run of a row; JavaScript's dates end at milliseconds."""
    run = json_format.ParseDict(row, run_pb2.Run())
    for moment in (run.created_at, run.started_at, run.completed_at):
        moment.nanos -= moment.nanos % 1_000_000
    return run


async def test_ctrl_c_leaves_the_experiment_running_and_says_how_to_go_on(
    language: str, program: Program, stack: GatedStack, experiment: Path, tmp_path: Path
) -> None:
    words = await asyncio.to_thread(program, language)
    command = [
        *words,
        "--server",
        stack.server,
        "-o",
        str(tmp_path / "rows.jsonl"),
        "--request-id",
        f"mine-{tmp_path.name}",
    ]
    async with started(*command, str(experiment)) as client:
        first = await lines_until(client, "following")
        client.send_signal(signal.SIGINT)
        _, err = await client.communicate()
    assert client.returncode == 130, err.decode()
    assert f"the same command with --request-id mine-{tmp_path.name} follows it" in err.decode()

    stack.release(ROWS)
    async with started(*command, str(experiment)) as client:
        out, err = await client.communicate()
    assert client.returncode == 0, err.decode()
    assert out.decode().split()[1] == first[0].split()[1]
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == ROWS


async def test_ctrl_c_ends_a_call_that_nobody_answers(
    language: str, program: Program, experiment: Path, tmp_path: Path
) -> None:
    words = await asyncio.to_thread(program, language)
    called = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        called.set()
        await reader.read(-1)
        writer.close()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
        address = "{}:{}".format(*server.sockets[0].getsockname())
        async with started(*words, "--server", address, str(experiment)) as client:
            await called.wait()
            client.send_signal(signal.SIGINT)
            _, err = await client.communicate()
    assert client.returncode == 130, err.decode()
    assert "the experiment may have been stored" in err.decode()


async def test_rows_that_cannot_be_written_are_not_lost(
    language: str, program: Program, stack: GatedStack, experiment: Path, tmp_path: Path
) -> None:
    words = await asyncio.to_thread(program, language)
    output = tmp_path / "absent" / "rows.jsonl"
    options = ("--server", stack.server, "--request-id", f"rows-{tmp_path.name}", "-o", str(output))
    stack.release(ROWS)
    async with started(*words, *options, str(experiment)) as client:
        _, err = await client.communicate()
    assert client.returncode == 2, err.decode()
    assert str(output) in err.decode()
    assert f"the same command with --request-id rows-{tmp_path.name} follows it" in err.decode()

    output.parent.mkdir()
    async with started(*words, *options, str(experiment)) as client:
        await client.communicate()
    assert client.returncode == 0
    assert len(output.read_text().splitlines()) == ROWS


async def test_what_is_wrong_is_said(language: str, program: Program, stack: GatedStack, tmp_path: Path) -> None:
    words = await asyncio.to_thread(program, language)
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("model: openai/any\nprompt: '{{ inptu }}'\nrepeatz: 2\n")
    for arguments, code, said in (
        ([str(wrong)], 2, ("INVALID_EXPERIMENT:\n", "inptu", "repeatz")),
        ([str(tmp_path)], 2, ("",)),
        (["--ca-file", str(wrong), str(wrong)], 2, ("wrong.yaml holds no certificate",)),
        ([str(tmp_path / "absent.yaml")], 2, ("absent.yaml",)),
        ([], 2, ("-request-id",)),
        (["--request-id", "not valid", str(wrong)], 1, ("INVALID_ARGUMENT: ",)),
    ):
        async with started(*words, "--server", stack.server, *arguments) as client:
            out, err = await client.communicate()
        assert client.returncode == code, (arguments, err.decode())
        assert out == b""
        for each in said:
            assert each in err.decode()
    async with started(*words, "-h") as client:
        await client.communicate()
    assert client.returncode == 0
