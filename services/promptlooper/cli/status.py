"""`promptlooper status`: which parts of the stack are healthy."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import click

from promptlooper.cli.data_folder import data_option, hint
from promptlooper.cli.documents import print_document
from promptlooper.cli.outcome import FAILED, Refused
from promptlooper.cli.probe import is_healthy
from promptlooper.cli.session import json_option
from promptlooper.cli.stack_state import PartState, StackState, is_owned, read_state
from promptlooper.cli.tables import print_table


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    kind: str
    address: str
    pid: int | None
    healthy: bool
    metrics_address: str | None


@click.command()
@data_option
@json_option
def status(data: Path, as_json: bool) -> None:
    """Say which parts of the stack are healthy. Exit code 0 if all are."""
    state = read_state(data) if is_owned(data) else None
    if state is None:
        raise Refused(
            f"No stack is running with its data in {str(data)!r}. Start one with `promptlooper up -d{hint(data)}`.",
            reason="NOT_RUNNING",
        )
    rows = asyncio.run(_rows(state))
    if as_json:
        print_document(rows)
    else:
        print_table(
            ("NAME", "KIND", "ADDRESS", "PID", "HEALTHY"),
            [(row.name, row.kind, row.address, _text(row.pid), "yes" if row.healthy else "no") for row in rows],
        )
        if state.phase != "ready":
            click.echo(f"The stack is {state.phase}.", err=True)
    if not all(row.healthy for row in rows):
        raise SystemExit(FAILED)


async def _rows(state: StackState) -> list[_Row]:
    return await asyncio.gather(*(_row(part) for part in state.parts))


async def _row(part: PartState) -> _Row:
    process = part.process if part.process is not None and part.process.alive() else None
    # Without its process, whatever answers at that address is something else.
    healthy = process is not None and await is_healthy(part.kind, part.address, part.health_address)
    return _Row(part.name, part.kind, part.address, process.pid if process else None, healthy, part.metrics_address)


def _text(pid: int | None) -> str:
    return "–" if pid is None else str(pid)
