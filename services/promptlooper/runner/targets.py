"""One run out of an experiment: a variant on a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from promptlooper.errors import InvalidArgument
from promptlooper.experiment import ExecutionPolicy, ExperimentSpec, InputRow
from promptlooper.runner.runs import Runs
from promptlooper.runner.sources import Given, Sources
from promptlooper.runner.spec.expand import Variant, variants
from promptlooper.runner.spec.rows import row_of, with_ids
from promptlooper.runner.store import repository
from promptlooper.runner.store.database import Database
from promptlooper.sources import RunTarget

SHOWN = 10  # variants in a message


class Targets:
    """Makes experiments of one run."""

    def __init__(self, database: Database, sources: Sources, runs: Runs) -> None:
        self._database, self._sources, self._runs = database, sources, runs

    async def one_run(self, target: RunTarget) -> Given:
        """The experiment with nothing in it but the target's run. Its problems have no lines: what was written is not
        what is run. Raises InvalidArgument where the target leaves open which run it is."""
        if isinstance(target.experiment, str):
            source = await self._runs.source(target.experiment)
            spec, chosen, inputs = source.spec, source.variants, source.grid.inputs
            if not target.has_row and inputs == 1:
                row = partial(repository.input_at, experiment_id=target.experiment, input_index=0)
                spec = replace(spec, inputs=(await self._database.read(row),))
        else:
            spec = (await self._sources.given(target.experiment)).spec
            chosen, inputs = variants(spec), len(spec.inputs)
        return Given(narrowed(spec, _variant(chosen, target.variant_id), _row(spec, target, inputs)))


def narrowed(spec: ExperimentSpec, variant: Variant, row: InputRow) -> ExperimentSpec:
    """Only this variant on only this row, once, asked directly: somebody waits. Gates speak of many runs, and are left
    out."""
    pipeline = replace(variant.pipeline, models=(variant.model_entry,))
    alone = replace(spec, pipelines=(pipeline,), sweep=(variant.point,), repeats=1, inputs=(row,), gates=())
    return replace(alone, execution=ExecutionPolicy())


def _variant(chosen: Sequence[Variant], variant_id: str) -> Variant:
    if not variant_id and len(chosen) == 1:
        return chosen[0]
    for variant in chosen:
        if variant.variant_id == variant_id:
            return variant
    known = "; ".join(f"{variant.variant_id} ({variant.label})" for variant in chosen[:SHOWN])
    more = f"; and {len(chosen) - SHOWN} more" if len(chosen) > SHOWN else ""
    what = f"there is no variant {variant_id!r}" if variant_id else "the experiment has several variants"
    raise InvalidArgument(f"{what}: set variant_id to one of {known}{more}", field="variant_id")


def _row(spec: ExperimentSpec, target: RunTarget, inputs: int) -> InputRow:
    if target.has_row:
        return row_of_target(target)
    if inputs != 1:
        raise InvalidArgument(
            f"the experiment has {inputs} inputs: set input_json to the row that is to be run", field="input_json"
        )
    return spec.inputs[0]


def row_of_target(target: RunTarget) -> InputRow:
    """The row that the target brings. Raises InvalidArgument where it is none."""
    try:
        return with_ids([row_of(target.row)])[0]
    except ValueError as error:
        raise InvalidArgument(f"input_json: {error}", field="input_json") from None
