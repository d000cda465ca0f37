"""Says what went wrong: on stderr to people, on stdout as one JSON document to programs. Returns the exit code."""

from __future__ import annotations

import errno
import traceback

import click

from promptlooper.cli.outcome import FAILED, USAGE, Refused, code_of, error_document
from promptlooper.cli.signals import Interrupted
from promptlooper.clients.packages import MissingPackage
from promptlooper.errors import DomainError, NotAvailableYet, ServiceUnavailable
from promptlooper.jsonvalue import json_text

START_A_SERVER = "Start a Runner with `promptlooper up -d` (the whole stack) or `promptlooper serve runner`."


def reported(error: Exception, as_json: bool) -> int:
    refused = _refused(error)
    if refused is None:
        traceback.print_exception(error)
        refused = Refused(f"This is a fault of PromptLooper: {type(error).__name__}: {error}")
    if as_json and not _is_of_output(error):
        click.echo(json_text(error_document(refused.reason, refused.message, refused.file, refused.line)))
    if isinstance(error, click.UsageError) and not as_json:
        error.show()
    elif refused.message:
        click.echo(refused.message if refused.located else f"Error: {refused.message}", err=True)
    return refused.code


def _is_of_output(error: Exception) -> bool:
    """Errors of files carry their names; what has none and tells of writing is stdout or stderr."""
    return isinstance(error, OSError) and error.filename is None and error.errno in _OF_WRITING


_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def _refused(error: Exception) -> Refused | None:
    if isinstance(error, Refused):
        return error
    if isinstance(error, Interrupted):
        return Refused(f"Stopped by {error}.", reason="INTERRUPTED", code=error.exit_code)
    if isinstance(error, click.Abort):  # Ctrl-C at a question, or before the loop runs
        return Refused("Stopped by SIGINT.", reason="INTERRUPTED", code=130)
    if isinstance(error, click.UsageError):
        return Refused(error.format_message(), reason="INVALID_ARGUMENT", code=USAGE)
    if isinstance(error, click.ClickException):
        return Refused(error.format_message(), reason="INVALID_ARGUMENT", code=error.exit_code)
    if isinstance(error, DomainError):
        message, reason = error.message, error.reason
        if isinstance(error, NotAvailableYet) and not error.metadata.get("feature"):
            reason = ServiceUnavailable.reason  # what is there is another service
        if isinstance(error, ServiceUnavailable | NotAvailableYet) and "`promptlooper" not in message:
            message = f"{message}. {START_A_SERVER}"
        file, line = error.metadata.get("file"), error.metadata.get("line", "")
        if file and line.isdecimal():
            return Refused(message, reason=error.reason, code=code_of(error), file=file, line=int(line), located=True)
        return Refused(message, reason=reason, code=code_of(error))
    if isinstance(error, MissingPackage):
        return Refused(f"{error}.", reason="NOT_AVAILABLE_YET")
    if isinstance(error, OSError) and _is_of_output(error):
        from promptlooper.cli.main import drop_output

        drop_output()
        return Refused(f"The output cannot be written: {error.strerror}.", reason="INVALID_ARGUMENT")
    if isinstance(error, OSError) and error.filename is not None:
        return Refused(f"{error.filename}: {error.strerror}.", reason="INVALID_ARGUMENT", code=FAILED)
    return None
