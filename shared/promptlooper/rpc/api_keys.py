"""API keys: 256 random bits each, of which servers keep the hash only."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from promptlooper.errors import InvalidArgument
from promptlooper.rpc.callers import Caller, parsed_scopes
from promptlooper.rpc.scopes import Scope

PREFIX = "plk_"  # tells a key from other tokens, and secret scanners what they see
HEADER = "# name  scopes  sha256 of the key  [expires]\n"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}")
_HASH = re.compile(r"sha256:[0-9a-f]{64}")
FOREVER = float("inf")


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """The keys of a file, by their hashes. A key is random enough that no slow hash is needed."""

    callers: dict[str, Caller]

    def caller(self, key: str) -> Caller | None:
        """Whose key it is, also where it has expired."""
        return self.callers.get(_hash_of(key))


def new_key() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def key_line(name: str, scopes: Iterable[Scope], key: str, expires: datetime | None = None) -> str:
    """The line that lets a server know the key. Raises InvalidArgument for a name that can't be used."""
    if not _NAME.fullmatch(name):
        raise InvalidArgument(f"{name!r} is no name for a key: use letters, digits and . _ @ -, 63 at most")
    line = f"{name}  {','.join(scopes)}  {_hash_of(key)}"
    return line + (f"  {expires.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}" if expires else "") + "\n"


def read_keys(data: bytes) -> ApiKeys:
    """The keys of a file's text: a line each, `#` begins a comment. Raises InvalidArgument that names the line."""
    callers: dict[str, Caller] = {}
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        if fields := line.partition("#")[0].split():
            try:
                digest, caller = _read(fields)
            except ValueError as error:
                raise InvalidArgument(f"line {number}: {error}") from None
            if digest in callers:
                raise InvalidArgument(f"line {number}: the same key as that of {callers[digest].name!r}")
            callers[digest] = caller
    return ApiKeys(callers)


def _read(fields: Sequence[str]) -> tuple[str, Caller]:
    if not 3 <= len(fields) <= 4:
        raise ValueError("write NAME SCOPES sha256:HASH and, if it ends, when: 2030-01-31 or 2030-01-31T12:00:00Z")
    name, scopes, digest, *expires = fields
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name: use letters, digits and . _ @ -, 63 at most")
    if digest.startswith(PREFIX):
        raise ValueError("this is a key itself: a server keeps its hash only, `promptlooper token new` makes both")
    if not _HASH.fullmatch(digest):
        raise ValueError("the third word must be sha256: and 64 hexadecimal digits")
    return digest, Caller(name, parsed_scopes(scopes.split(",")), _until(expires[0]) if expires else FOREVER)


def _until(text: str) -> float:
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no time: write 2030-01-31 or 2030-01-31T12:00:00Z") from None
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def _hash_of(key: str) -> str:
    return "sha256:" + hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
