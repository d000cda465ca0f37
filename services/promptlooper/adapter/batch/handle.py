"""How a batch is called outside the Adapter: whose it is, without a secret."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

from promptlooper.adapter.routes.route import Upstream
from promptlooper.errors import InvalidArgument

_VERSION = "b1"
_FORM = re.compile(rf"{_VERSION}:([^:]+):([0-9a-f]{{12}}):([^:]+):(.+)", re.DOTALL)

_ID = re.compile(r"(batches/)?\w[\w.~-]*")


@dataclass(frozen=True, slots=True)
class Handle:
    provider: str
    upstream: str  # a hash of its address and its key's name
    batch_id: str  # the provider's
    model: str

    def __str__(self) -> str:
        return ":".join((_VERSION, self.provider, self.upstream, quote(self.batch_id), self.model))


def handle_of(text: str) -> Handle:
    """Raises InvalidArgument."""
    found = _FORM.fullmatch(text)
    if found is not None:
        provider, upstream, quoted, model = found.groups()
        batch_id = unquote(quoted)
        if _ID.fullmatch(batch_id):  # it becomes a part of a path
            return Handle(provider, upstream, batch_id, model)
    raise InvalidArgument(f"{text[:80]!r} names no batch; give what SubmitBatch answered", field="batch")


def hash_of(upstream: Upstream) -> str:
    """The same after a restart, and for another value of the same key."""
    identity = (upstream.provider.endpoint, upstream.key, upstream.deployment)
    return hashlib.sha256("\n".join(identity).encode()).hexdigest()[:12]
