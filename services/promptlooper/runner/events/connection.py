"""A connection to NATS that waits for it and comes back by itself."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nats
from nats.aio.client import Client
from nats.errors import Error as NatsError

from promptlooper.errors import InvalidArgument
from promptlooper.reloading import contents

AFTER_FAILURE = 0.5


async def _nothing() -> None: ...


@dataclass(frozen=True, slots=True)
class NatsSecurity:
    """What NATS is told of us, and how it proves itself. Credentials are read at each connection, the CA at the first.

    nats-py begins TLS when the server asks for it. With `tls_first` it begins at once, so that nobody on the way can
    talk it out of TLS; the server must be set to that too (`handshake_first`).
    """

    credentials_file: Path | None = None
    ca_file: Path | None = None
    tls_first: bool = False

    def options(self) -> dict[str, Any]:
        """For `nats.connect`. Raises InvalidArgument where a file can't be taken."""
        found: dict[str, Any] = {}
        if self.credentials_file is not None:
            contents(self.credentials_file, "the credentials of NATS")
            found["user_credentials"] = self.credentials_file
        if self.ca_file is not None:
            contents(self.ca_file, "the CA of NATS")
            try:
                found["tls"] = ssl.create_default_context(cafile=str(self.ca_file))
            except ssl.SSLError:
                raise InvalidArgument(f"{str(self.ca_file)!r} holds no certificates in PEM format") from None
            found["tls_handshake_first"] = self.tls_first
        return found


OPEN = NatsSecurity()


async def connected(
    url: str,
    name: str,
    *,
    security: NatsSecurity = OPEN,
    report: Callable[[Exception], Awaitable[None]],
    interrupted: Callable[[], Awaitable[None]] = _nothing,
    again: Callable[[], Awaitable[None]] = _nothing,
    echo: bool = True,
) -> Client:
    """Goes on until NATS is there, and reconnects for ever after. `report` hears of each failure, `again` of each
    reconnection; without `echo` its subscriptions don't get what it publishes."""
    while True:
        try:
            return await nats.connect(
                url,
                **security.options(),
                name=name,
                error_cb=report,
                disconnected_cb=interrupted,
                reconnected_cb=again,
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.25,
                connect_timeout=2,
                ping_interval=10,
                max_outstanding_pings=2,
                no_echo=not echo,
                # Nothing is held back for later: events are read from SQL again, in order, and hints are old by then.
                pending_size=0,
            )
        except (NatsError, OSError, TimeoutError, InvalidArgument) as error:
            await report(error)
            await asyncio.sleep(AFTER_FAILURE)
