"""What the Runner reads from the environment."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from promptlooper.errors import InvalidArgument
from promptlooper.failpoints import failpoints_from
from promptlooper.settings import ServiceSettings
from promptlooper.sources import LARGEST_FILE, UPLOADS


class RunnerSettings(ServiceSettings):
    """Addresses may be lists (`a:1,b:2`), and DNS names that stand for several replicas (`dns:///runner:7051`)."""

    listen: str = "127.0.0.1:7051"
    database_url: str = "sqlite:///promptlooper.db"
    database_password_file: Path | None = None  # of PostgreSQL; read at each connection
    nats_url: str = ""  # "" publishes no events to NATS; watches work all the same
    nats_credentials_file: Path | None = None
    nats_ca_file: Path | None = None
    nats_tls_first: bool = False
    adapter_address: str = "127.0.0.1:7052"
    cache_address: str = "127.0.0.1:7053"
    scorer_address: str = "127.0.0.1:7054"
    lease_ttl: float = Field(default=15.0, ge=1, le=300)  # seconds: then a silent Runner is dead
    event_retention: float = Field(default=0.0, ge=0)  # seconds that events are kept at least; 0: for ever
    replica: str = Field(default="", max_length=63)  # a name that is this Runner's own and the same at every start
    slots: int = Field(default=1_000, ge=1, le=100_000)  # runs at once in this process: bounds its memory
    upload_limit: int = Field(default=UPLOADS, ge=LARGEST_FILE)  # bytes that all files sent for experiments may have
    batch_poll: float = Field(default=60.0, gt=0)  # seconds between looks at a batch, at most
    failpoints: str = ""  # for tests: where this process is to fail, as `promptlooper.failpoints` reads it

    @field_validator("failpoints")
    @classmethod
    def _are_failpoints(cls, value: str) -> str:
        try:
            failpoints_from(value)
        except InvalidArgument as error:
            raise ValueError(error.message) from None
        return value
