"""Keys of providers: from the environment or from files, which are read again when they have changed."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path

from promptlooper.adapter.providers.provider import Problem
from promptlooper.errors import InvalidArgument
from promptlooper.reloading import LOOK_EVERY, Reloaded

_log = logging.getLogger(__name__)


class Key:
    """A key that a provider refuses with 401 is not sent again; another in its file takes its place within a second.

    Nothing that it says of itself shows the key.
    """

    def __init__(self, provider: str, name: str = "") -> None:
        """Of a provider that needs none."""
        self.name = name
        self._provider = provider
        self._source = ""  # where it is from
        self._missing = ""  # why there is none
        self._value: str | None = None
        self._before: str | None = None
        self._refused: str | None = None
        self._path: Path | None = None
        self._reloaded: Reloaded[str] | None = None
        self._look_every = LOOK_EVERY

    @classmethod
    def of_variable(cls, provider: str, variable: str, env: Mapping[str, str], *, name: str = "") -> Key:
        key = cls(provider, name)
        key._source = f"the environment variable {variable!r}"
        text = env.get(variable, "")
        if not text.strip():
            key._missing = f"provider {provider!r} has no key; set {key._source}"
        else:
            try:
                key._value = _checked(text)
            except InvalidArgument as error:
                key._missing = f"the key of provider {provider!r}: {error}; correct {key._source}"
        return key

    @classmethod
    def of_file(cls, provider: str, path: Path, *, name: str = "", look_every: float = LOOK_EVERY) -> Key:
        key = cls(provider, name)
        key._source = f"the file {str(path)!r}"
        key._path = path
        key._look_every = look_every
        key.current()
        return key

    def current(self) -> str | None:
        """What is sent now; None for nothing."""
        if self._path is not None:
            self._look(self._path)
        return self._value

    @property
    def values(self) -> list[str]:
        """What may be on its way now: the present one and the one before. For redaction."""
        return [value for value in (self._value, self._before) if value]

    def problem(self) -> Problem | None:
        """Why nothing may be asked with it."""
        value = self.current()
        if self._missing:
            return Problem("PROVIDER_CREDENTIALS", self._missing)
        if value is None or value != self._refused:
            return None
        anew = "" if self._path is not None else ", and start again"
        return Problem(
            "PROVIDER_CREDENTIALS",
            f"provider {self._provider!r} refused the key of {self._source} (HTTP 401); put another there{anew}",
        )

    def refuse(self, value: str) -> None:
        """The provider does not know this one."""
        if value != self._refused:
            _log.warning("provider %s refused the key of %s: it is not sent again", self._provider, self._source)
        self._refused = value

    def __repr__(self) -> str:
        return f"Key({self._provider!r}, {self.name!r})"

    def _look(self, path: Path) -> None:
        try:
            if self._reloaded is None:
                what = f"the key of provider {self._provider!r}"
                self._reloaded = Reloaded(what, [path], _read, look_every=self._look_every)
            value = self._reloaded.current()
        except InvalidArgument as error:
            self._missing = f"{error}; correct {self._source}"
            return
        self._missing = ""
        if value != self._value:
            self._value, self._before = value, self._value


def _read(data: list[bytes]) -> str:
    return _checked(data[0].decode("utf-8", "replace"))


def _checked(text: str) -> str:
    text = text.strip()
    if not text:
        raise InvalidArgument("it is empty")
    if not re.fullmatch(r"[\x21-\x7e]+", text):
        raise InvalidArgument("it has spaces, line breaks or letters that no key has")
    return text
