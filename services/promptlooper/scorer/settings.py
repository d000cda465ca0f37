"""Settings of the Scorer service."""

from __future__ import annotations

from promptlooper.settings import ServiceSettings


class ScorerSettings(ServiceSettings):
    listen: str = "127.0.0.1:7054"
