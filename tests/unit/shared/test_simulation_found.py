"""What simulations have found, each as the smallest schedules in which it happened. A seed varies their latencies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from simulation.schedule import Command, Odds, PlannedExperiment, Schedule, Strike, schedule_of
from simulation.world import simulated

from promptlooper.experiment import CacheMode, CachePolicy, ExperimentSpec, InputRow, Limits, MessageTemplate, Stage

NO_TROUBLE = Odds()


def spec(rows: int, **limits: int) -> ExperimentSpec:
    basis = schedule_of(0).experiments[0].spec
    stage = Stage((MessageTemplate("user", "e0 s0 n{{ input.n }}"),))
    return replace(
        basis,
        pipelines=(replace(basis.pipelines[0], stages=(stage,)),),
        inputs=tuple(InputRow(f"i{n}", {"n": n}) for n in range(rows)),
        scorers=(),
        limits=Limits(**limits),
        cache=CachePolicy(CacheMode.OFF),
    )


def all_is_well(
    seeds: Iterable[int],
    experiment: ExperimentSpec,
    commands: Sequence[Command] = (),
    strikes: Sequence[Strike] = (),
    runners: int = 1,
    longest_call: float = 0.05,
    odds: Odds = NO_TROUBLE,
) -> None:
    for seed in seeds:
        planned = PlannedExperiment(0.0, experiment, tuple(commands))
        slots = (2,) * runners
        schedule = Schedule(seed, slots, (0.0,) * runners, longest_call, (planned,), tuple(strikes), odds)
        report = simulated(seed, schedule)
        assert not report.broken, str(report)


def test_an_experiment_whose_runs_ended_while_it_was_cancelled_ends_again_when_resumed() -> None:
    for ms in range(162, 214, 8):
        all_is_well([1, 2], spec(2), [Command(ms / 1000, "cancel"), Command(0.6, "resume")])


def test_a_runner_goes_on_with_what_was_resumed_before_it_saw_that_it_had_been_cancelled() -> None:
    commands = [Command(0.6, "cancel"), Command(0.8, "resume")]
    all_is_well([0, 33, 38], spec(4), commands, [Strike(0.5, "kill", 0.02, 1)], runners=2, longest_call=1.8)


def test_a_call_under_way_when_its_runner_died_is_counted_in_the_budget() -> None:
    kills = [Strike(at, "kill", 0.1, 0) for at in (0.5, 3.0, 5.5, 8.0)]
    all_is_well(range(4), spec(1, budget_nanousd=440_000), (), kills, longest_call=1.8)


def test_a_reaping_that_was_on_its_way_when_the_database_froze_robs_nobody() -> None:
    for ms in range(1300, 1360, 4):
        freeze = [Strike(ms / 1000, "freeze", 1.5)]
        all_is_well([ms], spec(2), (), freeze, runners=2, longest_call=1.8)


def test_a_run_that_waited_and_was_lost_with_its_runner_has_all_its_time_again() -> None:
    for at in (1.7, 2.0):
        kill = [Strike(at, "kill", 3.0, 0)]
        all_is_well([16, 19], spec(2, run_timeout=3), (), kill, 2, longest_call=0.9, odds=Odds(rate_limited=0.4))


def test_a_runner_knows_a_run_that_it_gave_back_and_claimed_in_commits_whose_answers_were_lost() -> None:
    all_is_well([58, 157], spec(2), odds=Odds(rate_limited=0.4, answer_lost=0.3))
