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
    ScorerSummary,
    VariantSummary,
)

if TYPE_CHECKING:
    from rich.table import Table

_BETWEEN = " · "  # of a label's parts
_UNLIMITED = 10_000  # columns in a pipe: a line stays a line


def print_report(summary: ExperimentSummary, target: Target, *, left_alone: bool = False) -> None:
    """`left_alone` where it has not ended and no process works on it."""
    print_variants(summary.variants, terminal_width() or _UNLIMITED)
    for line in closing_lines(summary, target, left_alone=left_alone):
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


def closing_lines(summary: ExperimentSummary, target: Target, *, left_alone: bool = False) -> Iterator[str]:
    experiment = summary.experiment
    yield state_line(experiment, left_alone)
    yield from limit_lines(experiment)
    yield cache_line(experiment)
    labels = {variant.variant_id: variant.label for variant in summary.variants}
    for gate in summary.gates:
        yield gate_line(gate, labels, experiment.state.ended)
    yield from where_lines(experiment, target)
    yield from next_lines(experiment, target, left_alone)


def shown_state(experiment: Experiment, left_alone: bool) -> str:
    interrupted = left_alone and experiment.state is not ExperimentState.PAUSED
    return experiment.state.value + (" (interrupted)" if interrupted else "")


def state_line(experiment: Experiment, left_alone: bool = False) -> str:
    counts = experiment.counts
    parts = [f"{counts.completed:,} completed", f"{counts.failed:,} failed"]
    if counts.cancelled:
        parts.append(f"{counts.cancelled:,} cancelled")
    if counts.running:
        parts.append(f"{counts.running:,} running")
    if counts.pending:
        parts.append(f"{counts.pending:,} {'never started' if experiment.state.ended else 'pending'}")
    state = shown_state(experiment, left_alone) + (f" ({one_line(experiment.reason)})" if experiment.reason else "")
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


def where_lines(experiment: Experiment, target: Target) -> Iterator[str]:
    name = experiment.experiment_id
    yield f"Results: experiment {name} in {target.described()}"
    yield f"  promptlooper show {name}{target.option()}"
    yield f"  promptlooper export {name} -o results.jsonl{target.option()}"


def limit_lines(experiment: Experiment) -> Iterator[str]:
    """What it may still cost and how much runs at once, where that tells something."""
    parts = []
    if experiment.budget_nanousd is not None:
        cost = spent(experiment.cost_nanousd, experiment.cost_unknown_calls)
        parts.append(f"{cost} of {money(experiment.budget_nanousd)} spent")
    if experiment.budget_tokens is not None:
        parts.append(f"at most {experiment.budget_tokens:,} paid tokens")
    if experiment.cost_reserved_nanousd:
        parts.append(f"up to {money(experiment.cost_reserved_nanousd)} more for calls under way")
    if parts:
        yield f"Budget: {', '.join(parts)}"
    if experiment.cost_uncertain_nanousd:
        more = money(experiment.cost_uncertain_nanousd)
        yield f"Calls that were given up may have cost up to {more} more, which counts against the budget"
    if experiment.state.ended:
        return
    if experiment.cost_remaining_nanousd:
        yield f"Still to come: about {money(experiment.cost_remaining_nanousd)}"
    if experiment.max_concurrency:
        yield f"At once: at most {count(experiment.max_concurrency, 'run')}"


def next_lines(experiment: Experiment, target: Target, left_alone: bool = False) -> Iterator[str]:
    """What an experiment that is not going on needs to go on."""
    name, option = experiment.experiment_id, target.option()
    resume = f"  promptlooper run --resume {name}{option}"
    if left_alone or experiment.state is ExperimentState.PAUSED:
        yield left_alone_line(experiment, target)
    elif experiment.state is ExperimentState.CANCELLED and experiment.reason == "BUDGET":
        yield (
            "The budget ended it: the next call might have cost more than what was left. Raise it, then run the rest:"
        )
        yield f"  promptlooper update {name} {_budget_flags(experiment)}{option}"
        yield resume
    elif experiment.state is ExperimentState.CANCELLED and experiment.reason == "TIMEOUT":
        yield "Its time was over (limits.experiment_timeout). Run the rest, with as much time again:"
        yield resume
    elif experiment.state in (ExperimentState.CANCELLED, ExperimentState.FAILED):
        yield "Run the rest:"
        yield resume


def _budget_flags(experiment: Experiment) -> str:
    flags = [
        *(["--budget-usd X"] if experiment.budget_nanousd is not None else []),
        *(["--budget-tokens N"] if experiment.budget_tokens is not None else []),
    ]
    return " ".join(flags) or "--budget-usd X"


def left_alone_line(experiment: Experiment, target: Target) -> str:
    if experiment.state is ExperimentState.PAUSED:
        return paused_line(experiment, target)
    name, option = experiment.experiment_id, target.option()
    return (
        f"Experiment {name} was interrupted: no process works on it. `promptlooper run --resume {name}{option}` goes "
        f"on with it, `promptlooper cancel {name}{option}` ends it."
    )


def paused_line(experiment: Experiment, target: Target) -> str:
    name, option = experiment.experiment_id, target.option()
    return f"Experiment {name} is paused: `promptlooper resume {name}{option}` goes on with it."
