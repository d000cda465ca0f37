"""B6 and B7: one request_id makes one experiment, however often and wherever it is sent."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from fault_checks import Watched, check, event_problems, row_problems, told
from fault_lab import answering, cluster
from fault_specs import three_stages

from promptlooper.errors import RequestIdReused
from promptlooper.experiments import ExperimentFilter
from promptlooper.testing.provider import FakeProvider

pytestmark = pytest.mark.timeout(300)
AT_ONCE = 100


async def test_a_hundred_creates_at_once_with_one_request_id_make_one_experiment(seed: int) -> None:
    async with FakeProvider(answering(seed, 0.0, 0.02)) as provider, cluster(provider, runners=3) as lab:
        async with lab.client() as client:
            spec = three_stages(5)
            created = await asyncio.gather(*(client.create(spec, "all-the-same") for _ in range(AT_ONCE)))
            answers = Counter(experiment.experiment_id for experiment in created)
            (experiment_id,) = answers
            listed = await client.list_experiments(ExperimentFilter())
            assert [experiment.experiment_id for experiment in listed.experiments] == [experiment_id]
            watched = Watched()
            await watched.follow(client.watch(experiment_id))
            known = await told(client, experiment_id)
            check(event_problems(known.events), row_problems(known))
            assert max(provider.calls.values()) == 1
            again = await client.create(spec, "all-the-same")
            assert (again.experiment_id, again.state) == (experiment_id, known.experiment.state)
            with pytest.raises(RequestIdReused, match="all-the-same"):
                await client.create(three_stages(6), "all-the-same")
            assert len((await client.list_experiments(ExperimentFilter())).experiments) == 1
        print(f"{AT_ONCE} creates over 3 Runners: {len(answers)} experiment, {len(provider.history)} calls")
