"""Keeps keys out of messages."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from urllib.parse import quote

_LOOKS_LIKE_A_KEY = re.compile(r"(?i)\b(?:sk|pk|rk|gsk|xai|key|hf|nvapi|sess)[-_][a-z0-9_*.-]{6,}|\bbearer\s+\S+")
_LONGEST = 300  # characters of a provider's message that are worth reading


class Redactor:
    """Replaces known secrets and what looks like a key, and shortens to about 300 characters."""

    def __init__(self, secrets: Iterable[str]) -> None:
        forms = {form for secret in secrets if len(secret) >= 4 for form in _forms(secret)}
        # Longest first: one secret may be a part of another.
        self._secrets = sorted(forms, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        text = " ".join(_LOOKS_LIKE_A_KEY.sub("***", text).split())
        return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _forms(secret: str) -> Iterable[str]:
    """As it is, and as it stands in addresses and in JSON."""
    return secret, quote(secret, safe=""), json.dumps(secret)[1:-1], secret.replace("/", "\\/")
