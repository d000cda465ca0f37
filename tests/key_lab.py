"""The questions of tests/golden/cache_keys.json. As a program: prints the keys and digests that this process makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from promptlooper.completion import CompletionRequest, Tool, message_of
from promptlooper.digest import sha256_hex
from promptlooper.experiment import CachePolicy
from promptlooper.questions import Question, cache_key

GOLDEN = Path(__file__).parent / "golden" / "cache_keys.json"


def golden() -> Any:
    """`questions` by name, each with its key, and `values`, each with its digest."""
    return json.loads(GOLDEN.read_text("utf-8"))


def question_of(stored: Any) -> Question:
    request = dict(stored["request"])
    request["messages"] = tuple(message_of(form) for form in request["messages"])
    request["tools"] = tuple(Tool(**tool) for tool in request.get("tools", ()))
    policy = CachePolicy(namespace=stored.get("namespace", "default"))
    project = stored.get("project", "default")
    return Question(CompletionRequest(**request), stored.get("endpoint", ""), stored.get("repeat", 0), project, policy)


def made_here() -> dict[str, list[str]]:
    """In the order of the file."""
    known = golden()
    return {
        "keys": [cache_key(question_of(question)) for question in known["questions"].values()],
        "digests": [sha256_hex(vector["value"]) for vector in known["values"]],
    }


if __name__ == "__main__":
    print(json.dumps(made_here()))
