"""What is to happen in one simulation, drawn from its seed before it begins."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from promptlooper.experiment import (
    CacheMode,
    CachePolicy,
    ExperimentSpec,
    InputRow,
    Limits,
    MessageTemplate,
    ModelEntry,
    Pipeline,
    ScorerSpec,
    Stage,
)

LEASE_TTL = 0.9  # seconds
TROUBLE_UNTIL = 3.0  # seconds: from then on nothing new goes wrong
MAX_TOKENS = 40
LIKELY = 0.35  # that a kind of fault happens in a schedule at all


@dataclass(frozen=True, slots=True)
class Command:
    """What a client asks of an experiment at a time."""

    at: float
    verb: str  # cancel, pause, resume, retry, update, cancel_run
    number: int = 0  # a cap or a run_index


@dataclass(frozen=True, slots=True)
class PlannedExperiment:
    at: float
    spec: ExperimentSpec
    commands: tuple[Command, ...]


@dataclass(frozen=True, slots=True)
class Strike:
    """Something that goes wrong at a time, for a time. `runner` is None where it strikes all."""

    at: float
    kind: str  # kill, stall, drain, outage, freeze
    seconds: float
    runner: int | None = None


@dataclass(frozen=True, slots=True)
class Odds:
    """How likely each single call goes wrong while there is trouble."""

    request_fails: float = 0.0
    answer_lost: float = 0.0
    request_slow: float = 0.0
    rate_limited: float = 0.0
    model_fails: float = 0.0
    adapter_away: float = 0.0
    cache_away: float = 0.0


@dataclass(frozen=True, slots=True)
class Schedule:
    seed: int
    slots: tuple[int, ...]  # of each Runner
    skews: tuple[float, ...]  # seconds by which each Runner's clock is ahead
    longest_call: float
    experiments: tuple[PlannedExperiment, ...]
    strikes: tuple[Strike, ...]
    odds: Odds
    replicas: bool = False  # each Runner has the name of its predecessor


def schedule_of(seed: int) -> Schedule:
    chance = Random(f"schedule {seed}")
    runners = chance.choice((2, 2, 3))
    slow = chance.random() < 0.2
    return Schedule(
        seed,
        slots=tuple(chance.randint(1, 4) for _ in range(runners)),
        skews=tuple(chance.choice((0.0, 0.0, round(chance.uniform(-0.5, 0.5), 3))) for _ in range(runners)),
        longest_call=2 * LEASE_TTL if slow else chance.choice((0.05, 0.2, 0.4)),
        experiments=tuple(_experiment(chance, number, slow=slow) for number in range(chance.choice((1, 1, 2)))),
        strikes=tuple(sorted(_strikes(chance, runners), key=lambda strike: strike.at)),
        odds=_odds(chance),
        replicas=chance.random() < LIKELY,
    )


def _experiment(chance: Random, number: int, *, slow: bool) -> PlannedExperiment:
    rows, stages = (
        (chance.randint(2, 4), chance.randint(1, 2)) if slow else (chance.randint(2, 7), chance.randint(1, 3))
    )
    names = [f"e{number} s{stage} n{{{{ input.n }}}}" for stage in range(stages)]
    prompts = [name if stage == 0 else name + " after {{ prev_output }}" for stage, name in enumerate(names)]
    budget = chance.random() < LIKELY
    worst = rows * stages * (120 * 2000 + MAX_TOKENS * 8000)  # nano-USD, about
    share = chance.uniform(0.2, 1.2)
    limits = Limits(
        max_concurrency=chance.randint(1, 4),
        budget_nanousd=int(worst * share) if budget and chance.random() < 0.7 else None,
        budget_tokens=int(rows * stages * 160 * share) if budget and chance.random() < 0.5 else None,
        run_timeout=chance.choice((None, None, None, None, 3.0)),
        experiment_timeout=chance.choice((None, None, None, None, 4.0)),
    )
    cached = chance.random() < 0.25
    spec = ExperimentSpec(
        name=f"e{number}",
        pipelines=(
            Pipeline(
                "direct",
                tuple(Stage((MessageTemplate("user", prompt),)) for prompt in prompts),
                (ModelEntry("m", "mock/m"),),
            ),
        ),
        inputs=tuple(InputRow(f"i{n}", {"n": n}) for n in range(rows)),
        params={"max_tokens": MAX_TOKENS},
        scorers=(ScorerSpec("said", "contains", f"s{stages - 1} n{{{{ input.n }}}}", threshold=1),)
        if chance.random() < 0.3
        else (),
        limits=limits,
        cache=CachePolicy(mode=CacheMode.READ_WRITE if cached else CacheMode.OFF),
    )
    return PlannedExperiment(round(chance.uniform(0, 0.6), 3), spec, tuple(_commands(chance, rows)))


def _commands(chance: Random, rows: int) -> list[Command]:
    """Everything ends in the end: whoever pauses resumes."""
    at = round(chance.uniform(0.1, 2), 3)
    then = round(at + chance.uniform(0.05, 2), 3)
    match chance.choice(("", "", "", "cancel", "cancel", "pause", "pause", "retry", "update", "cancel_run")):
        case "cancel":
            return [Command(at, "cancel"), *([Command(then, "resume")] if chance.random() < 0.6 else [])]
        case "pause":
            second = "cancel" if chance.random() < 0.2 else "resume"
            return [Command(at, "pause"), Command(then, second), *_maybe_twice(chance, then)]
        case "retry":
            return [Command(then, "retry"), *_maybe_twice(chance, then + 1)]
        case "update":
            return [
                Command(at, "update", chance.randint(1, 4)),
                Command(then, "update", chance.randint(1, 4)),
            ]
        case "cancel_run":
            return [Command(at, "cancel_run", chance.randrange(rows)), Command(then, "resume")]
    return []


def _maybe_twice(chance: Random, at: float) -> list[Command]:
    return [Command(round(at + chance.uniform(0, 0.5), 3), chance.choice(("resume", "retry")))] * chance.randint(0, 1)


def _strikes(chance: Random, runners: int) -> list[Strike]:
    strikes = []
    for kind, longest, most, single in (
        ("kill", 2 * LEASE_TTL, 3, True),
        ("stall", 3 * LEASE_TTL, 3, True),
        ("drain", LEASE_TTL, 2, True),
        ("outage", 2 * LEASE_TTL, 2, False),
        ("freeze", 2 * LEASE_TTL, 2, False),
    ):
        if chance.random() < LIKELY:
            for _ in range(chance.randint(1, most)):
                at, seconds = round(chance.uniform(0, TROUBLE_UNTIL), 3), round(chance.uniform(0.02, longest), 3)
                strikes.append(Strike(at, kind, seconds, chance.randrange(runners) if single else None))
    return strikes


def _odds(chance: Random) -> Odds:
    def of(least: float, most: float) -> float:
        likely, value = chance.random() < LIKELY, chance.uniform(least, most)
        return round(value, 4) if likely else 0.0

    return Odds(
        request_fails=of(0.01, 0.15),
        answer_lost=of(0.01, 0.15),
        request_slow=of(0.01, 0.05),
        rate_limited=of(0.02, 0.2),
        model_fails=of(0.02, 0.15),
        adapter_away=of(0.02, 0.2),
        cache_away=of(0.05, 0.5),
    )
