"""How many attempts at once a key and model take: found out by trying. Decides only; time is passed in."""

from __future__ import annotations

from dataclasses import dataclass

START = 20  # attempts at once where the configuration names no limit
LEAST = 1
COOL_DOWN = 15.0  # seconds of an episode: one shrinks the limit once, however many refusals it brings
_SHRINK = 0.8
_GROW = 1.05
_ROUND = 5.0  # seconds at least, once it is known what is too much: a minute's limit shows late
_FIRST_PAUSE, _LAST_PAUSE = 0.25, 8.0  # seconds after a refusal without Retry-After; doubles until something is taken


@dataclass(slots=True)
class Control:
    """The limit and how it came about. Times are monotonic seconds of whoever keeps it.

    The limit doubles with every clean round until the first refusal (429), then grows by 5 %; a round is as many
    answers as the limit, at a time when the limit was used up, and then takes 5 s at least. A refusal pauses all
    attempts as long as the provider says, and shrinks the limit where no episode is under way. Answers and refusals of
    attempts that began before the last pause say nothing new: each attempt remembers the number of `pauses` that it
    began after.
    """

    limit: float = START
    doubling: bool = True
    pauses: int = 0
    paused_until: float = 0.0
    cool_until: float = 0.0
    proved: bool = True  # something that was begun after the last pause was taken
    refused: int = 0  # pauses since then
    answers: int = 0  # of this round
    grown: float = 0.0  # when it last grew
    full: bool = False  # whether the limit was used up in this round

    def told(self, ceiling: int | None) -> None:
        """The configuration's limit, which is start and ceiling; None is without one."""
        if ceiling is not None:
            if self.doubling or self.limit > ceiling:
                self.limit = ceiling
            self.doubling = False
        self.limit = max(self.limit, LEAST)

    def refusal(self, now: float, begun_after: int, retry_after: float | None) -> None:
        """The provider said 429 to an attempt."""
        pause = retry_after or 0.0
        if begun_after == self.pauses:
            if now >= self.cool_until:
                self.limit = max(LEAST, self.limit * _SHRINK)
                self.doubling = False
                self.cool_until = now + COOL_DOWN
            self._new_round()
            self.pauses += 1
            self.refused += 1
            self.proved = False
            if retry_after is None or self.refused > 1:  # it was too little the last time
                pause = max(pause, min(_LAST_PAUSE, _FIRST_PAUSE * 2.0 ** min(self.refused - 1, 10)))
        self.paused_until = max(self.paused_until, now + pause)
        self.cool_until = max(self.cool_until, now + (retry_after or 0.0))

    def taken(self, begun_after: int) -> None:
        """The provider did not refuse an attempt."""
        if begun_after == self.pauses:
            self.proved = True
            self.refused = 0

    def trouble(self) -> None:
        """A time-out or a 5xx: no reason to ask less, and none to ask more."""
        self._new_round()

    def answered(self, now: float, count: int, begun_after: int, *, full: bool, ceiling: int | None) -> None:
        if begun_after != self.pauses:
            return
        if count:
            self.taken(begun_after)
        self.full = self.full or full
        over = self.is_round_over(now, count)
        self.answers += count
        if not over:
            return
        if self.full and now >= self.cool_until:
            self.limit *= 2.0 if self.doubling else _GROW
            self.grown = now
            if ceiling is not None:
                self.limit = min(self.limit, ceiling)
        self._new_round()

    def is_round_over(self, now: float, answers: int) -> bool:
        """Whether these further answers end it."""
        return self.answers + answers >= int(self.limit) and (self.doubling or now >= self.grown + _ROUND)

    def _new_round(self) -> None:
        self.answers, self.full = 0, False
