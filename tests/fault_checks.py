"""What was promised, checked by what a client can see: messages of a watch, rows, totals, and the provider's own books.

Each function returns what is wrong, a sentence each; nothing is right.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field

from fault_lab import Death, answer_to

from promptlooper.experiment import Experiment, ExperimentSpec, ExperimentState
from promptlooper.experiments import Experiments, WatchMessage
from promptlooper.run import Event, Run, RunState, StageResult
from promptlooper.testing.provider import ProviderCall

ENDS = {
    "experiment.completed": ExperimentState.COMPLETED,
    "experiment.cancelled": ExperimentState.CANCELLED,
    "experiment.failed": ExperimentState.FAILED,
}
AFTER_THE_END = frozenset({"experiment.updated"})
# Seconds: what a Runner has sent may reach the provider after its death. Its next life needs longer to begin.
UNDER_WAY = 0.5
STORED_WITHIN = 2.0  # seconds: an answer is committed so soon after the provider gave it, also on a busy machine
RUN_ENDS = {
    "run.completed": RunState.COMPLETED,
    "run.failed": RunState.FAILED,
    "run.cancelled": RunState.CANCELLED,
}


@dataclass
class Watched:
    """What a watch has told, and when (monotonic)."""

    messages: list[WatchMessage] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    async def follow(self, watch: AsyncIterator[WatchMessage]) -> None:
        async for message in watch:
            self.messages.append(message)
            self.times.append(time.monotonic())

    @property
    def events(self) -> list[Event]:
        return [message.event for message in self.messages if message.event is not None]

    @property
    def terminal(self) -> Experiment | None:
        return self.messages[-1].terminal if self.messages else None

    def committed(self) -> dict[tuple[int, int], float]:
        """When the end of each (run_index, stage_index) was known here: it was committed before."""
        return {
            (message.event.run_index or 0, int(message.event.detail["stage_index"])): at
            for message, at in zip(self.messages, self.times, strict=True)
            if message.event is not None and message.event.kind == "run.stage_completed"
        }


def committed_by_clock(events: Sequence[Event]) -> dict[tuple[int, int], float]:
    """The same from the times in events, for who had no watch open: only on the machine of the Runner."""
    began = time.monotonic() - time.time()
    return {
        (event.run_index or 0, int(event.detail["stage_index"])): began + event.event_time.timestamp()
        for event in events
        if event.kind == "run.stage_completed"
    }


def known_commits(watched: Watched, events: Sequence[Event]) -> dict[tuple[int, int], float]:
    """The sooner of both: a watch may hear late, where it lost its Runner."""
    by_clock = committed_by_clock(events)
    return by_clock | {place: min(at, by_clock.get(place, at)) for place, at in watched.committed().items()}


@dataclass(frozen=True, slots=True)
class Told:
    """Everything that a client can know of an experiment."""

    experiment: Experiment
    runs: list[Run]
    events: list[Event]


async def told(client: Experiments, experiment_id: str) -> Told:
    events: list[Event] = []
    token = ""
    while True:
        page = await client.list_events(experiment_id, page_size=1_000, page_token=token)
        events.extend(page.events)
        if not (token := page.next_page_token):
            break
    runs = [run async for run in client.export(experiment_id)]
    return Told(await client.get(experiment_id), runs, events)


async def undisturbed(client: Experiments, spec: ExperimentSpec) -> Told:
    """What comes of an experiment when nothing is done to it: checked too, as others are compared with it."""
    created = await client.create(spec)
    await Watched().follow(client.watch(created.experiment_id))
    known = await told(client, created.experiment_id)
    check(event_problems(known.events), row_problems(known), answer_problems(known.runs))
    return known


def check(*problems: Sequence[str]) -> None:
    """Raises AssertionError with all of them."""
    found = [problem for some in problems for problem in some]
    assert not found, f"{len(found)} promises are broken:\n" + "\n".join(found[:40])


def watch_problems(watched: Watched, stored: Sequence[Event]) -> list[str]:
    """A whole watch: a snapshot, every event after it once and in order, one terminal message at the end."""
    messages = watched.messages
    if not messages or messages[0].snapshot is None:
        return ["the watch does not begin with a snapshot"]
    found = []
    terminals = [number for number, message in enumerate(messages) if message.terminal is not None]
    if terminals != [len(messages) - 1]:
        found.append(f"of {len(messages)} messages, those at {terminals} are terminal, not just the last")
    start = messages[0].event_seq
    seqs = [event.event_seq for event in watched.events]
    if seqs != list(range(start + 1, start + 1 + len(seqs))):
        found.append(f"the events after the snapshot of {start} are not gapless: {_first_gap(start, seqs)}")
    if watched.events != [event for event in stored if start < event.event_seq <= start + len(seqs)]:
        found.append("the watch told other events than are listed")
    if messages[-1].event_seq != start + len(seqs):
        found.append(f"the terminal message is of event {messages[-1].event_seq}, not of the last, {start + len(seqs)}")
    return found


def _first_gap(start: int, seqs: Sequence[int]) -> str:
    expected = start
    for seq in seqs:
        expected += 1
        if seq != expected:
            return f"{seq} comes in place of {expected}"
    return "none"


def event_problems(events: Sequence[Event]) -> list[str]:
    """Numbers are gapless from 1, each generation has one end or a pause that ended with the next, each run and each
    stage ends once, and nothing comes after an end."""
    found = []
    seqs = [event.event_seq for event in events]
    if seqs != list(range(1, len(seqs) + 1)):
        found.append(f"the events are not gapless: {_first_gap(0, seqs)}")
    if not events or events[0].kind != "experiment.created":
        found.append("the first event is not experiment.created")
    generations = [event.generation for event in events]
    if generations != sorted(generations):
        found.append("generations go back")
    for generation in sorted(set(generations)):
        kinds = [e.kind for e in events if e.generation == generation and e.kind not in AFTER_THE_END]
        ends = [number for number, kind in enumerate(kinds) if kind in ENDS]
        if not ends and "experiment.paused" in kinds and generation != generations[-1]:
            continue  # it was resumed while it was paused
        if ends != [len(kinds) - 1]:
            found.append(f"generation {generation} has {len(ends)} terminal events, or they are not its last")
    starts = Counter(event.kind for event in events)["experiment.started"]
    if starts > 1:
        found.append(f"the experiment started {starts} times")
    found += _run_event_problems(events)
    return found


def _run_event_problems(events: Sequence[Event]) -> list[str]:
    found = []
    started: set[int] = set()
    ended: dict[int, tuple[str, int]] = {}  # kind and generation
    stages: dict[int, list[int]] = defaultdict(list)
    for event in events:
        run = event.run_index
        if run is None:
            continue
        if run in ended and not (ended[run][0] != "run.completed" and event.generation > ended[run][1]):
            found.append(f"run {run}: {event.kind} (event {event.event_seq}) after {ended[run][0]}")
        if event.kind == "run.started":
            if run in started:
                found.append(f"run {run} started twice")
            started.add(run)
        elif run not in started:
            found.append(f"run {run}: {event.kind} before it started")
        if event.kind == "run.stage_completed":
            stage = int(event.detail["stage_index"])
            if stage != len(stages[run]):
                found.append(f"run {run}: stage {stage} completed after stages {stages[run]}")
            stages[run].append(stage)
        if event.kind in RUN_ENDS:
            ended[run] = (event.kind, event.generation)
    return found


def row_problems(known: Told, *, unknown_costs: bool = False) -> list[str]:
    """Rows agree with events, every total is the sum over rows, and nothing is left open. What every call cost is
    known, unless there are `unknown_costs`."""
    experiment, runs, events = known.experiment, known.runs, known.events
    found = []
    if [run.run_index for run in runs] != sorted({run.run_index for run in runs}):
        found.append("a run has two rows, or they are out of order")
    last = {event.run_index: event for event in events if event.kind in RUN_ENDS}
    stages = Counter(event.run_index for event in events if event.kind == "run.stage_completed")
    for run in runs:
        end = last.get(run.run_index)
        if end is None:
            found.append(f"run {run.run_index} is {run.state.value} and has no event of its end")
        elif RUN_ENDS[end.kind] is not run.state:
            found.append(f"run {run.run_index} is {run.state.value}, its last event {end.kind}")
        answered = [stage for stage in run.stages if stage.error is None]
        if len(answered) != stages[run.run_index]:
            found.append(f"run {run.run_index}: {len(answered)} answers stored, {stages[run.run_index]} told")
        found += _run_problems(run)
    counts = Counter(run.state for run in runs)
    told_counts = experiment.counts
    wanted = {
        "pending": 0,
        "running": 0,
        "completed": counts[RunState.COMPLETED],
        "failed": counts[RunState.FAILED],
        "cancelled": told_counts.total - counts[RunState.COMPLETED] - counts[RunState.FAILED],
        "cached": sum(run.cached and run.state is RunState.COMPLETED for run in runs),
    }
    for name, number in wanted.items():
        if getattr(told_counts, name) != number:
            found.append(f"counts.{name} is {getattr(told_counts, name)}, by the rows {number}")
    sums = {
        "tokens_in": sum(run.tokens_in for run in runs),
        "tokens_out": sum(run.tokens_out for run in runs),
        "cost_saved_nanousd": sum(run.cost_saved_nanousd for run in runs),
        "cost_reserved_nanousd": 0,
    }
    if not unknown_costs:
        found += [f"run {run.run_index}: its cost is unknown" for run in runs if run.cost_nanousd is None]
        sums["cost_unknown_calls"] = 0
        sums["cost_nanousd"] = sum(run.cost_nanousd or 0 for run in runs)
    for name, number in sums.items():
        if getattr(experiment, name) != number:
            found.append(f"{name} is {getattr(experiment, name)}, by the rows {number}")
    if not experiment.state.ended:
        found.append(f"the experiment is {experiment.state.value}")
    ends = [event.kind for event in events if event.kind in ENDS]
    if ends and ENDS[ends[-1]] is not experiment.state:
        found.append(f"the experiment is {experiment.state.value}, its last end {ends[-1]}")
    if experiment.event_seq != len(events):
        found.append(f"event_seq is {experiment.event_seq}, there are {len(events)} events")
    return found


def _run_problems(run: Run) -> list[str]:
    answered = [stage for stage in run.stages if stage.error is None]
    found = []
    if [stage.stage_index for stage in run.stages] != list(range(len(run.stages))):
        found.append(f"run {run.run_index} has stages {[stage.stage_index for stage in run.stages]}")
    for name in ("tokens_in", "tokens_out"):
        total = sum(getattr(stage, name) or 0 for stage in answered)
        if getattr(run, name) != total:
            found.append(f"run {run.run_index}: {name} is {getattr(run, name)}, of its stages {total}")
    if run.cost_nanousd is not None:
        total = sum(stage.cost_nanousd or 0 for stage in answered)
        if run.cost_nanousd != total:
            found.append(f"run {run.run_index}: cost_nanousd is {run.cost_nanousd}, of its stages {total}")
    return found


def result_problems(runs: Sequence[Run], quiet: Sequence[Run]) -> list[str]:
    """Results are those of a run that nobody disturbed."""
    if [run.run_index for run in runs] != [run.run_index for run in quiet]:
        return [f"{len(runs)} runs in place of {len(quiet)}"]
    return [
        f"run {run.run_index} has {_result(run)}, undisturbed {_result(other)}"
        for run, other in zip(runs, quiet, strict=True)
        if _result(run) != _result(other)
    ]


def total_problems(experiment: Experiment, quiet: Experiment) -> list[str]:
    """Totals are those of an experiment that nobody disturbed."""
    return [
        f"{name} is {mine}, undisturbed {other}"
        for (name, mine), (_, other) in zip(_totals(experiment), _totals(quiet), strict=True)
        if mine != other
    ]


def _totals(experiment: Experiment) -> list[tuple[str, int]]:
    """What the cache saved counts as cost: an answer that it kept and the database did not is found in it again."""
    counts = experiment.counts
    return [
        *((name, getattr(counts, name)) for name in ("total", "completed", "failed", "cancelled")),
        *((name, getattr(experiment, name)) for name in ("tokens_in", "tokens_out", "cost_unknown_calls")),
        ("cost_nanousd with what was saved", experiment.cost_nanousd + experiment.cost_saved_nanousd),
    ]


def answer_problems(runs: Sequence[Run]) -> list[str]:
    """Every stage has what the provider answers to its question (`fault_lab.answering`), and asks with the answer of
    the one before; every run has completed."""
    found = [f"run {run.run_index} is {run.state.value}" for run in runs if run.state is not RunState.COMPLETED]
    for run in runs:
        for number, stage in enumerate(run.stages):
            question = _question(run, number)
            if stage.output != answer_to(question):
                found.append(f"run {run.run_index}: {stage.output!r} is stored as the answer to {question!r}")
            if number and not question.endswith(f" after {run.stages[number - 1].output}"):
                found.append(f"run {run.run_index}: {question!r} is not asked with the answer of stage {number - 1}")
        if run.stages and run.output != run.stages[-1].output:
            found.append(f"run {run.run_index} has {run.output!r}, its last stage {run.stages[-1].output!r}")
    return found


def _result(run: Run) -> tuple[object, ...]:
    scores = [(score.name, score.value, score.passed, score.error) for score in run.scores]
    stages = [(s.name, s.messages, s.output, s.tokens_in, s.tokens_out, s.finish_reason, _worth(s)) for s in run.stages]
    return (run.state, run.output, run.score, run.passed, scores, stages, run.tokens_in, run.tokens_out)


def _worth(stage: StageResult) -> int | None:
    """What its answer costs, paid now or found in the cache."""
    return None if stage.cost_nanousd is None else stage.cost_nanousd + (stage.cost_saved_nanousd or 0)


@dataclass(frozen=True, slots=True)
class Calls:
    """What was asked again, what could have been, and which of it nothing excuses."""

    questions: int
    calls: int
    repeated: int
    bound: int  # calls that were in flight or not committed at the deaths
    problems: tuple[str, ...]


def calls_of(
    history: Sequence[ProviderCall],
    deaths: Sequence[Death],
    runs: Sequence[Run],
    committed: Mapping[tuple[int, int], float],
) -> Calls:
    """Each question belongs to one stage of a run. A call is repeated only if its asker died after it began and before
    it is repeated, once for each such death; what was known to be committed is never asked again."""
    places = {_question(run, n): (run.run_index, n) for run in runs for n in range(len(run.stages))}
    by_question: dict[str, list[ProviderCall]] = defaultdict(list)
    for call in sorted(history, key=lambda call: call.started):
        by_question[call.question].append(call)
    problems = []
    for question, calls in by_question.items():
        unused = sorted(deaths, key=lambda death: death.at)
        for before, after in itertools.pairwise(calls):
            death = next((death for death in unused if _excuses(death, before, after)), None)
            if death is None:
                problems.append(
                    f"{question!r} was asked by {before.asker} and, {after.started - before.started:.3f} s later and"
                    f" nobody dead, by {after.asker} again;{_deaths_near(deaths, before)}"
                )
            else:
                unused.remove(death)
        place = places.get(question)
        if place is None:
            problems.append(f"{question!r} was asked, and is in no row")
        elif calls[-1].started > committed.get(place, calls[-1].started):
            problems.append(f"{question!r} was asked again after its answer was committed")
    problems += [f"{question!r} is in a row and was never asked" for question in places.keys() - by_question.keys()]
    bound = sum(_open_at(death, by_question, places, committed) for death in deaths)
    repeated = sum(len(calls) - 1 for calls in by_question.values())
    return Calls(len(by_question), len(history), repeated, bound, tuple(problems))


def _excuses(death: Death, before: ProviderCall, after: ProviderCall) -> bool:
    """The first was in flight or not committed when its asker died, or the second was made by a frozen Runner that had
    claimed it and did not know yet that it was dead."""
    if death.name == before.asker and _was_open(before, death) and death.at <= after.started:
        return True
    return death.name == after.asker and death.at <= after.started <= death.until


def _was_open(call: ProviderCall, death: Death) -> bool:
    """Whether its answer was perhaps not stored yet, and it had begun, when its asker died."""
    return call.started - UNDER_WAY <= death.until and (call.ended is None or death.at <= call.ended + STORED_WITHIN)


def most_open(history: Sequence[ProviderCall]) -> int:
    """How many of these calls were open at once at most."""
    changes = [(call.started, 1) for call in history]
    changes += [(call.ended, -1) for call in history if call.ended is not None]
    return max(itertools.accumulate(change for _, change in sorted(changes)), default=0)


def _deaths_near(deaths: Sequence[Death], call: ProviderCall) -> str:
    near = [
        death.at - call.started for death in deaths if death.name == call.asker and abs(death.at - call.started) < 10
    ]
    return f" the asker died at {[f'{at:+.3f}' for at in near]} s from the first call"


def _question(run: Run, stage: int) -> str:
    return next(message.content for message in reversed(run.stages[stage].messages) if message.role == "user")


def _open_at(
    death: Death,
    by_question: Mapping[str, Sequence[ProviderCall]],
    places: Mapping[str, tuple[int, int]],
    committed: Mapping[tuple[int, int], float],
) -> int:
    """Questions that the dead one had open, and whose answer nobody had seen committed."""
    return sum(
        committed.get(places.get(question, (-1, -1)), float("inf")) >= death.at
        and any(call.asker == death.name and _was_open(call, death) for call in calls)
        for question, calls in by_question.items()
    )
