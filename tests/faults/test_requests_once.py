"""B6 and B7: one request_id makes one experiment, however often and wherever it is sent."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack

import pytest
from fault_checks import (
    Told,
    Watched,
    answer_problems,
    calls_of,
    check,
    event_problems,
    known_commits,
    result_problems,
    row_problems,
    told,
    total_problems,
    undisturbed,
    watch_problems,
)
from fault_lab import answer_to, answering, cluster
from fault_specs import three_stages

from promptlooper.errors import RequestIdReused
from promptlooper.experiment import Experiment, ExperimentState
from promptlooper.experiments import ExperimentFilter
from promptlooper.testing.provider import FakeProvider, ProviderRequest, Reply
from promptlooper.testing.proxy import Cut

pytestmark = pytest.mark.timeout(300)
RUNS, AT_ONCE, RUNNERS = 100, 100, 3
COMMITTED = b"C\0\0\0\x0bCOMMIT\0"  # PostgreSQL's answer to COMMIT: CommandComplete, its length, its tag


def all_completed(known: Told, runs: int) -> None:
    """Events and rows are right, and there is the provider's answer to every stage of that many runs."""
    check(event_problems(known.events), row_problems(known), answer_problems(known.runs))
    assert [(run.run_index, run.passed) for run in known.runs] == [(n, True) for n in range(runs)]


async def test_a_hundred_creates_at_once_with_one_request_id_make_one_experiment(seed: int) -> None:
    async with FakeProvider(answering(seed, 0.0, 0.02)) as provider, cluster(provider, runners=RUNNERS) as lab:
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(lab.client(runner)) for runner in lab.runners]
            client, spec = clients[0], three_stages(5)
            created = await asyncio.gather(*(clients[n % RUNNERS].create(spec, "all-the-same") for n in range(AT_ONCE)))
            answers = Counter(experiment.experiment_id for experiment in created)
            (experiment_id,) = answers
            listed = await client.list_experiments(ExperimentFilter())
            assert [experiment.experiment_id for experiment in listed.experiments] == [experiment_id]
            watched = Watched()
            await watched.follow(client.watch(experiment_id))
            known = await told(client, experiment_id)
            all_completed(known, 5)
            assert max(provider.calls.values()) == 1
            again = await client.create(spec, "all-the-same")
            assert (again.experiment_id, again.state) == (experiment_id, known.experiment.state)
            with pytest.raises(RequestIdReused, match="all-the-same"):
                await client.create(three_stages(6), "all-the-same")
            assert len((await client.list_experiments(ExperimentFilter())).experiments) == 1
        print(f"{AT_ONCE} creates over {RUNNERS} Runners: {len(answers)} experiment, {len(provider.history)} calls")


