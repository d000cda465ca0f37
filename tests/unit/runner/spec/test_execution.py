"""`execution` of an experiment file: how it is written, what is wrong with it, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from promptlooper.completion import ModelCheck, Price
from promptlooper.experiment import ExecutionMode, ExecutionPolicy
from promptlooper.runner.spec.check_services import check
from promptlooper.runner.spec.normal import body_sha256, spec_from_json, spec_to_json
from promptlooper.runner.spec.overrides import Overrides
from promptlooper.scorer.registry import ScorerCore

FILE = "model: half/m\nprompt: abcd\nparams: {max_tokens: 10}\n"
PRICE, HALF = Price(2_000_000, 4_000_000), Price(1_000_000, 2_000_000)


class Models:
    """`half/…` answers batches, others do not."""

    async def check_models(self, models: Sequence[str]) -> list[ModelCheck]:
        return [
            ModelCheck(m, price=PRICE, list_price=PRICE, batches=m.startswith("half/"), batch_price=HALF)
            for m in models
        ]


async def problems_and_estimate(spec: Any) -> tuple[list[tuple[str, str]], int | None]:
    found = await check(spec, Models(), ScorerCore())  # type: ignore[arg-type]
    return [(problem.field, problem.message) for problem in found.problems], found.estimated_cost_nanousd


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("", ExecutionPolicy()),
        ("execution: direct", ExecutionPolicy()),
        ("execution: batch", ExecutionPolicy(ExecutionMode.BATCH, 86_400)),
        ("execution: {mode: batch, timeout: 12h}", ExecutionPolicy(ExecutionMode.BATCH, 43_200)),
    ],
)
def test_it_is_a_word_or_a_mapping(desk: Any, text: str, policy: ExecutionPolicy) -> None:
    spec = desk.spec(FILE + text)
    assert spec.execution == policy
    assert spec_from_json(spec_to_json(spec)) == spec


def test_the_flag_says_batch_over_what_the_file_says(desk: Any) -> None:
    by_flag = Overrides(batch=True)
    assert desk.spec(FILE + "execution: direct", by_flag).execution == ExecutionPolicy(ExecutionMode.BATCH)
    kept = desk.spec(FILE + "execution: {timeout: 1h}", by_flag).execution
    assert kept == ExecutionPolicy(ExecutionMode.BATCH, 3_600)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "execution: bach",
            "e.yaml:4: the execution mode must be 'direct' or 'batch', not the text 'bach'; did you mean 'batch'?",
        ),
        ("execution: {mode: batch, tiemout: 1h}", "e.yaml:4: 'tiemout' is not a key of 'execution'"),
        ("execution: {timeout: 1h}", "e.yaml:4: 'timeout' is of batches; add 'mode: batch'"),
        ("execution: {mode: batch, timeout: 400d}", "e.yaml:4: 'timeout' must be above 0 and at most 365 days"),
        ("execution: [batch]", "e.yaml:4: 'execution' must be a mapping"),
    ],
)
def test_what_is_wrong_is_said(desk: Any, text: str, problem: str) -> None:
    assert problem in desk.problems(FILE + text)[0]


def test_an_experiment_without_it_has_the_digest_that_it_always_had(desk: Any) -> None:
    plain, direct, batch = (desk.spec(FILE + text) for text in ("", "execution: direct", "execution: batch"))
    assert "execution" not in spec_to_json(plain)
    assert body_sha256(plain) == body_sha256(direct) != body_sha256(batch)


async def test_every_model_must_answer_batches(desk: Any) -> None:
    spec = desk.spec("models: [half/m, whole/m]\nprompt: a\nexecution: batch")
    found, _ = await problems_and_estimate(spec)
    told = "the provider of 'whole/m' answers no batches; take 'execution: direct', or another model"
    assert found == [("execution.mode", told)]
    assert await problems_and_estimate(replace(spec, execution=ExecutionPolicy())) == ([], None)


async def test_the_estimate_is_by_the_price_of_batches(desk: Any) -> None:
    _, direct = await problems_and_estimate(desk.spec(FILE))
    _, batch = await problems_and_estimate(desk.spec(FILE + "execution: batch"))
    assert (direct, batch) == (42, 21)


def test_a_batch_reserves_less_as_its_plain_price_is_less() -> None:
    dearest = Price(6_000_000, 9_000_001, 10)
    known = ModelCheck("m", price=dearest, list_price=PRICE, batch_price=HALF)
    assert known.most_in_batch == Price(3_000_000, 4_500_001, 10)
    assert replace(known, batch_price=None).most_in_batch == dearest
