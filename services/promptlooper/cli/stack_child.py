"""One child process of a stack: started in a session of its own, heard through a pipe, and known by how it ended."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from promptlooper.backing import NatsServer, RedisServer, dies_with_parent
from promptlooper.cli.stack import MIGRATION, Options, Part

_TAIL_LINES = 20
_FIRST_DELAY_SECONDS = 0.2
_LONGEST_DELAY_SECONDS = 10.0
# As long as the longest delay: what dies more often than that is in trouble.
_STEADY_SECONDS = 10.0


@dataclass(slots=True)
class Child:
    """`delay`: how many seconds its start waited after the end of the one before; None for a part's first process."""

    part: Part
    process: asyncio.subprocess.Process
    delay: float | None = None
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=_TAIL_LINES))
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    healthy_since: float | None = None  # of the monotonic clock

    @property
    def how_it_ended(self) -> str:
        code = self.process.returncode
        assert code is not None
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def next_delay(self) -> float:
        """How long its successor waits."""
        healthy = 0.0 if self.healthy_since is None else time.monotonic() - self.healthy_since
        return delay_after(self.delay, healthy)

    def signal_group(self, number: signal.Signals) -> None:
        """Each child leads a process group of its own, so this reaches what it started, too."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


def delay_after(previous: float | None, healthy_seconds: float = 0.0) -> float:
    """Seconds until a part that ended is started again: twice the `previous`, or few if it was healthy for a while."""
    if previous is None or healthy_seconds >= _STEADY_SECONDS:
        return _FIRST_DELAY_SECONDS
    return min(2 * previous, _LONGEST_DELAY_SECONDS)


async def start_child(part: Part, options: Options, env: Mapping[str, str], delay: float | None) -> tuple[Child, int]:
    """The child, and the end of a pipe to read what it says. Raises OSError or BackingUnavailable."""
    argv = command_of(part, options)
    # A pipe of our own, so that waiting for the process does not also wait for what holds its output open.
    reading, writing = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            env=env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=writing,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,  # else a Ctrl-C in the terminal would reach the parts before us
            preexec_fn=dies_with_parent(signal.SIGKILL),
        )
    except OSError:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    return Child(part, process, delay), reading


def command_of(part: Part, options: Options) -> Sequence[str | Path]:
    """The command line of a part; writes the configuration that it names."""
    match part.kind:
        case "nats":
            return NatsServer(options.data / "nats", part.port).command()
        case "redis":
            return RedisServer(options.data / "redis", part.port).command()
        case MIGRATION.kind:
            return (sys.executable, "-m", "promptlooper.cli.main", "migrate")
        case _:
            return (sys.executable, "-m", f"promptlooper.{part.kind}")
