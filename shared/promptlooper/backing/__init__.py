"""Real NATS, Redis and PostgreSQL servers as child processes: for `promptlooper up` and for tests.

Each dies with the thread that started it: start them from one that lives as long as they should. Methods block;
`launch` and `is_ready` are for callers that wait in their own way.
"""

from promptlooper.backing.brokers import NatsServer, RedisServer
from promptlooper.backing.postgres import PostgresServer
from promptlooper.backing.programs import BackingUnavailable, find_nats_server, find_postgres, find_redis_server
from promptlooper.backing.server import Server, dies_with_parent, free_port

__all__ = [
    "BackingUnavailable",
    "NatsServer",
    "PostgresServer",
    "RedisServer",
    "Server",
    "dies_with_parent",
    "find_nats_server",
    "find_postgres",
    "find_redis_server",
    "free_port",
]
