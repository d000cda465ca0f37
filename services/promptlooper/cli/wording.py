"""Numbers, times and texts as a person reads them on a terminal."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

_NANO = Decimal(1_000_000_000)


def money(nanousd: int | None) -> str:
    """`unknown`, `$0`, `$0.00012`, `$0.40`, `$1.23`: two digits after the point, below a dollar up to three significant
    ones."""
    if nanousd is None:
        return "unknown"
    if nanousd == 0:
        return "$0"
    dollars = Decimal(nanousd) / _NANO
    if abs(dollars) >= 1:
        return f"${dollars:,.2f}"
    digits = 2 - dollars.adjusted()
    text = f"{dollars:.{digits}f}"
    return f"${_two_at_least(text)}"


def price(nanousd: int | None) -> str:
    """An amount that is not rounded: `$0.075`, `$1.375`, `$15.00`."""
    if not nanousd:
        return money(nanousd)
    return f"${_two_at_least(f'{Decimal(nanousd) / _NANO:,.9f}')}"


def _two_at_least(number: str) -> str:
    """Without the zeros at its end, but with two digits after the point."""
    whole, _, digits = number.partition(".")
    return f"{whole}.{digits.rstrip('0').ljust(2, '0')}"


def spent(cost_nanousd: int, cost_unknown_calls: int) -> str:
    """What is known of a cost while some prices may be unknown."""
    if not cost_unknown_calls:
        return money(cost_nanousd)
    return f"over {money(cost_nanousd)}" if cost_nanousd else "unknown"


def milliseconds(value: int | None) -> str:
    """`–`, `82 ms`, `1.2 s`, `3 min 20 s`."""
    if value is None:
        return "–"
    return f"{value} ms" if value < 1000 else seconds(value / 1000)


def seconds(value: float) -> str:
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def share(value: float | None) -> str:
    """A score or rate of 0..1, as it stands in files: `–`, `0.75`."""
    return "–" if value is None else f"{value:.2f}"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def count(n: int, one: str, many: str = "") -> str:
    """`1 run`, `2,000 runs`."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def local_time(moment: datetime) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def printable(text: str) -> str:
    """Text of a model or file without control characters, which could move the cursor or recolour the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text)


def one_line(text: str, width: int = 160) -> str:
    flat = " ".join(printable(text).split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"
