"""An experiment's results as people read them: a table of variants, the gates, the cache, and where to look next."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from promptlooper.cli.session import Target
from promptlooper.cli.tables import terminal_width
from promptlooper.cli.wording import count, milliseconds, money, one_line, percent, printable, seconds, share, spent
from promptlooper.experiment import (
    Experiment,
    ExperimentState,
    ExperimentSummary,
    GateResult,
    Limits,
    ScorerSummary,
    VariantSummary,
)

if TYPE_CHECKING:
    from rich.table import Table

_BETWEEN = " · "  # of a label's parts
_UNLIMITED = 10_000  # columns in a pipe: a line stays a line


def print_report(
    summary: ExperimentSummary, target: Target, *, limits: Limits | None = None, interrupted: bool = False
) -> None:
    """`limits` where they are known; `interrupted` where nothing works on the experiment any more."""
    print_variants(summary.variants, terminal_width() or _UNLIMITED)
    for line in closing_lines(summary, target, limits=limits, interrupted=interrupted):
        click.echo(line)


def print_variants(variants: Sequence[VariantSummary], width: int) -> None:
    """A table; a narrower one, or a paragraph for each variant, where it would not fit into `width` columns."""
    from rich.console import Console

    console = Console(file=sys.stdout, width=_UNLIMITED, highlight=False, markup=False, emoji=False)
    for cells in (_wide, _narrow):
        table = _table(cells(variants))
        if console.measure(table).maximum <= width:
            with console.capture() as captured:  # rich itself would end the process where the reader has gone
                console.print(table)
            click.echo(captured.get(), nl=False)
            break
    else:
        for line in _paragraphs(variants):
            click.echo(line)
        return
    if (common := _common(variants)) and cells is _narrow:
        click.echo(f"all of them: {printable(common)}")


def _table(rows: Sequence[Sequence[str]]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for index, heading in enumerate(rows[0]):
        table.add_column(Text(printable(heading)), justify="right" if index else "left", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def _wide(variants: Sequence[VariantSummary]) -> list[list[str]]:
    scorers = [score.name for score in variants[0].scores] if variants else []
    headings = ["variant", "runs", "failed", "score", "pass", *scorers, "tokens in", "out", "cost", "p50", "p95"]
    return [headings, *(_cells(variant, variant.label) for variant in variants)]


def _narrow(variants: Sequence[VariantSummary]) -> list[list[str]]:
    """Without what all labels share, and without the column of failures where there is none."""
    common = _common(variants)
    headings, *rows = _wide(variants)
    for row in rows:
        row[0] = row[0].removesuffix(_BETWEEN + common)
    if not any(variant.failed for variant in variants):
        failed = headings.index("failed")
        for row in (headings, *rows):
            del row[failed]
    headings[headings.index("tokens in")] = "in"
    return [headings, *rows]


def _common(variants: Sequence[VariantSummary]) -> str:
    """The end that all labels share; never a whole label."""
    parts = [variant.label.split(_BETWEEN) for variant in variants]
    shared = 0
    while len(parts) > 1 and all(len(p) > shared + 1 and p[-1 - shared] == parts[0][-1 - shared] for p in parts):
        shared += 1
    return _BETWEEN.join(parts[0][-shared:]) if shared else ""


def _cells(variant: VariantSummary, label: str) -> list[str]:
    return [
        label,
        f"{variant.runs:,}",
        f"{variant.failed:,}",
        share(variant.score),
        percent(variant.pass_rate),
        *map(_mean, variant.scores),
        f"{variant.tokens_in:,}",
        f"{variant.tokens_out:,}",
        money(variant.total_cost_nanousd),
        milliseconds(variant.latency_ms_p50),
        milliseconds(variant.latency_ms_p95),
    ]


def _mean(score: ScorerSummary) -> str:
    return share(score.mean) + (f" ({count(score.errors, 'error')})" if score.errors else "")


def _paragraphs(variants: Sequence[VariantSummary]) -> Iterator[str]:
    headings, *rows = _wide(variants)
    for row in rows:
        yield click.style(printable(row[0]), bold=True)
        yield "  " + " · ".join(printable(f"{name} {cell}") for name, cell in zip(headings[1:], row[1:], strict=True))


def closing_lines(
    summary: ExperimentSummary, target: Target, *, limits: Limits | None = None, interrupted: bool = False
) -> Iterator[str]:
    experiment = summary.experiment
    yield state_line(experiment, interrupted)
    if interrupted:
        yield interrupted_line(experiment)
    yield cache_line(experiment)
    labels = {variant.variant_id: variant.label for variant in summary.variants}
    for gate in summary.gates:
        yield gate_line(gate, labels, experiment.state.ended)
    yield from where_lines(experiment, target, limits)


def shown_state(experiment: Experiment, interrupted: bool) -> str:
    return experiment.state.value + (" (interrupted)" if interrupted and not experiment.state.ended else "")


def interrupted_line(experiment: Experiment) -> str:
    name = experiment.experiment_id
    return (
        f"Nothing works on experiment {name} any more: run its file again (what was answered comes from the cache), "
        f"or end it with `promptlooper cancel {name}`."
    )


def state_line(experiment: Experiment, interrupted: bool = False) -> str:
    counts = experiment.counts
    parts = [f"{counts.completed:,} completed", f"{counts.failed:,} failed"]
    if counts.cancelled:
        parts.append(f"{counts.cancelled:,} cancelled")
    if counts.running:
        parts.append(f"{counts.running:,} running")
    if counts.pending:
        parts.append(f"{counts.pending:,} {'never started' if experiment.state.ended else 'pending'}")
    state = shown_state(experiment, interrupted) + (f" ({one_line(experiment.reason)})" if experiment.reason else "")
    cost = spent(experiment.cost_nanousd, experiment.cost_unknown_calls)
    why = (
        f" (no price known for {count(experiment.cost_unknown_calls, 'call')})" if experiment.cost_unknown_calls else ""
    )
    return (
        f"{state} in {seconds(experiment.duration_ms / 1000)}: {count(counts.total, 'run')}, {', '.join(parts)}; "
        f"cost {cost}{why}"
    )


def cache_line(experiment: Experiment) -> str:
    """Says plainly how many runs asked nobody, and what that saved."""
    counts = experiment.counts
    done = counts.completed + counts.failed
    saved = f", saved {money(experiment.cost_saved_nanousd)}"
    if counts.cached and counts.cached == done:
        who = "the run was" if done == 1 else f"all {done:,} runs were"
        return f"Cache: {who} served from the cache{saved}"
    if counts.cached:
        return f"Cache: {counts.cached:,} of {count(done, 'run')} served from the cache{saved}"
    if experiment.cost_saved_nanousd:
        return f"Cache: no run was served from the cache as a whole, some calls were{saved}"
    return f"Cache: none of {count(done, 'run')} served from the cache"


def gate_line(gate: GateResult, labels: dict[str, str], ended: bool) -> str:
    whose = f" [{printable(labels.get(gate.variant_id, gate.variant_id))}]" if gate.variant_id else ""
    got = "cannot be computed" if gate.got is None else f"{gate.got:.4g}"
    sign = "at most" if gate.name.startswith("max_") else "at least"
    verdict = click.style("pass", fg="green") if gate.passed else click.style("MISS", fg="red")
    if not ended:
        verdict, got = "open", "nothing yet" if gate.got is None else f"{got} so far"
    return f"Gate {verdict}: {gate.name}{whose}: {got}, wanted {sign} {gate.wanted:g}"


def where_lines(experiment: Experiment, target: Target, limits: Limits | None = None) -> Iterator[str]:
    name = experiment.experiment_id
    yield f"Results: experiment {name} in {target.described()}"
    yield f"  promptlooper show {name}{target.option()}"
    yield f"  promptlooper export {name} -o results.jsonl{target.option()}"
    if experiment.state is ExperimentState.CANCELLED and experiment.reason == "BUDGET":
        yield budget_line(experiment, limits or Limits())


def budget_line(experiment: Experiment, limits: Limits) -> str:
    """A budget ends before it is used up, because each call is first held against the most that it may cost."""
    cost = spent(experiment.cost_nanousd, experiment.cost_unknown_calls)
    left, said, names = "", f" (spent {cost})", "limits.budget_usd or budget_tokens"
    if limits.budget_nanousd is not None:
        said = f" (spent {cost} of {money(limits.budget_nanousd)})"
        names = "limits.budget_usd" if limits.budget_tokens is None else names
    elif limits.budget_tokens is not None:
        left, names = f" of {limits.budget_tokens:,} tokens", "limits.budget_tokens"
    return (
        f"The budget ended it: the next call might have cost more than what was left{left}{said}. "
        f"Raise {names} to run the rest."
    )
