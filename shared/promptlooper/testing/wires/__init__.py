"""Providers for tests, one for each wire format: real HTTP servers that refuse what the real ones refuse."""

from promptlooper.testing.wires.server import Reply, WireServer
from promptlooper.testing.wires.wire import Asked, Refused, Said, Wire

__all__ = ["Asked", "Refused", "Reply", "Said", "Wire", "WireServer"]
