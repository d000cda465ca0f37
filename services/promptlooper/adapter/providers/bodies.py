"""What bodies of questions and answers have in common in all wire formats."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import orjson

from promptlooper.adapter.providers.refusal import no_parameter, own_parameter, refusal
from promptlooper.adapter.retrying import AttemptFailed, Failure, Kind
from promptlooper.completion import CompletionRequest, Tool
from promptlooper.digest import sha256_hex
from promptlooper.jsonvalue import Json

_log = logging.getLogger(__name__)
_DATA_URI = re.compile(r"data:(image/[a-z0-9.+-]+);base64,", re.IGNORECASE)


def answer_in(body: bytes) -> dict[str, Any]:
    """The object of a 200 response. Raises AttemptFailed where it is none."""
    try:
        data = orjson.loads(body)
    except ValueError:
        raise malformed("the body is not JSON") from None
    if not isinstance(data, dict):
        raise malformed("the body is not a JSON object")
    return data


def malformed(message: str) -> AttemptFailed:
    return AttemptFailed(Failure(Kind.MALFORMED, message, 200))


@contextmanager
def as_malformed() -> Iterator[None]:
    """What reads an answer takes its parts to have the types of its format. Where one has not, that is the server's
    mistake: raises AttemptFailed, which may be tried again."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        _log.info("a part of an answer is not of its format", exc_info=True)
        raise malformed(f"a part of it is not of its format ({type(error).__name__})") from error


def check_params(params: Mapping[str, Json], *, ours: Iterable[str], missing: Iterable[str]) -> None:
    """Raises AttemptFailed for those that are not the caller's to set, and those that the format has no word for."""
    for name in ours:
        if name in params:
            raise own_parameter(name)
    for name in missing:
        if params.get(name) not in (None, False):  # false asks for nothing
            raise no_parameter(name)


def inline_image(uri: str) -> tuple[str, str] | None:
    """Media type and base64 text of a data URI; None for an address. Raises AttemptFailed for other URIs."""
    found = _DATA_URI.match(uri)
    if found is not None:
        return found[1].lower(), uri[found.end() :]
    if uri.startswith("https://"):
        return None
    raise refusal(f"the image {uri[:40]!r} is neither an https address nor 'data:image/…;base64,…'")


def stops(value: Json) -> list[Json]:
    """The parameter `stop` as a list: it may be one text."""
    return [value] if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else []


def id_of(known: str, form: re.Pattern[str]) -> str:
    """The id of a call of a tool, for a provider that takes only ids of this form: another provider may have given it.
    The same for the call and for its result."""
    return known if form.fullmatch(known) else f"call_{sha256_hex(known)[:24]}"


def made_id(index: int) -> str:
    """For a call without an id: some servers give none, and an answer must say which it is for."""
    return f"call_{index}"


def tools_of(request: CompletionRequest) -> tuple[Tool, ...]:
    """Where a question has none, those that its conversation has called, for a format that takes no calls of tools
    which it does not define."""
    if request.tools:
        return request.tools
    called = (call.name for message in request.messages for call in message.tool_calls)
    return tuple(Tool(name) for name in dict.fromkeys(called))


def image_bytes(uri: str) -> tuple[str, str]:
    """Media type and base64 text, for a provider that takes no addresses."""
    inline = inline_image(uri)
    if inline is None:
        raise refusal("this provider takes no addresses of images; give the image's file or data")
    return inline
