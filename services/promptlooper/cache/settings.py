"""Settings of the Cache service."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from promptlooper.settings import ServiceSettings


class CacheSettings(ServiceSettings):
    """`redis_url` may name a password: it is masked where settings are logged."""

    listen: str = "127.0.0.1:7053"
    redis_url: str = "redis://127.0.0.1:6379/0"
    redis_password_file: Path | None = None  # read at each connection
    redis_ca_file: Path | None = None  # for rediss://
    cache_ttl_days: float = Field(default=30.0, gt=0)  # after which Redis forgets a value
    redis_timeout: float = Field(default=0.1, gt=0)  # seconds that one answer of Redis may take
    redis_cluster: bool = False  # Redis Cluster: redis_url is one of its nodes
