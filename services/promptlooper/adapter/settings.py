"""What the Adapter reads from the environment, beside the keys themselves."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from promptlooper.settings import ServiceSettings


class AdapterSettings(ServiceSettings):
    """Keys and addresses of providers come from their own variables (`OPENAI_API_KEY`, …) and the providers file.
    `redis_url` may name a password: it is masked where settings are logged."""

    listen: str = "127.0.0.1:7052"
    providers: Path | None = None  # the providers file
    redis_url: str = ""  # where all Adapters share their limits; "" keeps them to each one
    redis_password_file: Path | None = None  # read at each connection
    redis_ca_file: Path | None = None  # for rediss://
    redis_timeout: float = Field(default=0.1, gt=0)  # seconds that one answer of Redis may take
    redis_cluster: bool = False  # Redis Cluster: redis_url is one of its nodes
