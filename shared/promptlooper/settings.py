"""What every service reads from the environment."""

from __future__ import annotations

import re
from typing import Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from promptlooper.addresses import health_address, host_and_port, metrics_address
from promptlooper.errors import InvalidArgument
from promptlooper.security_settings import SecuritySettings

_PREFIX = "PROMPTLOOPER_"
_USER_IN_URL = re.compile(r"([\w+.-]+)://((?:(?!://)\S)*)@")  # up to the last @: passwords are not always well encoded
_SECRET_IN_QUERY = re.compile(r"([?&][^=&\s]*(?:password|secret|token|key)[^=&\s]*=)[^&\s]*", re.IGNORECASE)


class ServiceSettings(SecuritySettings):
    """Settings of one service, from `PROMPTLOOPER_*`; a subclass per service adds its own.

    A value that can't be taken raises InvalidArgument with a sentence that names the variable.
    """

    model_config = SettingsConfigDict(env_prefix=_PREFIX, frozen=True, extra="ignore")

    listen: str = "127.0.0.1:0"
    health_listen: str = Field(default_factory=lambda data: health_address(data["listen"]))
    metrics_listen: str = Field(default_factory=lambda data: metrics_address(data["listen"]))  # or "off"
    reflection: bool = True
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    lame_duck: float = Field(default=0.0, ge=0)  # seconds between saying NOT_SERVING and refusing calls
    grace: float = Field(default=20.0, ge=0)  # seconds for running calls to end

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise InvalidArgument(_sentences(error)) from None

    @field_validator("listen", "health_listen")
    @classmethod
    def _is_address(cls, value: str) -> str:
        try:
            host_and_port(value)
        except InvalidArgument as error:
            raise ValueError(error.message) from None
        return value

    @field_validator("metrics_listen")
    @classmethod
    def _is_address_or_off(cls, value: str) -> str:
        return value if value == "off" else cls._is_address(value)

    @field_validator("log_level", "log_format", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _is_not_open_to_all(self) -> Self:
        self.check_security(self.listen)
        return self

    def described(self) -> dict[str, str]:
        """Every setting as text, secrets masked: for the log."""
        return {name: masked(getattr(self, name)) for name in type(self).model_fields}


def masked(value: object) -> str:
    """Text of a value without its secrets: also passwords in URLs."""
    if isinstance(value, SecretStr):
        return "***" if value.get_secret_value() else ""
    if value is None:
        return ""
    return _SECRET_IN_QUERY.sub(r"\1***", _USER_IN_URL.sub(_without_password, str(value)))


def _without_password(found: re.Match[str]) -> str:
    scheme, (name, colon, _) = found[1], found[2].partition(":")
    if colon:
        return f"{scheme}://{name}:***@"
    return f"{scheme}://***@" if scheme == "nats" else found[0]  # NATS takes a token for a name


def _sentences(error: ValidationError) -> str:
    found = []
    for problem in error.errors(include_url=False):
        if problem["type"] == "default_factory_not_called":  # another setting, named beside it, was wrong
            continue
        if not problem["loc"]:  # it is about several, and names them
            found.append(problem["msg"].removeprefix("Value error, "))
            continue
        variable = _PREFIX + "_".join(str(part) for part in problem["loc"]).upper()
        if problem["type"] == "missing":
            found.append(f"{variable} is not set: set it")
            continue
        said = problem["msg"].removeprefix("Value error, ")
        found.append(f"{variable} is {masked(problem['input'])!r}: {said[:1].lower()}{said[1:]}")
    return "; ".join(found)
