"""What goes with every request to a provider: its key, in a header and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import httpx

from promptlooper.adapter.keys import Key
from promptlooper.adapter.redaction import Redactor


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@dataclass(frozen=True, slots=True, repr=False)
class Sent:
    """The headers of one request, and the key in them."""

    headers: httpx.Headers
    key: str | None


class Headers:
    """`own` are the operator's; `place` says in which header the key goes; `always` are the format's."""

    def __init__(
        self,
        key: Key,
        own: Mapping[str, str],
        place: Callable[[str], Mapping[str, str]] = bearer,
        always: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._key = key
        self._own = dict(own)
        self._place = place
        self._always = always
        self._sent = self._made(None)
        self.redacted = Redactor(self._own.values())

    def current(self) -> Sent:
        value = self._key.current()
        if value != self._sent.key:
            self._sent = self._made(value)
            self.redacted = Redactor([*self._key.values, *self._own.values()])
        return self._sent

    def refused(self, sent: Sent) -> None:
        """The provider does not know the key that was sent."""
        if sent.key is not None:
            self._key.refuse(sent.key)

    def _made(self, key: str | None) -> Sent:
        headers = httpx.Headers({"accept": "application/json", "user-agent": "promptlooper", **self._always})
        headers.update(self._own)
        # Not the operator's: bodies are JSON, and a few KB can unpack to 300 MB.
        headers.update({"content-type": "application/json", "accept-encoding": "identity"})
        if key is not None:
            headers.update(self._place(key))
        return Sent(headers, key)
