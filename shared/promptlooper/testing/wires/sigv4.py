"""Whether a request is signed as AWS asks (Signature Version 4), from its description and nothing of who signs."""

from __future__ import annotations

import hashlib
import hmac
import re
from urllib.parse import quote

from promptlooper.testing.wires.wire import Asked

_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=[^/]+/(?P<scope>(?P<day>\d{8})/(?P<region>[^/]+)/(?P<service>[^/]+)/aws4_request), "
    r"SignedHeaders=(?P<headers>[^,]+), Signature=(?P<signature>[0-9a-f]{64})"
)


def signature_problem(asked: Asked, secret: str, *, service: str = "bedrock") -> str | None:
    """What is wrong with it; None where nothing is."""
    found = _AUTHORIZATION.fullmatch(asked.headers.get("authorization", ""))
    time = asked.headers.get("x-amz-date", "")
    if found is None or found["service"] != service or not time.startswith(found["day"]):
        return "The security token included in the request is invalid."
    if "host" not in found["headers"].split(";"):
        return "Host must be signed."
    path, _, query = asked.path.partition("?")
    signed = "".join(f"{name}:{asked.headers.get(name, '').strip()}\n" for name in found["headers"].split(";"))
    # What is sent is encoded once; what is signed, once more.
    parts = ["POST", quote(path, safe="/-_.~"), query, signed, found["headers"], _sha256(asked.raw)]
    to_sign = "\n".join(["AWS4-HMAC-SHA256", time, found["scope"], _sha256("\n".join(parts).encode())])
    key = f"AWS4{secret}".encode()
    for part in found["scope"].split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    if hmac.new(key, to_sign.encode(), "sha256").hexdigest() != found["signature"]:
        return "The request signature we calculated does not match the signature you provided."
    return None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
