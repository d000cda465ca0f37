"""What is said, counted and kept of a model whose price nobody knows, and of one whose price is known."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from promptlooper.testing.provider import FakeProvider, Reply

EXPERIMENT = """\
name: prices
inputs: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
model: fake/MODEL
params: {max_tokens: 10}
prompt: "{{ input }}"
limits: {budget_usd: 0.01}
cache: {mode: "off"}
"""
# At most 10 tokens out and some 60 bytes in: a call of the unknown model reserves about a quarter of the budget.
FILE = """\
providers:
  - name: fake
    type: openai
    base_url: BASE_URL
    prices:
      known:
        - {input_usd_per_mtok: 1, output_usd_per_mtok: 1, until: 2020-01-01}
        - {from: 2020-01-01, input_usd_per_mtok: 3, output_usd_per_mtok: 5, request_usd: 0.0001}
    CEILING
"""
CEILING = "price_ceiling: {input_usd_per_mtok: 10, output_usd_per_mtok: 150}"


@pytest.fixture
async def provider(shell: Any) -> AsyncIterator[FakeProvider]:
    async with FakeProvider(lambda request: Reply("fine", tokens_in=7, tokens_out=1)) as provider:
        shell.env["PROMPTLOOPER_PROVIDERS"] = "providers.yaml"
        yield provider


def write(shell: Any, provider: FakeProvider, model: str, ceiling: str = "") -> None:
    (shell.folder / "promptlooper.yaml").write_text(EXPERIMENT.replace("MODEL", model))
    file = FILE.replace("BASE_URL", provider.base_url).replace("CEILING", ceiling)
    (shell.folder / "providers.yaml").write_text(file)


async def test_unknown_price_is_null_and_counted_and_a_budget_goes_by_the_ceiling(shell: Any, provider: Any) -> None:
    write(shell, provider, "unknown", CEILING)
    ran = await shell("run", "-q", "--json")
    summary = json.loads(ran.out)
    assert (summary["state"], summary["reason"]) == ("CANCELLED", "BUDGET"), ran.err
    calls = summary["counts"]["completed"]
    assert 2 <= calls <= 5
    assert len(provider.requests) == summary["cost_unknown_calls"] == calls
    assert summary["cost_usd"] is None
    rows = [json.loads(line) for line in (await shell("export")).out.splitlines()]
    assert {row["cost_usd"] for row in rows if row["state"] == "COMPLETED"} == {None}
    checked = json.loads((await shell("validate", "--json")).out)
    assert (checked["estimated_cost_usd"], checked["price_versions"]) == (None, [])


async def test_budget_is_refused_where_nothing_bounds_an_unknown_price(shell: Any, provider: Any) -> None:
    write(shell, provider, "unknown")
    ran = await shell("run", "-q")
    assert ran.code == 2
    assert "a budget_usd needs a price of 'fake/unknown'" in ran.err
    assert "'price_ceiling'" in ran.err
    assert not provider.requests


async def test_known_price_is_told_before_and_kept_with_the_result(shell: Any, provider: Any) -> None:
    write(shell, provider, "known", CEILING)
    checked = json.loads((await shell("validate", "--json")).out)
    assert checked["price_versions"] == ["providers-file 2020-01-01"]
    assert checked["estimated_cost_usd"] > 10 * 0.0001
    listed = {model["model"]: model for model in json.loads((await shell("models", "--json")).out)}
    shown = listed["fake/known"]
    assert (shown["input_usd_per_mtok"], shown["output_usd_per_mtok"], shown["request_usd"]) == (3, 5, 0.0001)
    assert shown["price_version"] == "providers-file 2020-01-01"
    ran = await shell("run", "-q", "--json")
    summary = json.loads(ran.out)
    assert (ran.code, summary["cost_unknown_calls"]) == (0, 0), ran.err
    assert summary["cost_usd"] == pytest.approx(10 * (7 * 3e-6 + 5e-6 + 1e-4), abs=1e-12)
    rows = [json.loads(line) for line in (await shell("export")).out.splitlines()]
    assert {stage["price_version"] for row in rows for stage in row["stages"]} == {"providers-file 2020-01-01"}
