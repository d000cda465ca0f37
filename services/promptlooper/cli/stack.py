"""What a stack on one machine consists of: its parts, their ports and their environment. Starts nothing."""

from __future__ import annotations

import hashlib
import os
import random
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HOST = "127.0.0.1"
DEFAULT_PORT_BASE = 7051
HEALTH_OFFSET, METRICS_OFFSET = 100, 200
MAX_REPLICAS = 10

START_ORDER = ("nats", "redis", "cache", "scorer", "adapter", "runner")
STOP_ORDER = tuple(reversed(START_ORDER))
SERVICES = ("runner", "adapter", "cache", "scorer")

_PORT_OFFSET = {"runner": 0, "adapter": 1, "cache": 2, "scorer": 3, "nats": 4, "redis": 5}
_REPLICA_STEP = 10
# Replicas and their metrics ports end at base + 3 + 90 + 200.
_HIGHEST_OFFSET = max(_PORT_OFFSET.values()) + _REPLICA_STEP * (MAX_REPLICAS - 1) + METRICS_OFFSET
MAX_PORT_BASE = 65535 - _HIGHEST_OFFSET

# What any program needs. All else, provider keys and proxies above all, is the Adapter's alone.
_INHERITED = frozenset(
    [
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "LANG",
        "LANGUAGE",
        "TZ",
        "TMPDIR",
        "VIRTUAL_ENV",
        "LD_LIBRARY_PATH",
        "DYLD_LIBRARY_PATH",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
    ]
)
_INHERITED_PREFIXES = ("LC_", "PYTHON", "PROMPTLOOPER_", "OTEL_")
# Set here for each part, or meant for a command line and not for a service. Traces need a name for each service.
_SET_BY_STACK = {"OTEL_SERVICE_NAME"} | frozenset(
    f"PROMPTLOOPER_{name}"
    for name in [
        "LISTEN",
        "HEALTH_LISTEN",
        "METRICS_LISTEN",
        "DATABASE_URL",
        "REDIS_URL",
        "NATS_URL",
        "ADAPTER_ADDRESS",
        "CACHE_ADDRESS",
        "SCORER_ADDRESS",
        "NATS_CREDENTIALS_FILE",
        "NATS_CA_FILE",
        "NATS_TLS_FIRST",
        "REDIS_CLUSTER",
        "REDIS_PASSWORD_FILE",
        "REDIS_CA_FILE",
        "REDIS_CLUSTER",
        "PROVIDERS",
        "REPLICA",
        "HOME",
        "SERVER",
        "SERVER_NAME",
        "SERVER_CA_FILE",
        "SERVER_CERT_FILE",
        "SERVER_KEY_FILE",
        "SERVER_TOKEN_FILE",
    ]
)


@dataclass(frozen=True, slots=True)
class Options:
    """What `up` was asked for. `port_base` 0 means ports that are free."""

    data: Path
    replicas: Mapping[str, int]
    database_url: str | None = None
    providers: Path | None = None
    port_base: int = DEFAULT_PORT_BASE

    @property
    def sqlite(self) -> bool:
        return self.database_url is None or self.database_url.startswith("sqlite")


@dataclass(frozen=True, slots=True)
class Part:
    """One process of the stack; NATS and Redis have no ports for health and metrics, they are asked in their own
    protocol."""

    name: str
    kind: str
    port: int
    health_port: int | None = None
    metrics_port: int | None = None

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def health_address(self) -> str | None:
        return None if self.health_port is None else f"{HOST}:{self.health_port}"

    @property
    def metrics_address(self) -> str | None:
        return None if self.metrics_port is None else f"{HOST}:{self.metrics_port}"

    @property
    def ports(self) -> tuple[int, ...]:
        return tuple(port for port in (self.port, self.health_port, self.metrics_port) if port is not None)


# Not a part that stays: it runs before the Runner, on a database that does not migrate itself.
MIGRATION = Part("migrate", "migrate", 0)


