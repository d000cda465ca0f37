"""Plain tables on stdout: aligned columns, one line a row."""

from __future__ import annotations

from collections.abc import Sequence

import click

from promptlooper.cli.wording import printable


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    cells = [[printable(cell).replace("\n", " ") for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in (headings, *cells)) for i in range(len(headings))]
    click.secho(_line(headings, widths), bold=True)
    for row in cells:
        click.echo(_line(row, widths))


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
