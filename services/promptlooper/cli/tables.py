"""Plain tables on stdout: aligned columns, one line a row, or the last column on several lines of a terminal."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence

import click

from promptlooper.cli.wording import printable

_BETWEEN = 2  # columns
_LEAST_LAST = 24  # of the last column, when it is wrapped


def terminal_width() -> int | None:
    """Columns of the terminal, or COLUMNS where that is set; None in a pipe, where a line stays a line."""
    if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdecimal():
        return shutil.get_terminal_size().columns
    return None


def table_width(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    return sum(_widths([headings, *rows])) + _BETWEEN * (len(headings) - 1)


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> None:
    """With a `width`, the last column is wrapped where the table would be wider."""
    cells = [[printable(cell).replace("\n", " ") for cell in row] for row in rows]
    widths = _widths([headings, *cells])
    click.secho(_line(headings, widths), bold=True)
    before = sum(widths[:-1]) + _BETWEEN * (len(widths) - 1)
    last = widths[-1] if width is None else max(_LEAST_LAST, width - before)
    for row in cells:
        first, *others = textwrap.wrap(row[-1], last, break_on_hyphens=False) or [""]
        click.echo(_line([*row[:-1], first], widths))
        for line in others:
            click.echo(" " * before + line)


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return (" " * _BETWEEN).join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