def planned_parts(replicas: Mapping[str, int], port_base: int) -> tuple[Part, ...]:
    """The parts in starting order. Replica i of a kind listens 10 × i above the first; its health is 100
    above that, and its metrics 200."""
    parts = []
    for kind in START_ORDER:
        for replica in range(replicas.get(kind, 1)):
            port = port_base + _PORT_OFFSET[kind] + _REPLICA_STEP * replica
            if kind in SERVICES:
                parts.append(Part(f"{kind}-{replica}", kind, port, port + HEALTH_OFFSET, port + METRICS_OFFSET))
            else:
                parts.append(Part(kind, kind, port))
    return tuple(parts)


def ports_in_use(parts: Sequence[Part]) -> list[tuple[int, Part]]:
    """The ports that another program listens on, with the part that wants each."""
    return [(port, part) for part in parts for port in part.ports if not _is_free(port)]


def free_port_base(replicas: Mapping[str, int]) -> int:
    """A base whose ports are all free now, below the range that systems give to outgoing connections."""
    for _ in range(200):
        base = random.randrange(10_000, 32_000 - _HIGHEST_OFFSET)
        if not ports_in_use(planned_parts(replicas, base)):
            return base
    raise OSError("no block of free ports was found between 10000 and 32000")


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Without it, a port whose last connections linger in TIME_WAIT would look taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def database_url(options: Options) -> str:
    return options.database_url or f"sqlite:///{options.data / 'promptlooper.db'}"


def environment_of(
    part: Part, parts: Sequence[Part], options: Options, outer: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """What a part's process sees: little of the outside, and where the other parts are.

    Only the Adapter gets the whole outer environment, because any name in it may hold a provider's key; only the Runner
    gets the database URL, which may hold a password.
    """
    if part.kind == "adapter":
        env = {name: value for name, value in outer.items() if name not in _SET_BY_STACK}
    else:
        env = {name: value for name, value in outer.items() if name not in _SET_BY_STACK and _inherited(name)}
    if part.kind == MIGRATION.kind:
        return env | {"PROMPTLOOPER_DATABASE_URL": database_url(options)}
    if part.kind not in SERVICES:
        return env
    env["PROMPTLOOPER_LISTEN"] = part.address
    env["PROMPTLOOPER_HEALTH_LISTEN"] = part.health_address or ""
    env["PROMPTLOOPER_METRICS_LISTEN"] = part.metrics_address or ""
    env["PROMPTLOOPER_HOME"] = str(options.data)
    match part.kind:
        case "runner":
            env["PROMPTLOOPER_DATABASE_URL"] = database_url(options)
            env["PROMPTLOOPER_REPLICA"] = _replica_of(part, options)
            env["PROMPTLOOPER_NATS_URL"] = f"nats://{_address_of('nats', parts)}"
            for kind in ("adapter", "cache", "scorer"):
                env[f"PROMPTLOOPER_{kind.upper()}_ADDRESS"] = _address_of(kind, parts)
        case "adapter":
            env["PROMPTLOOPER_REDIS_URL"] = f"redis://{_address_of('redis', parts)}/0"
            if options.providers is not None:
                env["PROMPTLOOPER_PROVIDERS"] = str(options.providers)
        case "cache":
            env["PROMPTLOOPER_REDIS_URL"] = f"redis://{_address_of('redis', parts)}/0"
    return env


def _replica_of(part: Part, options: Options) -> str:
    """The same at every start of the part, and no other stack's on a database that stacks share."""
    stack = f"{socket.gethostname()} {options.data.absolute()}"
    return f"{part.name}-{hashlib.sha256(stack.encode()).hexdigest()[:12]}"


def _inherited(name: str) -> bool:
    return name in _INHERITED or name.startswith(_INHERITED_PREFIXES)


def _address_of(kind: str, parts: Sequence[Part]) -> str:
    """Of several replicas a list, which a channel uses in turn."""
    addresses = [part.address for part in parts if part.kind == kind]
    return ",".join(addresses)
