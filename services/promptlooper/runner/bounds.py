"""The most that one call can cost: what is reserved before it starts, so that a budget is never overshot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from promptlooper.completion import Message, Price
from promptlooper.errors import TemplateError
from promptlooper.experiment import ExperimentSpec, Stage
from promptlooper.jsonvalue import Json, JsonObject, json_text
from promptlooper.runner.calls import Call, Conversation
from promptlooper.runner.render import Renderer
from promptlooper.runner.spec.expand import Variant, stage_model, stage_params

GUESSED_FROM = 20  # inputs, over all variants
TOKENS_PER_MESSAGE = 16  # role and separators, generously
TOKENS_PER_CALL = 16
TOKENS_PER_IMAGE = 50_000  # more than any provider counts for one
MTOK = 1_000_000
LARGEST = 2**60  # more than any budget, and a database integer


@dataclass(frozen=True, slots=True)
class Bound:
    nanousd: int
    tokens: int


def call_bound(
    messages: Sequence[Message], params: JsonObject, price: Price | None, stage: Stage | None = None
) -> Bound:
    """Upper bounds of one call. A token is at least a byte of UTF-8, so bytes bound the tokens that go in, parameters
    included, as some of them are text for the model; max_tokens bounds those that come out. Validation has refused
    budgets where a price or max_tokens is missing."""
    tokens_in = TOKENS_PER_CALL + sum(len(m.content.encode()) + TOKENS_PER_MESSAGE for m in messages)
    tokens_in += len(json_text(params).encode())
    tokens_in += sum(_besides(message) for message in messages)
    if stage is not None:
        tokens_in += sum(len(json_text(tool).encode()) for tool in stage.tools)
        tokens_in += len(json_text(stage.response_schema).encode()) if stage.response_schema is not None else 0
    tokens_out = max(_whole(params.get(name)) for name in ("max_tokens", "max_completion_tokens"))
    tokens_out *= max(1, _whole(params.get("n")), _whole(params.get("best_of")))
    if price is None:
        return Bound(0, tokens_in + tokens_out)
    parts = tokens_in * price.input_nanousd_per_mtok + tokens_out * price.output_nanousd_per_mtok
    return Bound(min(-(-parts // MTOK) + price.request_nanousd, LARGEST), min(tokens_in + tokens_out, LARGEST))


def _besides(message: Message) -> int:
    """Tokens of what is no text."""
    calls = sum(len(call.name.encode()) + len(call.arguments.encode()) for call in message.tool_calls)
    return len(message.images) * TOKENS_PER_IMAGE + calls + len(message.provider_data.encode())


def cheapest(
    spec: ExperimentSpec, chosen: Sequence[Variant], prices: Mapping[str, Price | None], renderer: Renderer
) -> Bound:
    """What a cheap call of an experiment may cost: the least of every variant's first call for the first inputs. A run
    that needs more says so before it calls; one that is too dear keeps nobody else from running."""
    bounds = []
    for variant in chosen:
        stage = variant.pipeline.stages[0]
        for row in spec.inputs[: max(1, GUESSED_FROM // len(chosen))]:
            try:
                messages = Conversation(renderer, spec, variant.pipeline.stages, row).messages(Call(0), ())
            except TemplateError:  # that run will fail
                continue
            bounds.append(
                call_bound(messages, stage_params(variant, stage), prices[stage_model(variant, stage)], stage)
            )
    return Bound(min((b.nanousd for b in bounds), default=0), min((b.tokens for b in bounds), default=0))


def _whole(value: Json) -> int:
    return math.ceil(value) if isinstance(value, int | float) else 0
