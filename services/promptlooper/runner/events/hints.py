"""Hints between Runners: "look at these experiments now", over core NATS.

Nothing depends on them: who hears no hint looks by itself after half a second.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import zip_longest

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from promptlooper.jsonvalue import json_text, json_value
from promptlooper.runner.events.connection import AFTER_FAILURE, OPEN, NatsSecurity, connected
from promptlooper.runner.events.hub import Hub
from promptlooper.settings import masked

log = logging.getLogger("runner.hints")
SUBJECT = "promptlooper.v1.hints"
LOOK_AT_LEAST = 5.0  # seconds between looks whether the connection is closed for good
TOGETHER = 0.05  # seconds for which advanced experiments are collected; a changed one goes out at once
IDS = 400  # of each kind in a message: so many ids of 63 characters are under 64 KB
LONGEST_ID, LARGEST_HINT = 63, 64 * 1024


class Hints:
    """Tells other Runners what the hub hears here, and the hub what they tell."""

    def __init__(self, hub: Hub, url: str, security: NatsSecurity = OPEN) -> None:
        self._hub, self._url, self._security = hub, url, security
        self._away = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._run(), name="hints")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                client = await connected(
                    self._url,
                    "promptlooper-hints",
                    security=self._security,
                    report=self._report,
                    again=self._back,
                    echo=False,
                )
                try:
                    await self._exchange(client)
                finally:
                    await client.close()
            except (NatsError, OSError, TimeoutError) as error:
                await self._report(error)
            except Exception:
                log.exception("hints met a fault; they go on")
            await asyncio.sleep(AFTER_FAILURE)

    async def _exchange(self, client: Client) -> None:
        """Until the connection is closed for good."""
        await client.subscribe(SUBJECT, cb=self._hear)
        await client.flush()
        await self._back()
        with self._hub.listening(only_here=True) as news:
            while not client.is_closed:
                await news.some(LOOK_AT_LEAST)
                await news.changes(TOGETHER)
                for payload in payloads(*news.take()):
                    if client.is_connected:  # else they are lost: when NATS is back they are old
                        await client.publish(SUBJECT, payload)

    async def _hear(self, message: Msg) -> None:
        hint = hint_of(message.data)
        if hint is None:
            log.debug("not a hint: %d bytes on %s", len(message.data), SUBJECT)
        else:
            self._hub.heard(*hint)

    async def _report(self, error: Exception) -> None:
        if not self._away:
            self._away = True
            log.info(
                "no hints to and from other Runners, each looks by itself: NATS at %s: %r", masked(self._url), error
            )

    async def _back(self) -> None:
        if self._away:
            self._away = False
            log.info("hints go to and from other Runners again")


def payloads(changed: Sequence[str], advanced: Sequence[str]) -> list[bytes]:
    """As few messages as hold them, each of bounded size."""
    parts = zip_longest(_parts(changed), _parts(advanced), fillvalue=())
    return [json_text({"changed": list(some), "advanced": list(others)}).encode() for some, others in parts]


def hint_of(payload: bytes) -> tuple[list[str], list[str]] | None:
    """(changed, advanced); None for what is no hint."""
    if len(payload) > LARGEST_HINT:
        return None
    try:
        hint = json_value(payload)
        changed, advanced = hint["changed"], hint["advanced"]
        if all(isinstance(ids, list) for ids in (changed, advanced)) and all(
            isinstance(name, str) and len(name) <= LONGEST_ID for name in (*changed, *advanced)
        ):
            return changed, advanced
    except (ValueError, TypeError, KeyError):
        pass
    return None


def _parts(ids: Sequence[str]) -> list[Sequence[str]]:
    return [ids[i : i + IDS] for i in range(0, len(ids), IDS)]
