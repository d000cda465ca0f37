"""Named places in the code where tests make things go wrong."""

from __future__ import annotations

import itertools
import logging
import os
import re
import signal
from collections.abc import Callable, Mapping

from promptlooper.errors import InvalidArgument, ServiceUnavailable, StoreUnavailable

log = logging.getLogger("failpoints")

NAMES = (
    "create_before_insert",
    "create_after_insert",
    "create_after_commit",
    "claim_before_commit",  # of a turn that claims runs
    "claim_after_commit",
    "render_before",
    "render_after",
    "lookup_before",  # in the cache
    "lookup_after",
    "call_before",  # of the model
    "call_after",  # it has answered, nobody knows yet
    "store_before",  # in the cache
    "store_after",
    "batch_formed",  # of questions that wait; not handed in yet
    "batch_before_submit",
    "batch_after_submit",  # the provider has it, nobody knows yet
    "batch_before_results",
    "batch_after_results",  # they are stored, the batch is not forgotten yet
    "checkpoint_before",  # of the transaction that stores outcomes
    "checkpoint_before_commit",  # of a turn that stores a stage
    "checkpoint_after_commit",
    "score_before",
    "score_after",
    "terminal_before_commit",  # of the turn that ends an experiment
    "terminal_after_commit",
    "publish_before",  # to NATS
    "publish_after",  # given to the socket, not acknowledged
    "ack_before",  # the first is acknowledged, the others are waited for
    "ack_after",  # acknowledged, not recorded
    "lease_before_renew",
    "turn_before",
    "turn_before_commit",
    "turn_after_commit",
)
ACTIONS = ("kill", "error", "stop")
_RULE = re.compile(r"\s*(\w+)\s*=\s*(\w+)\s*(?:@\s*([0-9]{1,9})\s*)?")


class InjectedFault(StoreUnavailable, ServiceUnavailable):
    """A lost connection, for every layer that knows of lost connections."""


class Failpoints:
    """Calls what is set for a name when the code passes it; nothing is set by default.

    An action raises to fail there. The code passes `failpoints.hit("turn_before_commit")` synchronously, in the thread
    that does the work, so that an action also runs inside a transaction.
    """

    def __init__(self, actions: Mapping[str, Callable[[], None]] | None = None) -> None:
        self.actions: dict[str, Callable[[], None]] = dict(actions or {})

    def hit(self, name: str) -> None:
        if self.actions and (action := self.actions.get(name)) is not None:
            action()


def failpoints_from(text: str) -> Failpoints:
    """Reads `NAME=ACTION[@N]`, more of them after `;`. `kill` and `stop` send this process SIGKILL or SIGSTOP, `error`
    raises InjectedFault; with `@N` only at the N-th hit, else at each. Raises InvalidArgument for what is unknown."""
    actions: dict[str, Callable[[], None]] = {}
    for rule in filter(str.strip, text.split(";")):
        found = _RULE.fullmatch(rule)
        if found is None:
            raise InvalidArgument(f"{rule.strip()!r} is not NAME=ACTION or NAME=ACTION@N, as in call_before=kill@3")
        name, action, nth = found[1], found[2], None if found[3] is None else int(found[3])
        if name not in NAMES:
            raise InvalidArgument(f"there is no failpoint {name!r}; there are {', '.join(NAMES)}")
        if action not in ACTIONS:
            raise InvalidArgument(f"a failpoint can't {action!r}; it can {', '.join(ACTIONS)}")
        if name in actions:
            raise InvalidArgument(f"failpoint {name!r} is set twice; set it once")
        if nth == 0:
            raise InvalidArgument(f"{rule.strip()!r} counts from 1; write @1 for the first hit")
        actions[name] = _acting(name, action, nth)
    return Failpoints(actions)


def _acting(name: str, action: str, nth: int | None) -> Callable[[], None]:
    hits = itertools.count(1)  # atomic: a failpoint is passed in more than one thread

    def act() -> None:
        number = next(hits)
        if nth is not None and number != nth:
            return
        log.warning("failpoint %s: %s at hit %d", name, action, number)
        if action == "error":
            raise InjectedFault(f"failpoint {name!r} was set to fail here")
        os.kill(os.getpid(), signal.SIGKILL if action == "kill" else signal.SIGSTOP)

    return act
