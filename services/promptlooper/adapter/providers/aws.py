"""Who asks at AWS: regions, credentials as AWS's own tools find them, and signatures (SigV4) by botocore."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import httpx

from promptlooper.adapter.providers.provider import Problem
from promptlooper.adapter.retrying import AttemptFailed, Failure, Kind

BEARER = "AWS_BEARER_TOKEN_BEDROCK"
_HINTS = (
    *("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE"),
    *("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
)


def region_of(said: str | None, env: Mapping[str, str]) -> str:
    """ "" where there is none."""
    return said or env.get("AWS_REGION", "").strip() or env.get("AWS_DEFAULT_REGION", "").strip()


def bedrock_base_url(region: str) -> str:
    return f"https://bedrock-runtime.{region}.amazonaws.com{'.cn' if region.startswith('cn-') else ''}"


def region_in(base_url: str) -> str:
    """Of an address at AWS."""
    found = re.search(r"//bedrock-runtime(?:-fips)?\.([a-z0-9-]+)\.amazonaws\.com", base_url)
    return found[1] if found else "us-east-1"


def no_credentials(name: str, env: Mapping[str, str]) -> Problem | None:
    """What is missing to a provider of which no file says that it is to be used: no role of this machine is taken
    then."""
    if any(env.get(variable, "").strip() for variable in (BEARER, *_HINTS)):
        return None
    message = (
        f"provider {name!r} has no credentials; set {BEARER!r}, 'AWS_PROFILE' or 'AWS_ACCESS_KEY_ID', or put it into "
        f"the providers file to use the role of this machine"
    )
    return Problem("PROVIDER_CREDENTIALS", message)


class SigV4:
    """Signs requests with the credentials of a profile, else of `env`, else of wherever botocore finds some."""

    def __init__(self, name: str, region: str, env: Mapping[str, str], *, profile: str | None = None) -> None:
        self._name = name
        self._region = region
        self._env = env
        self._profile = profile
        self._credentials: Any = None
        self._finding = asyncio.Lock()

    def problem(self) -> Problem | None:
        if find_spec("botocore") is not None:
            return None
        message = (
            f"provider {self._name!r} signs its requests, which needs `pip install 'promptlooper[bedrock]'`; "
            f"with an API key in {BEARER!r} it does not"
        )
        return Problem("PROVIDER_CREDENTIALS", message)

    async def signed(self, url: str, headers: httpx.Headers, body: bytes) -> httpx.Headers:
        """The headers with a signature over the address, the body and the time. Raises AttemptFailed where there are
        no credentials."""
        from botocore.auth import SigV4Auth
        from botocore.awsrequest import AWSRequest

        async with self._finding:
            if self._credentials is None or _is_old(self._credentials):
                self._credentials = await asyncio.to_thread(self._fresh)
        request = AWSRequest("POST", url, headers={"content-type": headers["content-type"]}, data=body)
        SigV4Auth(self._credentials, "bedrock", self._region).add_auth(request)
        signed = httpx.Headers(headers)
        signed.update({name: value for name, value in request.headers.items() if name.lower() != "content-type"})
        return signed

    def _fresh(self) -> Any:
        """Reads files or asks somebody: a login, a role's server."""
        from botocore.exceptions import BotoCoreError

        try:
            credentials = self._credentials or self._found()
            if credentials is not None:
                credentials.get_frozen_credentials()
        except BotoCoreError as error:
            raise AttemptFailed(Failure(Kind.CREDENTIALS, f"AWS credentials: {error}")) from error
        if credentials is None:
            message = "there are no AWS credentials; log in, or set 'AWS_PROFILE' or 'AWS_ACCESS_KEY_ID'"
            raise AttemptFailed(Failure(Kind.CREDENTIALS, message))
        return credentials

    def _found(self) -> Any:
        from botocore.credentials import Credentials
        from botocore.session import Session

        key_id, secret = self._env.get("AWS_ACCESS_KEY_ID"), self._env.get("AWS_SECRET_ACCESS_KEY")
        if key_id and secret and self._profile is None:
            return Credentials(key_id, secret, self._env.get("AWS_SESSION_TOKEN"))
        return Session(profile=self._profile or self._env.get("AWS_PROFILE")).get_credentials()


def _is_old(credentials: Any) -> bool:
    """Those that a role gives, for a while."""
    refresh_needed = getattr(credentials, "refresh_needed", None)
    return refresh_needed is not None and bool(refresh_needed())
