"""`promptlooper token`: keys for those who call a server."""

from __future__ import annotations

import os
import re
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from promptlooper.errors import InvalidArgument

_DURATION = re.compile(r"([1-9][0-9]{0,4})([hd])")


@click.group()
def token() -> None:
    """Make API keys for those who call a server."""


@token.command()
@click.option("--name", required=True, help="Who it is for; logs of the server name it.")
@click.option(
    "--scopes",
    required=True,
    metavar="SCOPE[,SCOPE]",
    help="read: look at everything; run: also run experiments; admin: also delete them and clear the cache.",
)
@click.option("--expires", metavar="DURATION", help="After how long it ends: 90d, 12h. Without it, never.")
@click.option(
    "--file",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="PROMPTLOOPER_API_KEYS_FILE",
    help="The servers' file of keys, which gets a line. [PROMPTLOOPER_API_KEYS_FILE]",
)
def new(name: str, scopes: str, expires: str | None, path: Path | None) -> None:
    """Make a key. It is printed once, on stdout; servers get only its hash.

    Without a file, the line for it is printed on stderr.
    """
    from promptlooper.rpc.api_keys import HEADER, key_line, new_key, read_keys
    from promptlooper.rpc.callers import parsed_scopes

    try:
        granted = sorted(parsed_scopes(scopes.split(",")))
    except ValueError as error:
        raise InvalidArgument(f"--scopes: {error}") from None
    try:
        there = path.read_text() if path is not None and path.exists() else HEADER
    except UnicodeDecodeError:
        raise InvalidArgument(f"{str(path)!r} is no file of keys: it is not text") from None
    except OSError as error:
        raise InvalidArgument(f"{str(path)!r} can't be read: {error.strerror}") from None
    if any(caller.name == name for caller in read_keys(there.encode()).callers.values()):
        raise InvalidArgument(f"{str(path)!r} has a key named {name!r} already: choose another, or delete that line")
    key = new_key()
    line = key_line(name, granted, key, _end(expires))
    if path is None:
        click.echo("Servers get this line in the file that PROMPTLOOPER_API_KEYS_FILE names:", err=True)
        click.echo(line, err=True, nl=False)
    else:
        _replace(path, there + ("" if there.endswith("\n") else "\n") + line)
        click.echo(f"Servers that read {str(path)!r} know the key within a second. It is printed here only:", err=True)
    click.echo(key)


def _end(expires: str | None) -> datetime | None:
    if expires is None:
        return None
    if (found := _DURATION.fullmatch(expires)) is None:
        raise InvalidArgument(f"--expires {expires!r} is no duration: write 90d or 12h")
    number = int(found[1])
    return datetime.now(UTC) + (timedelta(days=number) if found[2] == "d" else timedelta(hours=number))


def _replace(path: Path, text: str) -> None:
    """At once: a server never reads half of it, and nobody may read it who may not read what was there."""
    try:
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
        handle, new = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
        try:
            with open(handle, "w") as file:
                file.write(text)
            os.chmod(new, mode)
            os.replace(new, path)
        except BaseException:
            os.unlink(new)
            raise
    except OSError as error:
        raise InvalidArgument(f"{str(path)!r} can't be written: {error.strerror}") from None
