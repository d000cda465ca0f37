"""Numbers as people read them."""

from __future__ import annotations

import pytest

from promptlooper.cli.wording import milliseconds, money, one_line, price, printable, seconds, spent


@pytest.mark.parametrize(
    ("nanousd", "text"),
    [
        (None, "unknown"),
        (0, "$0"),
        (1, "$0.000000001"),
        (120_000, "$0.00012"),
        (12_345_678, "$0.0123"),
        (400_000_000, "$0.40"),
        (999_999_999, "$1.00"),
        (1_234_000_000, "$1.23"),
        (12_345_678_900_000, "$12,345.68"),
    ],
)
def test_money_is_short_and_unknown_is_not_zero(nanousd: int | None, text: str) -> None:
    assert money(nanousd) == text


def test_spent_says_when_some_prices_are_unknown() -> None:
    assert spent(0, 0) == "$0"
    assert spent(0, 2) == "unknown"
    assert spent(2_000_000_000, 1) == "over $2.00"


def test_times_are_short() -> None:
    assert [milliseconds(None), milliseconds(82), milliseconds(1200)] == ["–", "82 ms", "1.2 s"]
    assert [seconds(0.04), seconds(59.4), seconds(200), seconds(7_260)] == ["0.0 s", "59 s", "3 min 20 s", "2 h 1 min"]


def test_control_characters_of_a_model_never_reach_the_terminal() -> None:
    assert printable("a\x1b[31mb\nc\x07") == "a�[31mb\nc�"
    assert one_line("a\n\n  b" + "c" * 300, 10) == "a bcccccc…"


def test_prices_are_exact_with_two_digits_at_least() -> None:
    assert [price(None), price(0), price(400_000_000), price(1_375_000_000), price(75_000_000), price(15 * 10**9)] == [
        *("unknown", "$0", "$0.40", "$1.375", "$0.075", "$15.00")
    ]
