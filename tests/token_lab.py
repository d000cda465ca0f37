"""Somebody who issues JSON Web Tokens, good ones and bad ones."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

ISSUER, AUDIENCE = "https://issuer.example", "promptlooper"


class Issuer:
    """Two keys: `es` for ES256, `rs` for RS256."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {
            "es": ec.generate_private_key(ec.SECP256R1()),
            "rs": rsa.generate_private_key(public_exponent=65537, key_size=2048),
        }

    def jwks(self, *kids: str) -> bytes:
        return json.dumps({"keys": [self._jwk(kid) for kid in kids or self.keys]}).encode()

    def token(self, scope: str = "admin", *, kid: str = "es", without: str = "", **claims: Any) -> str:
        """Signed as it should be; `claims` replace the good ones."""
        key = self.keys[kid]
        algorithm = "RS256" if isinstance(key, rsa.RSAPrivateKey) else "ES256"
        return jwt.encode(self._claims(scope, without, claims), key, algorithm, headers={"kid": kid})

    def unsigned(self) -> str:
        return self._by_hand({"alg": "none", "kid": "es"}, b"")

    def of_algorithm(self, algorithm: Any) -> str:
        """A header that says so, and a signature of nobody."""
        return self._by_hand({"alg": algorithm, "kid": "es"}, b"guessed")

    def signed_with_public_key(self, kid: str) -> str:
        """What a server takes that uses the key it has as the secret of HS256."""
        public = self.keys[kid].public_key()
        pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        return self._by_hand({"alg": "HS256", "kid": kid}, pem)

    def _by_hand(self, header: dict[str, Any], secret: bytes) -> str:
        claims = self._claims("admin", "", {})
        text = ".".join(_base64(json.dumps(part).encode()) for part in (header, claims))
        return f"{text}.{_base64(hmac.digest(secret, text.encode(), hashlib.sha256)) if secret else ''}"

    def _claims(self, scope: str, without: str, claims: dict[str, Any]) -> dict[str, Any]:
        now = int(time.time())
        good = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ci", "iat": now, "exp": now + 600, "scope": scope}
        return {name: value for name, value in (good | claims).items() if name != without}

    def _jwk(self, kid: str) -> dict[str, Any]:
        public = self.keys[kid].public_key()
        kind = jwt.algorithms.RSAAlgorithm if isinstance(public, rsa.RSAPublicKey) else jwt.algorithms.ECAlgorithm
        return {**json.loads(kind.to_jwk(public)), "kid": kid, "use": "sig"}


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
