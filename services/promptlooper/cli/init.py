"""`promptlooper init`: a small experiment that works as it is."""

from __future__ import annotations

from pathlib import Path

import click

from promptlooper.cli.outcome import USAGE, Refused

FILE_NAME = "promptlooper.yaml"

EXPERIMENT = """\
# Two prompts, four inputs, one small model that runs on this machine. Run it with: promptlooper run
name: capitals

inputs:                                     # one row per question; `expected` is for the scorers only
  - {country: France, expected: Paris}
  - {country: Japan, expected: Tokyo}
  - {country: Egypt, expected: Cairo}
  - {country: Norway, expected: Oslo}

model: local/smollm2-135m-instruct          # provider/model; with a key, try openai/gpt-4.1-mini
params: {temperature: 0, max_tokens: 12}

prompts:                                    # what is compared
  direct: "What is the capital of {{ input.country }}? Answer with one word."
  short: "Capital of {{ input.country }}:"

scorers:                                    # `promptlooper scorers` lists them all
  - {icontains: "{{ expected }}", threshold: 1}
  - {name: brief, type: max-words, value: 6, weight: 0.5}
"""


@click.command()
@click.argument("folder", metavar="[DIR]", default=".", type=click.Path(file_okay=False, path_type=Path))
def init(folder: Path) -> None:
    """Write a small experiment that works as it is. Nothing is overwritten."""
    path = folder / FILE_NAME
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(EXPERIMENT)
    except FileExistsError:
        raise Refused(
            f"{str(path)!r} is there already and stays as it is. Name another folder: promptlooper init DIR",
            reason="INVALID_ARGUMENT",
            code=USAGE,
        ) from None
    where = "" if folder == Path() else f" {path}"
    click.echo(f"Wrote {path}. Run it with: promptlooper run{where}", err=True)
