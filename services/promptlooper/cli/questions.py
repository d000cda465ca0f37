"""Asking before something is gone for good."""

from __future__ import annotations

import sys

import click

from promptlooper.cli.outcome import FAILED, USAGE, Refused


def confirm(question: str, yes: bool) -> None:
    """Returns when the user agrees. Where nobody can be asked, `--yes` is needed."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise Refused(
            "There is no terminal to ask on: add --yes to go ahead without a question.",
            reason="INVALID_ARGUMENT",
            code=USAGE,
        )
    if not click.confirm(question, err=True):
        raise Refused("Nothing was changed.", reason="INVALID_ARGUMENT", code=FAILED)