async def test_of_two_bodies_at_once_with_one_request_id_one_is_created_and_the_other_refused(seed: int) -> None:
    async with FakeProvider(answering(seed, 0.0, 0.02)) as provider, cluster(provider, runners=RUNNERS) as lab:
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(lab.client(runner)) for runner in lab.runners]
            specs = three_stages(5), three_stages(6)
            asked = (clients[n % RUNNERS].create(specs[n % 2], "one-for-two") for n in range(AT_ONCE))
            heard = await asyncio.gather(*asked, return_exceptions=True)
            created = [answer for answer in heard if isinstance(answer, Experiment)]
            refused = [answer for answer in heard if isinstance(answer, RequestIdReused)]
            assert (len(created), len(refused)) == (AT_ONCE // 2, AT_ONCE // 2), Counter(map(type, heard))
            (experiment_id,) = {experiment.experiment_id for experiment in created}
            listed = (await clients[0].list_experiments(ExperimentFilter())).experiments
            assert [experiment.experiment_id for experiment in listed] == [experiment_id]
            await Watched().follow(clients[0].watch(experiment_id))
            all_completed(await told(clients[0], experiment_id), created[0].counts.total)
        print(f"{AT_ONCE} creates with one request_id and two bodies: {len(created)} answers of one, others refused")


async def test_a_create_whose_commit_was_not_heard_is_answered_by_its_retry(seed: int) -> None:
    """The connection ends after the COMMIT: nobody here knows whether it happened, and the client asks again."""
    proxied = ("postgres",)
    async with FakeProvider(answering(seed, 0.0, 0.02)) as provider, cluster(provider, proxied=proxied) as lab:
        (proxy,) = lab.proxies["postgres"]
        proxy.cut_at = Cut(before=COMMITTED, after=b"INSERT INTO experiments", times=9)
        async with lab.client() as client:
            spec = three_stages(5)
            created = await client.create(spec, "heard-late")
            assert proxy.cut_at.made == 1, "the first one was committed, so the second stores nothing"
            watched = Watched()
            await watched.follow(client.watch(created.experiment_id))
            known = await told(client, created.experiment_id)
            all_completed(known, 5)
            assert max(provider.calls.values()) == 1
            again = await client.create(spec, "heard-late")
            assert again.experiment_id == created.experiment_id
            listed = await client.list_experiments(ExperimentFilter())
            assert [experiment.experiment_id for experiment in listed.experiments] == [created.experiment_id]
        print(f"{proxy.cut_at.made} answer to a COMMIT lost, {len(listed.experiments)} experiment")


async def test_a_resume_and_a_retry_whose_commits_were_not_heard_are_answered_by_their_retries(seed: int) -> None:
    """Each is done once: one generation more, one event, no call that was made before."""
    proxied, runs, failing = ("postgres",), 12, 3
    answer, refusing = answering(seed, 0.05, 0.2), True

    async def answer_or_refuse(request: ProviderRequest) -> Reply:
        if refusing and request.question.startswith(f"second {failing} "):
            return Reply("no", status=400)
        return await answer(request)

    async with FakeProvider(answer_or_refuse) as provider, cluster(provider, proxied=proxied) as lab:
        (proxy,) = lab.proxies["postgres"]
        async with lab.client() as client:
            experiment_id = (await client.create(three_stages(runs, max_concurrency=4), "interrupted")).experiment_id
            await provider.eventually(lambda p: len(p.history) >= 4)
            await client.pause(experiment_id)
            for ask, request_id in ((client.resume, "resume-unheard"), (client.retry, "retry-unheard")):
                proxy.cut_at = cut = Cut(before=COMMITTED, after=b"INSERT INTO requests", times=9)
                before = await client.get(experiment_id)
                asked = await ask(experiment_id, request_id)
                assert cut.made == 1, "the first one was committed, so the second stores nothing"
                assert asked.generation == before.generation + 1
                watched = Watched()
                await watched.follow(client.watch(experiment_id))
                assert watched.terminal is not None
                assert watched.terminal.counts.failed == 1
                again = await ask(experiment_id, request_id)  # though there is something to retry
                assert (again.generation, again.state) == (asked.generation, ExperimentState.COMPLETED)
            proxy.cut_at, refusing = None, False
            await client.retry(experiment_id, "another")
            await Watched().follow(client.watch(experiment_id))
            known = await told(client, experiment_id)
        all_completed(known, runs)
        kinds = Counter(event.kind for event in known.events)
        assert (kinds["experiment.resumed"], kinds["experiment.completed"], known.experiment.generation) == (3, 3, 4)
        asked_twice = [question for question, times in provider.calls.items() if times > 1]
        assert asked_twice == [f"second {failing} after {answer_to(f'first {failing}')}"]
        assert provider.calls[asked_twice[0]] == 3
        print(f"a resume and a retry whose COMMIT was not heard: generation {known.experiment.generation}, {kinds}")


async def test_turns_whose_commits_were_not_heard_lose_and_repeat_nothing(seed: int) -> None:
    """Every seventh COMMIT of any kind goes unheard: of turns, of renewals, of creates, of reads."""
    proxied = ("postgres",)
    async with FakeProvider(answering(seed, 0.01, 0.1)) as provider:
        async with cluster(provider, runners=2, lease_ttl=5, proxied=proxied) as lab, lab.client() as client:
            quiet = await undisturbed(client, three_stages(RUNS))
            provider.history.clear()
            created = await client.create(three_stages(RUNS), "cut")
            for proxy in lab.proxies["postgres"]:
                proxy.cut_at = Cut(before=COMMITTED, every=7, times=15)
            watched = Watched()
            await watched.follow(client.watch(created.experiment_id))
            known = await told(client, created.experiment_id)
            calls = calls_of(provider.history, (), known.runs, known_commits(watched, known.events))
            all_completed(known, RUNS)
            check(
                watch_problems(watched, known.events),
                calls.problems,
                result_problems(known.runs, quiet.runs),
                total_problems(known.experiment, quiet.experiment),
            )
            adopted = sum(len(runner.said("after an uncertain commit")) for runner in lab.runners)
            cuts = sum(proxy.cut_at.made for proxy in lab.proxies["postgres"] if proxy.cut_at)
            assert cuts >= 10
            assert adopted >= 1
        print(f"{cuts} answers to COMMIT lost, {adopted} times runs adopted, {calls.calls} calls, none repeated")
