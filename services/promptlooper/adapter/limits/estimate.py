"""How many tokens a question will take, before anyone has counted them."""

from __future__ import annotations

from promptlooper.adapter.limits.limiter import Question
from promptlooper.embeddings import EmbeddingRequest
from promptlooper.jsonvalue import json_text

_CHARACTERS = 4.0  # in a token, for most tokenizers and languages of Latin script
_MESSAGE = 4  # tokens around each message
_FIRST_GUESS = 256.0  # tokens of an answer
_WEIGHT = 0.1  # of a new answer in the mean of all


class Estimates:
    """Learns how long the answers of a lane are where the question does not limit them."""

    def __init__(self) -> None:
        self._answer = _FIRST_GUESS

    def of(self, request: Question) -> float:
        if isinstance(request, EmbeddingRequest):
            return sum(len(text) for text in request.inputs) / _CHARACTERS
        params = request.params
        most = params.get("max_tokens", params.get("max_completion_tokens"))
        answer = float(most) if isinstance(most, int | float) and most > 0 else self._answer
        characters = sum(len(message.content) for message in request.messages)
        if request.tools:
            characters += sum(len(tool.description) + len(json_text(tool.parameters)) for tool in request.tools)
        if request.response_schema is not None:
            characters += len(json_text(request.response_schema))
        return characters / _CHARACTERS + _MESSAGE * len(request.messages) + answer

    def learn(self, tokens_out: int) -> None:
        self._answer += (tokens_out - self._answer) * _WEIGHT
