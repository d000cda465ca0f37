"""How endpoints of the OpenAI format differ from one another, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Quirks:
    """Of chat completions, and of embeddings. A parameter that an endpoint would ignore is in `refused`: nothing is
    dropped silently."""

    renamed: Mapping[str, str] = field(default_factory=dict)  # ours to theirs; with a dot: into an object
    refused: frozenset[str] = frozenset()
    images: bool = True  # whether it may have a model that sees them
    schema: bool = True  # whether it takes a JSON Schema of the answer
    strict: bool = True  # whether it takes `strict` beside the schema
    stream_usage: bool = True  # whether usage of a stream must be asked for, by stream_options
    short_ids: bool = False  # whether ids of tool calls must be nine letters and digits
    batches: bool = False  # whether it answers batches in OpenAI's form
    kept: tuple[str, ...] = ()  # fields of an answer's message that it wants back in the next turn
    embeds: bool = True  # whether it has embeddings
    base64: bool = False  # whether it surely sends vectors as base64, a quarter of their size in JSON
    dimensions: str = "dimensions"  # its name for the length of a vector

    @property
    def touched(self) -> frozenset[str]:
        """Parameters that are not sent as they are."""
        return self.refused | frozenset(self.renamed)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A well-known one: where it is and in which variable its users have their key."""

    base_url: str
    api_key_env: str
    quirks: Quirks = field(default_factory=Quirks)


_NO_BUDGET = frozenset({"reasoning_tokens"})
_NO_LOGPROBS = frozenset({"logprobs", "top_logprobs", "logit_bias"})
UNKNOWN = Quirks(refused=_NO_BUDGET)  # of a server that nothing is known of: it gets what it is sent
OPENAI = Quirks(
    renamed={"max_tokens": "max_completion_tokens"},
    refused=_NO_BUDGET | {"top_k"},
    base64=True,
    batches=True,
)

ENDPOINTS: Mapping[str, Endpoint] = {
    "openai": Endpoint("https://api.openai.com/v1", "OPENAI_API_KEY", OPENAI),
    "cerebras": Endpoint(
        "https://api.cerebras.ai/v1",
        "CEREBRAS_API_KEY",
        Quirks(renamed={"max_tokens": "max_completion_tokens"}, refused=_NO_BUDGET | {"top_k"}, embeds=False),
    ),
    "deepseek": Endpoint(
        "https://api.deepseek.com",
        "DEEPSEEK_API_KEY",
        # Ignores what it does not know; has JSON, but not by a schema.
        Quirks(
            refused=_NO_BUDGET | {"top_k", "seed", "parallel_tool_calls"},
            schema=False,
            kept=("reasoning_content",),
            embeds=False,
        ),
    ),
    "fireworks": Endpoint("https://api.fireworks.ai/inference/v1", "FIREWORKS_API_KEY", UNKNOWN),
    "groq": Endpoint(
        "https://api.groq.com/openai/v1",
        "GROQ_API_KEY",
        # `strict` is for two of its models; the others refuse it.
        Quirks(refused=_NO_BUDGET | _NO_LOGPROBS | {"top_k"}, strict=False, embeds=False, batches=True),
    ),
    "mistral": Endpoint(
        "https://api.mistral.ai/v1",
        "MISTRAL_API_KEY",
        # Says the usage of every stream, and refuses to be asked for it.
        Quirks(
            renamed={"seed": "random_seed"},
            refused=_NO_BUDGET | _NO_LOGPROBS | {"top_k"},
            stream_usage=False,
            short_ids=True,
            dimensions="output_dimension",
        ),
    ),
    "moonshot": Endpoint(
        "https://api.moonshot.ai/v1",
        "MOONSHOT_API_KEY",
        Quirks(refused=_NO_BUDGET | _NO_LOGPROBS | {"top_k", "seed"}, kept=("reasoning_content",), embeds=False),
    ),
    "openrouter": Endpoint(
        "https://openrouter.ai/api/v1",
        "OPENROUTER_API_KEY",
        Quirks(
            renamed={"reasoning_effort": "reasoning.effort", "reasoning_tokens": "reasoning.max_tokens"},
            kept=("reasoning_details",),
        ),
    ),
    "perplexity": Endpoint(
        "https://api.perplexity.ai",
        "PERPLEXITY_API_KEY",
        Quirks(refused=_NO_BUDGET | _NO_LOGPROBS | {"seed", "stop", "parallel_tool_calls"}, strict=False, embeds=False),
    ),
    "together": Endpoint("https://api.together.xyz/v1", "TOGETHER_API_KEY", UNKNOWN),
    "xai": Endpoint("https://api.x.ai/v1", "XAI_API_KEY", Quirks(refused=_NO_BUDGET | {"top_k"}, embeds=False)),
}
"""By the name that the built-in provider has. Host names of addresses are unique: they say whose quirks apply."""

SERVERS: Mapping[str, Quirks] = {
    "llama.cpp": Quirks(renamed={"reasoning_tokens": "thinking_budget_tokens"}),
    "vllm": Quirks(renamed={"reasoning_tokens": "thinking_token_budget"}),
}
"""Of programs that anyone may run anywhere: the providers file says that one of them answers at an address."""


def named(name: str) -> Quirks | None:
    return SERVERS.get(name) or (endpoint.quirks if (endpoint := ENDPOINTS.get(name)) else None)


def names() -> list[str]:
    return sorted([*ENDPOINTS, *SERVERS])


def of_host(host: str) -> Quirks:
    """Of an address, by its host or a domain above it."""
    for endpoint in ENDPOINTS.values():
        known = endpoint.base_url.split("/")[2]
        if host == known or host.endswith("." + known):
            return endpoint.quirks
    return UNKNOWN
