"""What the providers file says of a provider's keys, addresses, fallbacks and time."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from promptlooper.adapter.address import checked_base_url

StreamSetting = Literal["auto", "always", "never"]

_Text = Annotated[str, Field(min_length=1)]
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
_Weight = Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False)]
_Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


def _proxy(text: str) -> str:
    parts = urlsplit(checked_base_url(text))
    if parts.scheme != "http" or parts.path:
        raise ValueError(f"{text!r} is not a proxy's address; write it as 'http://host:3128'")
    return text.rstrip("/")


def _model(text: str) -> str:
    provider, slash, model = text.partition("/")
    if not (provider and slash and model):
        raise ValueError(f"the model {text!r} names no provider; write it as PROVIDER/MODEL")
    return text


Proxy = Annotated[str, AfterValidator(_proxy)]
Fallbacks = dict[_Text, tuple[Annotated[str, AfterValidator(_model)], ...]]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KeyEntry(_Section):
    """One of several keys. The name is for logs and metrics; by default it is where the key is from."""

    name: _Name | None = None
    api_key_env: _Text | None = None
    api_key_file: Path | None = None
    weight: _Weight = 1.0

    @model_validator(mode="after")
    def _has_one_source(self) -> KeyEntry:
        if (self.api_key_env is None) == (self.api_key_file is None):
            raise ValueError("needs 'api_key_env' or 'api_key_file', one of them")
        return self

    @property
    def label(self) -> str:
        source = self.api_key_env or (self.api_key_file.name if self.api_key_file else "")
        return self.name or re.sub(r"[^A-Za-z0-9._-]", "-", source)[:63]


class Deployment(_Section):
    """One of several addresses that serve the same models."""

    base_url: Annotated[str, AfterValidator(checked_base_url)]
    name: _Name | None = None
    weight: _Weight = 1.0
    models: tuple[_Text, ...] | None = None
    api_key_env: _Text | None = None
    api_key_file: Path | None = None

    @model_validator(mode="after")
    def _has_one_key(self) -> Deployment:
        if self.api_key_env and self.api_key_file:
            raise ValueError("has both 'api_key_env' and 'api_key_file'; keep one")
        if self.models == ():
            raise ValueError("'models' is empty; name some, or remove it")
        return self

    @property
    def label(self) -> str:
        return self.name or urlsplit(self.base_url).netloc


class Timeouts(_Section):
    """Seconds, of one request; the caller's own time is never exceeded."""

    connect: _Seconds = 5.0
    first_token: _Seconds = 300.0
    idle: _Seconds = 60.0
    total: _Seconds = 900.0
