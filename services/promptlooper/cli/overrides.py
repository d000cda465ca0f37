"""The flags that change an experiment before it is checked; `run`, `validate` and `render` share them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from promptlooper.cli.pairs import key_json, key_value

if TYPE_CHECKING:
    from promptlooper.runner.spec.overrides import Overrides

Command = TypeVar("Command", bound=Callable[..., Any])

_CACHE_MODES = ("off", "read_write", "read_only", "write_only", "refresh")


class _OneWord(click.Option):
    """Is taken as `--concurrency` too; the help names one word."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        record = super().get_help_record(ctx)
        return None if record is None else (record[0].replace(", --concurrency", ""), record[1])


concurrency_option = click.option(
    *("-j", "--max-concurrency", "--concurrency", "max_concurrency"),
    cls=_OneWord,
    type=click.IntRange(min=1),
    metavar="N",
    help="At most N runs at once.",
)
file_argument = click.argument("file", metavar="[FILE]", default="promptlooper.yaml", type=click.Path(path_type=Path))

_OPTIONS = (
    concurrency_option,
    click.option("-n", "--first", type=click.IntRange(min=1), metavar="N", help="Only the first N inputs."),
    click.option("--sample", type=click.IntRange(min=1), metavar="N", help="Only N inputs, chosen at random."),
    click.option("--seed", type=int, metavar="S", help="Of --sample: the same S chooses the same inputs."),
    click.option("--repeats", type=click.IntRange(min=1), metavar="N", help="Every cell N times."),
    click.option("-m", "--model", "models", multiple=True, metavar="MODEL", help="Instead of the models; repeatable."),
    click.option("-p", "--param", "params", multiple=True, metavar="PARAM=VALUE", help="Set a parameter; repeatable."),
    click.option("--no-cache", is_flag=True, help="Ask anew and remember nothing: --cache off."),
    click.option("--cache", "cache_mode", type=click.Choice(_CACHE_MODES), metavar="MODE", help="|".join(_CACHE_MODES)),
    click.option("--batch", is_flag=True, help="By the providers' batches: in hours, mostly at half price."),
    click.option("--var", "variables", multiple=True, metavar="K=V", help="Set {{ config.K }}; repeatable."),
    click.option("--tag", "tags", multiple=True, metavar="T", help="Add a tag; repeatable."),
    click.option("--metadata", multiple=True, metavar="K=V", help="Add metadata; repeatable."),
    click.option("--name", metavar="NAME", help="Name the experiment."),
    click.option("--project", metavar="NAME", help="Put it into this project."),
    click.option(
        "--filter",
        "filters",
        multiple=True,
        metavar="KIND=VALUE",
        help="Only pipeline=…, model=…, tag=… or input.KEY=…; repeatable.",
    ),
    click.option("--budget-usd", type=click.FloatRange(min=0, min_open=True), metavar="X", help="Spend at most X."),
)


def override_options(command: Command) -> Command:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def overrides_of(flags: dict[str, Any]) -> Overrides:
    """Of the values of `override_options`."""
    from promptlooper.runner.spec.overrides import Overrides

    if flags["no_cache"] and flags["cache_mode"] not in (None, "off"):
        raise click.UsageError(f"--no-cache and --cache {flags['cache_mode']} contradict each other: give one.")
    if flags["seed"] is not None and flags["sample"] is None:
        raise click.UsageError("--seed says which inputs --sample chooses: give --sample too.")
    return Overrides(
        name=flags["name"],
        project=flags["project"],
        models=flags["models"],
        params=dict(key_json(text, "-p") for text in flags["params"]),
        repeats=flags["repeats"],
        first=flags["first"],
        sample=flags["sample"],
        seed=flags["seed"] or 0,
        config=dict(key_json(text, "--var") for text in flags["variables"]),
        tags=flags["tags"],
        metadata=dict(key_value(text, "--metadata") for text in flags["metadata"]),
        filters=tuple(key_value(text, "--filter") for text in flags["filters"]),
        budget_usd=flags["budget_usd"],
        concurrency=flags["max_concurrency"],
        cache_mode="off" if flags["no_cache"] else flags["cache_mode"],
        batch=flags["batch"],
    )
