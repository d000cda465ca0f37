"""What all replicas know of one lane, and who may do how much of it. Decides only; others keep it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import ceil

from promptlooper.adapter.limits.control import Control
from promptlooper.adapter.limits.window import (
    KINDS,
    PERIOD,
    Pair,
    Used,
    evenly,
    forget_old,
    free_after,
    used_in,
    wait_for,
)

LEASE = 5.0  # seconds that a replica's share stays its own when nothing is heard of it
_PROBE = 2.0  # seconds that a replica has to find out whether the provider takes something again


@dataclass(frozen=True, slots=True)
class Rules:
    """What the configuration says of a lane; None is without a limit."""

    max_concurrency: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    @property
    def per_minute(self) -> tuple[int | None, int | None]:
        return self.requests_per_minute, self.tokens_per_minute

    @property
    def metered(self) -> bool:
        return self.per_minute != (None, None)


@dataclass(slots=True)
class Member:
    """A replica's part: what it says of itself, each time anew."""

    lease_until: float = 0.0
    holds: int = 0  # attempts at once that are its own to make
    wants: int = 0
    stock: Pair = field(default_factory=lambda: [0.0, 0.0])  # granted, not used yet
    used: Used = field(default_factory=dict)


@dataclass(slots=True)
class Ledger:
    control: Control = field(default_factory=Control)
    free_at: Pair = field(default_factory=lambda: [-PERIOD, -PERIOD])  # when all that was granted has had its time
    members: dict[str, Member] = field(default_factory=dict)
    divisor: int = 1  # where others go on unseen: how many share what is not known to be used
    alone_since: float = 0.0
    prober: str = ""  # the replica that asks, for all, whether something is taken again
    probes_until: float = 0.0

    def living(self, now: float) -> int:
        return max(1, sum(member.lease_until > now for member in self.members.values()))


@dataclass(slots=True)
class Report:
    """What a replica did since its last exchange, has, and would do."""

    in_flight: int = 0
    wants: int = 0  # attempts at once
    needs: Pair = field(default_factory=lambda: [0.0, 0.0])  # beyond its stock: of all who wait
    head: Pair = field(default_factory=lambda: [0.0, 0.0])  # beyond its stock: of the next one, which is not divisible
    returns: Pair = field(default_factory=lambda: [0.0, 0.0])  # granted, and not needed after all
    stock: Pair = field(default_factory=lambda: [0.0, 0.0])
    used: Used = field(default_factory=dict)
    answers: int = 0
    begun_after: int = 0  # the pauses that the answered attempts began after
    refusals: Sequence[tuple[int, float | None]] = ()  # begun after, Retry-After
    trouble: bool = False
    taken: bool = False  # such an attempt was not refused within the time that a refusal takes
    would_try: bool = False  # someone waits until the provider takes something again
    full: bool = False  # someone waited for nothing but one of the attempts at once


@dataclass(frozen=True, slots=True)
class Grant:
    holds: int
    stock: tuple[float, float]  # in addition
    wait: float | None  # seconds until there may be more requests and tokens; None where all that was asked for came
    replicas: int
    probes: bool  # whether it is this replica that tries first after a pause


def alone(ledger: Ledger, name: str, replicas: int, now: float) -> Ledger:
    """What a replica goes by while the others can't be heard. They had `replicas` in all."""
    me = replace(ledger.members.get(name, Member()))
    elsewhere: Used = {}
    for other, member in ledger.members.items():
        if other != name:
            for second, pair in [*member.used.items(), (int(now), member.stock)]:
                sums = elsewhere.setdefault(second, [0.0, 0.0])
                for kind in KINDS:
                    sums[kind] += pair[kind]
    members = {name: me, "": Member(used=elsewhere, lease_until=now)}
    return Ledger(replace(ledger.control), list(ledger.free_at), members, replicas, now)


def exchanged(ledger: Ledger, name: str, report: Report, rules: Rules, now: float) -> Grant:
    """Enters a report and grants what there is room for."""
    me = ledger.members.setdefault(name, Member())
    me.lease_until, me.used, me.stock = now + LEASE, report.used, list(report.stock)
    for other in [other for other, member in ledger.members.items() if member.lease_until + PERIOD + 2 < now]:
        del ledger.members[other]
    for member in ledger.members.values():
        forget_old(member.used, now)
    living = {other: member for other, member in ledger.members.items() if member.lease_until > now}
    me.wants = report.wants
    _control(ledger, living, report, rules, now)
    me.holds = _holds(ledger, living, me, report, now)
    stock, wait = _granted(ledger, me, report, rules, now) if rules.metered else ((0.0, 0.0), None)
    for kind in KINDS:
        me.stock[kind] += stock[kind]
    return Grant(me.holds, stock, wait, max(len(living), ledger.divisor), _probes(ledger, name, report, now))


