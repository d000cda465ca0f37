"""The Runner's metrics. No query is made for them: the engine looks at the queue several times a second anyway."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from promptlooper.experiment import ExperimentState
from promptlooper.rpc.metrics import counter, counters, gauge, gauges, histograms
from promptlooper.runner.counts import EventLag, RunnerCounts
from promptlooper.runner.events.hub import Hub
from promptlooper.runner.events.relay import Relay
from promptlooper.runner.store.database import Database

_ENDS = {"run.completed": "completed", "run.failed": "failed", "run.cancelled": "cancelled"}


class RunnerMetrics(Collector):
    """Without a relay no events are published to NATS."""

    def __init__(self, counts: RunnerCounts, slots: int, database: Database, hub: Hub, relay: Relay | None) -> None:
        self._counts, self._slots, self._database, self._hub, self._relay = counts, slots, database, hub, relay

    def collect(self) -> Iterator[Metric]:
        yield from self._of_queue()
        yield from self._of_work()
        yield gauge("database_up", "0 while the database does not answer.", self._database.is_up)
        yield gauge("watchers", "Watches that are open on this Runner.", self._hub.watchers)
        if self._relay is not None:
            yield gauge("nats_up", "Whether this Runner is connected to NATS.", self._relay.is_connected)
            yield from _of_events(self._relay.lag)

    def _of_queue(self) -> Iterator[Metric]:
        queue = self._counts.queue
        yield gauge("claimable_runs", "Runs that could start now; the same from every Runner.", queue.claimable)
        yield gauge("pending_runs", "Runs that wait, also for a cap, a pause, a time or a batch.", queue.pending)
        yield gauge(
            "claimable_age_seconds",
            "How long some experiment has had claimable runs of which none was claimed.",
            queue.age(time.monotonic()),
        )
        states = {state.value.lower(): queue.states[state.value] for state in ExperimentState if not state.ended}
        yield gauges("experiments", "Experiments that have not ended.", ("state",), states)
        yield gauge("runners", "Runners with a lease.", queue.runners)

    def _of_work(self) -> Iterator[Metric]:
        counts = self._counts
        yield gauge("runs_in_flight", "Runs that this Runner holds.", counts.in_flight)
        yield gauge("run_slots", "Runs that this Runner may hold.", self._slots)
        yield counter("runs_claimed", "Runs claimed, again after a wait too.", counts.claimed)
        ended = {state: counts.events[kind] for kind, state in _ENDS.items()}
        yield counters("runs_ended", "Runs whose end was stored.", ("state",), ended)
        yield gauge("runs_executing", "Runs under way for callers of ExecuteRun.", counts.executing)
        executed = {state: counts.executed[state] for state in _ENDS.values()}
        yield counters("runs_executed", "Runs of ExecuteRun that ended; they are not stored.", ("state",), executed)
        seconds = {(): counts.run_seconds}
        help = "From a run's claim here, or its caller's request, to its end."
        yield histograms("run_duration_seconds", help, (), seconds)
        yield counter("runs_taken_back", "Runs taken back from dead Runners.", counts.taken_back)
        yield counter("lease_losses", "Leases that this Runner lost: it was silent for too long.", counts.leases_lost)
        yield counter("outcomes_refused", "Outcomes of runs that another Runner had taken.", counts.refused)
        answers = {source: counts.answers[source] for source in ("cache", "model")}
        yield counters("stage_answers", "Where stages got their answers.", ("source",), answers)
        yield counter("cache_saved_usd", "What answers of the cache had cost.", counts.saved_nanousd / 1e9)
        yield counter("cache_failures", "Calls to the Cache that failed.", counts.cache_failures)
        yield histograms(
            "turn_duration_seconds", "How long turns took: the Runner's transactions.", (), {(): counts.turn_seconds}
        )
        yield counters("events_committed", "Events stored by turns.", ("kind",), counts.events)


def _of_events(lag: EventLag) -> Iterator[Metric]:
    yield gauge("events_unpublished", "Events committed and not published; 0 where another publishes.", lag.unpublished)
    yield gauge("event_lag_seconds", "For how long there have been unpublished events.", lag.seconds(time.monotonic()))
    yield counter("events_published", "Events that NATS has acknowledged.", lag.published)
