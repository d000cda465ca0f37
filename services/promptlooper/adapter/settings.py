"""What the Adapter reads from the environment, beside the keys themselves."""

from __future__ import annotations

from pathlib import Path

from promptlooper.settings import ServiceSettings


class AdapterSettings(ServiceSettings):
    """Keys and addresses of providers come from their own variables (`OPENAI_API_KEY`, …) and the providers file."""

    listen: str = "127.0.0.1:7052"
    providers: Path | None = None  # the providers file
