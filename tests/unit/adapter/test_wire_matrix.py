"""Every wire format over real HTTP, from servers that refuse what the real ones refuse: what comes of each answer."""

from __future__ import annotations

import resource
from collections.abc import AsyncIterator
from itertools import product

import pytest
from wire_matrix import ANSWER, CASES, DIALECTS, NEVER, Case, Dialect, documented, outcome_of, table

from promptlooper.adapter.gateway import Gateway
from promptlooper.completion import Completion, CompletionRequest, OnDelta
from promptlooper.errors import CompletionFailed
from promptlooper.testing.wires import WireServer

EACH = [(dialect, case) for dialect, case in product(DIALECTS, CASES) if outcome_of(dialect, case) != NEVER]


@pytest.fixture
async def server(dialect: Dialect) -> AsyncIterator[WireServer]:
    async with WireServer(dialect.wire) as server:
        yield server


@pytest.mark.parametrize(("dialect", "case"), EACH, ids=[f"{d.title}, {c.name}" for d, c in EACH])
async def test_each_answer_of_each_wire_has_its_outcome(gateways, server, key, dialect: Dialect, case: Case):
    gateway = gateways(entry(dialect, case, server.base_url), KEY=key)
    server.answer = case.reply
    pieces: list[str] = []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = await answered(gateway, case.request(dialect), pieces.append if case.streamed else None)
    if isinstance(answer, Completion):
        outcome = ANSWER
        assert case.holds(answer), answer
        assert not case.streamed or "".join(pieces) == answer.output
    else:
        outcome = answer.reason + (", again" if answer.attempts > 1 else "")
        assert (answer.retry_after == 7.0) == ("429" in case.name)
        assert key not in str(answer)
    await server.closed()
    assert outcome == outcome_of(dialect, case), server.refused or answer
    assert server.refused == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150 * 1024, "kilobytes"


def entry(dialect: Dialect, case: Case, base_url: str) -> str:
    """The providers file."""
    settings = [f"type: {dialect.wire.type}", f"base_url: '{base_url}'", "api_key_env: KEY"]
    settings += [text for text in (dialect.settings, case.settings) if text]
    return f"providers: [{{name: p, {', '.join(settings)}}}]"


async def answered(
    gateway: Gateway, request: CompletionRequest, on_delta: OnDelta | None
) -> Completion | CompletionFailed:
    try:
        return await gateway.complete(request, on_delta)
    except CompletionFailed as error:
        return error


def test_the_table_in_the_docs_is_what_the_tests_hold_to():
    assert documented() == table(), "run `python tests/wire_matrix.py`"
