"""Looks at every commit before it happens, and at every call, and says what breaks a promise."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from simulation.failures import Failures, could_go_on
from simulation.provider import Asked, Call, cost_of, tokens_of
from simulation.rows import ProgressRow, RunRow, SeenEvent
from simulation.schedule import LEASE_TTL, Schedule

from promptlooper.testing.simulation import Process, ProcessState, SimulatedLoop


@dataclass(slots=True)
class Holder:
    """A Runner's id and the process that took it."""

    process: Process
    current: Callable[[], str]  # the id that the process goes by now
    works: Callable[[], bool]  # False once it has ended
    troubled_at: Callable[[], float]  # when something last went wrong for it alone


_PROGRESS = f"SELECT {', '.join(ProgressRow._fields)} FROM progress ORDER BY rowid"
_RUNS = f"SELECT {', '.join(RunRow._fields)} FROM runs WHERE experiment_id = ?"
_EVENTS = """SELECT event_seq, kind, generation, run_index, json_extract(detail_json, '$.stage_index')
    FROM events WHERE experiment_id = ? AND event_seq > ? ORDER BY event_seq"""
_LIVING = "SELECT runner_id FROM runners WHERE NOT dead"


class Observer:
    def __init__(self, loop: SimulatedLoop, schedule: Schedule) -> None:
        self._loop = loop
        self._failures = Failures(loop, schedule, self.breaks)
        self.broken: list[str] = []
        self.trace: list[str] = []
        self.progress: dict[str, ProgressRow] = {}
        self.runs: dict[str, dict[int, RunRow]] = defaultdict(dict)
        self.events: dict[str, list[SeenEvent]] = defaultdict(list)
        self.ids: dict[str, str] = {}  # of experiments, by name
        self._names: dict[str, str] = {}
        self.holders: dict[str, Holder] = {}  # by runner_id
        self.excuses: Counter[tuple[str, int, int]] = Counter()  # (experiment_id, run, stage): may be asked once more
        self.begun_dead = 0  # calls begun by a process that did not know yet that it had lost its runs
        self.longest_outage = 0.0
        self._living: set[str] = set()
        self.billed: Counter[str] = Counter()  # nanousd that the provider may want, by experiment
        self.billed_tokens: Counter[str] = Counter()
        self._most_budget: dict[str, int] = {}
        self._changes = 0

    def breaks(self, what: str) -> None:
        self.broken.append(f"at {self._loop.time():.6f} s: {what}")

    def _record(self, *facts: object) -> None:
        self.trace.append(" ".join(map(str, (round(self._loop.time() * 1e6), *facts))))

    def digest(self) -> str:
        return hashlib.sha256("\n".join(self.trace).encode()).hexdigest()

    def after_write(self, connection: sa.Connection, writer: Process) -> None:
        raw: Any = connection.connection.driver_connection
        if raw.total_changes == self._changes:
            return
        self._changes = raw.total_changes
        living = {row[0] for row in raw.execute(_LIVING)}
        for runner_id in sorted(self._living - living):
            self._check_death(runner_id, writer)
        self._living = living
        for values in raw.execute(_PROGRESS).fetchall():
            now = ProgressRow(*values)
            experiment_id = now.experiment_id
            before = self.progress.get(experiment_id)
            if before is None:
                named = raw.execute("SELECT name FROM experiments WHERE experiment_id = ?", (experiment_id,))
                name = named.fetchone()[0]
                if name in self.ids:
                    self.breaks(f"a second experiment {name} was created by one request_id")
                self.ids[name], self._names[experiment_id] = experiment_id, name
            rows = {row[0]: RunRow(*row) for row in raw.execute(_RUNS, (experiment_id,))}
            if now == before and rows == self.runs[experiment_id]:
                continue
            seq = before.event_seq if before else 0
            new = [SeenEvent(*event) for event in raw.execute(_EVENTS, (experiment_id, seq))]
            for number, event in enumerate(new, seq + 1):
                self._record(experiment_id, *event)
                if event.event_seq != number:
                    self.breaks(f"{experiment_id}: event {number} is missing before {event.event_seq}")
            if now.event_seq != seq + len(new):
                self.breaks(f"{experiment_id}: event_seq is {now.event_seq} after event {seq + len(new)}")
            self.events[experiment_id] += new
            self._check_books(now, before, rows.values())
            self._check_runs(now, rows, new, writer)
            self.progress[experiment_id], self.runs[experiment_id] = now, rows

    def _check_death(self, runner_id: str, writer: Process) -> None:
        """A Runner that ran and could renew its lease must not be taken for dead."""
        holder = self.holders[runner_id]
        process = holder.process
        if process is writer or process.state is not ProcessState.RUNNING or not holder.works():
            return
        if writer.killed and writer.name.partition("-")[0] == process.name.partition("-")[0]:
            return  # the last word of its predecessor of the same name, which came late
        if self._loop.time() - holder.troubled_at() > 2 * LEASE_TTL + self.longest_outage:
            self.breaks(f"{writer.name} took {runner_id} for dead, which lives and had no trouble of its own")

    def _check_books(self, now: ProgressRow, before: ProgressRow | None, rows: Iterable[RunRow]) -> None:
        say, who, rows = self.breaks, now.experiment_id, list(rows)
        states = Counter(row.state for row in rows)
        for name, state in (("running", "RUNNING"), ("returned", "PENDING")):
            if getattr(now, name) != states[state]:
                say(f"{who}: {name} is {getattr(now, name)}, and {states[state]} runs are {state}")
        for name in ("completed", "failed"):
            if getattr(now, name) != states[name.upper()]:
                say(f"{who}: {name} is {getattr(now, name)}, and {states[name.upper()]} runs are")
        pending = now.total - now.next_index + now.returned
        if pending + now.running + now.completed + now.failed + now.cancelled != now.total:
            say(f"{who}: the counts do not sum up to {now.total}: {now}")
        if now.running > max(now.max_concurrency, before.running if before else 0):
            say(f"{who}: {now.running} runs are running, and max_concurrency is {now.max_concurrency}")
        for what in ("nanousd", "tokens"):
            budget, reserved = getattr(now, f"budget_{what}"), getattr(now, f"reserved_{what}")
            held = sum(getattr(row, f"reserved_{what}") for row in rows if row.state == "RUNNING")
            if budget is not None and now.counted(what) > budget:
                say(f"{who}: {now.counted(what)} {what} are more than the budget of {budget}: {now}")
            if reserved != held:
                say(f"{who}: {reserved} {what} are reserved, and its running runs hold {held}")
        if now.budget_nanousd is not None:
            self._most_budget[who] = max(now.budget_nanousd, self._most_budget.get(who, 0))
        if before is None:
            return
        if now.reason == "BUDGET" and now.ended and not before.ended:
            for left in could_go_on(now, before, self.runs[who]):
                say(f"{who} was ended for its budget, which admits {left}")
        if before.ended and now.generation == before.generation and now.event_seq != before.event_seq:
            kinds = [event.kind for event in self.events[who] if event.event_seq > before.event_seq]
            if set(kinds) != {"experiment.updated"}:
                say(f"{who}: {kinds} after its end")

    def _check_runs(
        self, progress: ProgressRow, rows: dict[int, RunRow], new: list[SeenEvent], writer: Process
    ) -> None:
        experiment_id, known = progress.experiment_id, self.runs[progress.experiment_id]
        waiting = {event.run_index for event in new if event.kind == "run.waiting"}
        for index, now in rows.items():
            before = known.get(index)
            if now == before:
                continue
            who = f"{experiment_id}-{index}"
            if before is not None and before.state == "RUNNING":
                own = self._is_of(before.owner, writer)
                if not own and before.owner in self._living:
                    self.breaks(f"{who} was held by {before.owner}, which lives, and {writer.name} changed it to {now}")
                went_on = now.next_stage > before.next_stage or now.state == "COMPLETED" or index in waiting
                if not (own and went_on):
                    self.excuses[experiment_id, index, before.next_stage] += 1
            if now.state == "FAILED" and (before is None or before.state != "FAILED"):
                self._failures.judge(experiment_id, self._names[experiment_id], now, writer)
            if now.state == "RUNNING" and (before is None or now.lease_epoch != before.lease_epoch):
                self._failures.claimed(experiment_id, index)
                if not self._is_of(now.owner, writer) or now.owner not in self._living:
                    self.breaks(f"{who} was claimed for {now.owner}, which is dead or not the claimant {writer.name}")
                if now.lease_epoch != (0 if before is None else before.lease_epoch) + 1:
                    self.breaks(f"{who}: epoch {now.lease_epoch} came after {before and before.lease_epoch}")
            if before is not None and now.next_stage not in (before.next_stage, before.next_stage + 1):
                self.breaks(f"{who}: stage {now.next_stage} came after {before.next_stage}")

    def _is_of(self, runner_id: str | None, process: Process) -> bool:
        holder = self.holders.get(runner_id or "")
        return holder is not None and holder.process is process and holder.current() == runner_id

    def begins(self, call: Call) -> None:
        """A call begins: only for a run and stage that its process holds, or lost without knowing."""
        asked = call.asked
        self._record("call", call.process.name, asked.name, asked.run_index, asked.stage_index)
        experiment_id = self.ids[asked.name]
        row = self.runs[experiment_id].get(asked.run_index)
        who = f"{experiment_id}-{asked.run_index} stage {asked.stage_index}"
        if row is None:
            self.breaks(f"{call.process.name} asks for {who}, which nobody has claimed")
            return
        holds = row.state == "RUNNING" and self._is_of(row.owner, call.process)
        if not holds or row.next_stage != asked.stage_index:
            current = [i for i, h in self.holders.items() if h.process is call.process and h.current() == i]
            if self._living.isdisjoint(current):
                self.begun_dead += 1
            else:
                self.breaks(f"{call.process.name} asks for {who}, which it does not hold: {row}")
        self._failures.called(experiment_id, call)
        self._bill(experiment_id, call)

    def _bill(self, experiment_id: str, call: Call) -> None:
        if not call.maybe_paid:
            return
        self.billed[experiment_id] += cost_of(call.prompt)
        self.billed_tokens[experiment_id] += tokens_of(call.prompt)
        most = self._most_budget.get(experiment_id)
        if most is not None and self.billed[experiment_id] > most:
            self.breaks(f"{experiment_id}: calls for {self.billed[experiment_id]} nanousd, the budget is {most}")

    def check_calls(self, calls: Iterable[Call]) -> None:
        """A question is asked once, and once more for each time that its run was lost in mid-call."""
        asked: Counter[Asked] = Counter(call.asked for call in calls if call.maybe_paid)
        for question, times in asked.items():
            experiment_id = self.ids[question.name]
            excused = self.excuses[experiment_id, question.run_index, question.stage_index]
            if times > 1 + excused:
                who = f"{experiment_id}-{question.run_index} stage {question.stage_index}"
                self.breaks(f"{who} was asked {times} times, and lost {excused} times")
