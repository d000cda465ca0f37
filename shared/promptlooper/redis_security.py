"""How Redis proves itself, and we to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from redis.credentials import CredentialProvider
from redis.exceptions import AuthenticationError

from promptlooper.errors import InvalidArgument
from promptlooper.reloading import contents, secret

_WHAT = "the password of Redis"


def with_security(url: str, password_file: Path | None, ca_file: Path | None) -> tuple[str, dict[str, Any]]:
    """The URL and options for a pool of connections. Raises InvalidArgument where a file can't be taken."""
    options: dict[str, Any] = {}
    if ca_file is not None:
        if not url.startswith("rediss://"):
            raise InvalidArgument("PROMPTLOOPER_REDIS_CA_FILE is for TLS: begin PROMPTLOOPER_REDIS_URL with rediss://")
        contents(ca_file, "the CA of Redis")
        options["ssl_ca_certs"] = str(ca_file)
    if password_file is not None:
        parts = urlsplit(url)
        if parts.password:
            raise InvalidArgument("PROMPTLOOPER_REDIS_URL and PROMPTLOOPER_REDIS_PASSWORD_FILE both give one: keep one")
        secret(password_file, _WHAT)
        options["credential_provider"] = _PasswordFile(unquote(parts.username or ""), password_file)
        url = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    return url, options


class _PasswordFile(CredentialProvider):
    """Reads the password for each connection, so that it may be rotated."""

    def __init__(self, user: str, path: Path) -> None:
        self._user = user
        self._path = path

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        try:
            password = secret(self._path, _WHAT)
        except InvalidArgument as error:
            raise AuthenticationError(error.message) from None
        return (self._user, password) if self._user else (password,)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        return self.get_credentials()
