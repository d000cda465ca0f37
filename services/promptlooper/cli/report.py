"""An experiment's results as people read them: a table of variants, the gates, the cache, and where to look next."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from promptlooper.cli.session import Target
from promptlooper.cli.wording import count, milliseconds, money, one_line, printable, seconds, share, spent
from promptlooper.experiment import Experiment, ExperimentState, ExperimentSummary, GateResult, VariantSummary

if TYPE_CHECKING:
    from rich.table import Table

_UNLIMITED = 10_000  # columns in a pipe: a line stays a line


def print_report(summary: ExperimentSummary, target: Target) -> None:
    from rich.console import Console

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _UNLIMITED
    console = Console(file=sys.stdout, width=width, highlight=False, markup=False, emoji=False)
    console.print(_table(summary))
    for line in closing_lines(summary, target):
        click.echo(line)


def _table(summary: ExperimentSummary) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    scorers = [score.name for score in summary.variants[0].scores] if summary.variants else []
    table.add_column("variant", overflow="fold")
    for heading in ("runs", "failed", "score", "pass", *scorers, "tokens in", "out", "cost", "p50", "p95"):
        table.add_column(Text(printable(heading)), justify="right")
    for variant in summary.variants:
        table.add_row(*(Text(printable(cell)) for cell in _cells(variant)))
    return table


def _cells(variant: VariantSummary) -> Iterator[str]:
    yield variant.label
    yield f"{variant.runs:,}"
    yield f"{variant.failed:,}"
    yield share(variant.score)
    yield "–" if variant.pass_rate is None else f"{variant.pass_rate:.0%}"
    for score in variant.scores:
        yield share(score.mean) + (f" ({count(score.errors, 'error')})" if score.errors else "")
    yield f"{variant.tokens_in:,}"
    yield f"{variant.tokens_out:,}"
    yield money(variant.total_cost_nanousd)
    yield milliseconds(variant.latency_ms_p50)
    yield milliseconds(variant.latency_ms_p95)


def closing_lines(summary: ExperimentSummary, target: Target) -> Iterator[str]:
    experiment = summary.experiment
    yield state_line(experiment)
    yield cache_line(experiment)
    labels = {variant.variant_id: variant.label for variant in summary.variants}
    for gate in summary.gates:
        yield gate_line(gate, labels)
    yield from where_lines(experiment, target)


def state_line(experiment: Experiment) -> str:
    counts = experiment.counts
    parts = [f"{counts.completed:,} completed", f"{counts.failed:,} failed"]
    if counts.cancelled:
        parts.append(f"{counts.cancelled:,} cancelled")
    if counts.running:
        parts.append(f"{counts.running:,} running")
    if counts.pending:
        parts.append(f"{counts.pending:,} {'never started' if experiment.state.ended else 'pending'}")
    state = experiment.state.value + (f" ({one_line(experiment.reason)})" if experiment.reason else "")
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
    done = counts.completed + counts.failed + counts.cancelled
    saved = f", saved {money(experiment.cost_saved_nanousd)}"
    if counts.cached and counts.cached == done:
        who = "the run was" if done == 1 else f"all {done:,} runs were"
        return f"Cache: {who} served from the cache{saved}"
    if counts.cached:
        return f"Cache: {counts.cached:,} of {count(done, 'run')} served from the cache{saved}"
    if experiment.cost_saved_nanousd:
        return f"Cache: no run was served from the cache as a whole, some calls were{saved}"
    return f"Cache: none of {count(done, 'run')} served from the cache"


def gate_line(gate: GateResult, labels: dict[str, str]) -> str:
    whose = f" [{printable(labels.get(gate.variant_id, gate.variant_id))}]" if gate.variant_id else ""
    got = "cannot be computed" if gate.got is None else f"{gate.got:.4g}"
    sign = "at most" if gate.name.startswith("max_") else "at least"
    verdict = click.style("pass", fg="green") if gate.passed else click.style("MISS", fg="red")
    return f"Gate {verdict}: {gate.name}{whose}: {got}, wanted {sign} {gate.wanted:g}"


def where_lines(experiment: Experiment, target: Target) -> Iterator[str]:
    name = experiment.experiment_id
    yield f"Results: experiment {name} in {target.described()}"
    yield f"  promptlooper show {name}{target.option()}"
    yield f"  promptlooper export {name} -o results.jsonl{target.option()}"
    if experiment.state is ExperimentState.CANCELLED and experiment.reason == "BUDGET":
        yield "The budget was used up: raise limits.budget_usd or budget_tokens to run the rest."
