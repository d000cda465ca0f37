"""How experiments come into being: read, completed, checked, stored once for each request_id, and taken up."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial

from promptlooper.clock import Clock, IdMaker
from promptlooper.completion import CompletionGateway
from promptlooper.errors import InvalidArgument, InvalidExperiment, Problem
from promptlooper.experiment import ExperimentSpec
from promptlooper.experiments import Validation
from promptlooper.failpoints import Failpoints
from promptlooper.runner.bounds import Bound, cheapest
from promptlooper.runner.engine import Engine
from promptlooper.runner.render import Renderer
from promptlooper.runner.sources import LONG_WORK, Given
from promptlooper.runner.spec.check_services import check
from promptlooper.runner.spec.expand import stage_model, variants
from promptlooper.runner.spec.normal import body_sha256
from promptlooper.runner.store import control, repository, requests
from promptlooper.runner.store.database import Database
from promptlooper.runner.store.rows import microseconds
from promptlooper.scoring import ScoringService
from promptlooper.tracing import current

LONGEST_INPUT_ID = 200  # characters: it is in every event
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


@dataclass(frozen=True, slots=True)
class Creation:
    """Checks and stores experiments."""

    database: Database
    engine: Engine
    gateway: CompletionGateway
    scoring: ScoringService
    renderer: Renderer
    clock: Clock
    new_id: IdMaker
    failpoints: Failpoints

    async def create(self, given: Given, request_id: str) -> str:
        """The experiment_id, of the first call with the request_id. Raises InvalidExperiment, RequestIdReused."""
        check_request_id(request_id)
        spec = given.spec
        if request_id:  # also where what it needs has gone since: the first answer stands
            known = partial(requests.known, request_id=request_id, body_sha256=body_sha256(spec))
            if (experiment_id := await self.database.read(known)) is not None:
                await self._go_on_with(experiment_id)
                return experiment_id
        validation = await check(spec, self.gateway, self.scoring)
        if problems := (*validation.problems, *_long_ids(spec)):
            raise InvalidExperiment(given.located(problems))
        unit = await self._first_bound(spec)
        new = repository.NewExperiment(
            self.new_id(), spec, body_sha256(spec), request_id, unit.nanousd, unit.tokens, current.get()
        )
        create = partial(repository.create, new=new, now_us=self._now_us(), failpoints=self.failpoints)
        experiment_id = await self.database.write(create, within=LONG_WORK)
        self.failpoints.hit("create_after_commit")
        self.engine.take_up(experiment_id)
        return experiment_id

    async def validate(self, given: Given) -> Validation:
        return given.validation(await check(given.spec, self.gateway, self.scoring))

    async def _go_on_with(self, experiment_id: str) -> None:
        """An embedded Runner takes up what was interrupted; others work on it anyway."""
        if self.engine.own_only:
            take_up = partial(control.take_up, experiment_id=experiment_id, now_us=self._now_us())
            await self.database.write(take_up)
            self.engine.take_up(experiment_id)

    async def _first_bound(self, spec: ExperimentSpec) -> Bound:
        """The first guess at what calls reserve."""
        if spec.limits.budget_nanousd is None and spec.limits.budget_tokens is None:
            return Bound(0, 0)
        chosen = variants(spec)
        models = sorted({stage_model(variant, variant.pipeline.stages[0]) for variant in chosen})
        checks = await self.gateway.check_models(models)
        prices = {one.model: one.most_in_batch if spec.execution.is_batch else one.price for one in checks}
        return cheapest(spec, chosen, prices, self.renderer)

    def _now_us(self) -> int:
        return microseconds(self.clock.now())


def check_request_id(request_id: str) -> None:
    if request_id and not REQUEST_ID.fullmatch(request_id):
        raise InvalidArgument(
            f"request_id {request_id!r} is not 1 to 128 letters, digits or ._:-; choose another", field="request_id"
        )


def _long_ids(spec: ExperimentSpec) -> list[Problem]:
    return [
        Problem(f"inputs[{index}]", f"the id is longer than {LONGEST_INPUT_ID} characters; give a shorter `_id`")
        for index, row in enumerate(spec.inputs)
        if len(row.input_id) > LONGEST_INPUT_ID
    ]