def _control(ledger: Ledger, living: dict[str, Member], report: Report, rules: Rules, now: float) -> None:
    control, ceiling = ledger.control, rules.max_concurrency
    control.told(ceiling)
    full = report.full and sum(member.wants for member in living.values()) >= int(control.limit) // ledger.divisor
    if report.taken:
        control.taken(report.begun_after)
    control.answered(now, report.answers, report.begun_after, full=full, ceiling=ceiling)
    if report.trouble:
        control.trouble()
    for begun_after, retry_after in report.refusals:
        control.refusal(now, begun_after, retry_after)


def _probes(ledger: Ledger, name: str, report: Report, now: float) -> bool:
    """One replica for all: else each would be refused by itself. Who does not find out leaves it to the next."""
    control = ledger.control
    if control.proved or now >= ledger.probes_until:
        ledger.prober = ""
    if not control.proved and not ledger.prober and report.would_try:
        ledger.prober, ledger.probes_until = name, max(now, control.paused_until) + _PROBE
    return ledger.prober == name


def _holds(ledger: Ledger, living: dict[str, Member], me: Member, report: Report, now: float) -> int:
    """As many as are this replica's by right, and no more than others have left; what is in flight stays its own."""
    limit = int(ledger.control.limit)
    if ledger.divisor > 1:
        return max(1, limit // ledger.divisor)
    share = _share(limit, living, me, now)
    left = limit - sum(member.holds for member in living.values() if member is not me)
    return max(report.in_flight, min(share, left))


def _share(limit: int, living: dict[str, Member], me: Member, now: float) -> int:
    """Max-min fair by what is wanted, and what nobody wants in equal parts. What can't be divided goes round."""
    members = [living[name] for name in sorted(living)]
    turn = int(now) % len(members)
    members = members[turn:] + members[:turn]
    shares = {id(member): 0 for member in members}
    left = limit
    for wanting in (True, False):
        hungry = [member for member in members if not wanting or member.wants > 0]
        while left > 0 and hungry:
            part = max(1, left // len(hungry))
            for member in hungry:
                more = min(part, left)
                if wanting:
                    more = min(more, member.wants - shares[id(member)])
                shares[id(member)] += more
                left -= more
            hungry = [member for member in hungry if not wanting or shares[id(member)] < member.wants]
    return shares[id(me)]


def _granted(
    ledger: Ledger, me: Member, report: Report, rules: Rules, now: float
) -> tuple[tuple[float, float], float | None]:
    rooms, waits = [0.0, 0.0], [0.0, 0.0]
    for kind, limit in enumerate(rules.per_minute):
        if limit is None:
            rooms[kind] = float("inf")
            continue
        rate = limit / ledger.divisor
        if report.returns[kind]:
            ledger.free_at[kind] = free_after(kind, ledger.free_at[kind], now, -report.returns[kind], rate)
        need = min(report.head[kind], float(limit))
        room = _room(ledger, me, limit, kind)
        even = evenly(kind, ledger.free_at[kind], now, rate)
        if room < need:
            windows = [member.used for member in ledger.members.values()]
            waits[kind] = wait_for(need, room, windows, kind, now)
        elif even < 0:
            waits[kind] = ledger.free_at[kind] - now
        rooms[kind] = min(room, max(even, need)) if even >= 0 else 0.0
    if any(report.head) and max(waits) > 0:
        return (0.0, 0.0), max(waits)  # part of what the next one needs is of no use to it, but may be to others
    stock = [0.0, 0.0]
    for kind, limit in enumerate(rules.per_minute):
        if limit is None:
            continue
        least = min(report.head[kind], float(limit))
        wanted = sum(max(member.wants, 1) for member in ledger.members.values() if member.lease_until > now)
        fair = ceil(rooms[kind] * max(me.wants, 1) / wanted)
        amount = max(least, min(report.needs[kind], rooms[kind], fair))
        if amount > 0:
            ledger.free_at[kind] = free_after(kind, ledger.free_at[kind], now, amount, limit / ledger.divisor)
        stock[kind] = amount
    scarce = any(limit is not None and stock[kind] < report.needs[kind] for kind, limit in enumerate(rules.per_minute))
    return (stock[0], stock[1]), 0.0 if scarce else None


def _room(ledger: Ledger, me: Member, limit: int, kind: int) -> float:
    """Of the window. Alone, each has an equal part of what was free when the others were last heard of, and of what
    becomes free since."""
    held = sum(member.stock[kind] for member in ledger.members.values())
    used = sum(used_in(member.used, kind) for member in ledger.members.values())
    if ledger.divisor == 1:
        return limit - used - held
    mine = sum(pair[kind] for second, pair in me.used.items() if second >= int(ledger.alone_since)) + me.stock[kind]
    return (limit - (used + held - mine)) / ledger.divisor - mine
