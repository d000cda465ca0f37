"""JSON Web Tokens of somebody who issues them, checked against that issuer's public keys."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from promptlooper.errors import InvalidArgument, Unauthenticated
from promptlooper.rpc.callers import Caller
from promptlooper.rpc.scopes import Scope

LEEWAY = 30.0  # seconds that clocks may differ
REMEMBERED = 4_096  # verified tokens; checking a signature costs more than a call
_ALGORITHMS = ("ES256", "RS256")
_REQUIRED = ["exp", "iss", "aud", "sub"]
_SMALLEST_RSA = 2048  # bits


class WebTokens:
    """Verifies tokens by one set of keys (a JWKS), for one issuer and audience.

    Only ES256 and RS256: a public key is never taken for a shared secret. A verified token is remembered until it
    expires, by the hash of all of it; new keys are a new object, which remembers nothing.
    """

    def __init__(self, jwks: bytes, issuer: str, audience: str) -> None:
        self._keys = _usable_keys(jwks)
        self._issuer = issuer
        self._audience = audience
        self._remembered: dict[bytes, Caller] = {}

    def caller(self, token: str) -> Caller:
        """Raises Unauthenticated with what is wrong."""
        digest = hashlib.sha256(token.encode()).digest()
        caller = self._remembered.get(digest)
        if caller is None:
            caller = self._verified(token)
            while len(self._remembered) >= REMEMBERED:
                del self._remembered[next(iter(self._remembered))]
            self._remembered[digest] = caller
        return caller

    def _verified(self, token: str) -> Caller:
        try:
            key = self._key_of(jwt.get_unverified_header(token))
            claims = jwt.decode(
                token,
                key,
                algorithms=[key.algorithm_name],
                issuer=self._issuer,
                audience=self._audience,
                leeway=LEEWAY,
                options={"require": _REQUIRED},
            )
            until = claims["exp"] + LEEWAY
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("the token has expired: get a new one") from None
        except jwt.ImmatureSignatureError:
            raise Unauthenticated("the token is not valid yet: wait, or correct the clocks") from None
        except jwt.InvalidAudienceError:
            raise Unauthenticated(f"the token is not for this server: ask for audience {self._audience!r}") from None
        except jwt.InvalidIssuerError:
            raise Unauthenticated(f"the token is not of the issuer that this server trusts, {self._issuer!r}") from None
        except jwt.MissingRequiredClaimError as error:
            raise Unauthenticated(f"the token has no claim {error.claim!r}: it needs {', '.join(_REQUIRED)}") from None
        except (jwt.PyJWTError, TypeError, OverflowError):  # the latter two: an `exp` that is no time
            raise Unauthenticated("the token is not one that this server's keys verify: get a new one") from None
        return Caller(claims["sub"], _scopes(claims), until)

    def _key_of(self, header: Mapping[str, Any]) -> jwt.PyJWK:
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in _ALGORITHMS:
            raise Unauthenticated(f"the token must be signed by {' or '.join(_ALGORITHMS)}")
        fitting = [key for key in self._keys if key.algorithm_name == algorithm and kid in (None, key.key_id)]
        if len(fitting) != 1:
            raise Unauthenticated(
                "the token's key (`kid`) is not one of this server's: get a new token, or add the key"
            )
        return fitting[0]


def _scopes(claims: Mapping[str, Any]) -> frozenset[Scope]:
    """Of `scope` (words) or `scp` (words or a list); others than ours are somebody else's."""
    found: set[Scope] = set()
    for said in (claims.get("scope"), claims.get("scp")):
        words = said.split() if isinstance(said, str) else said if isinstance(said, list) else []
        found.update(scope for scope in Scope if scope.value in words)
    return frozenset(found)


def _usable_keys(data: bytes) -> list[jwt.PyJWK]:
    try:
        keys = jwt.PyJWKSet.from_json(data.decode()).keys
    except jwt.PyJWKSetError:
        keys = []
    except (ValueError, TypeError, AttributeError):
        raise InvalidArgument("it is no JSON of a set of keys: get it from the issuer's jwks_uri") from None
    usable = [key for key in keys if _is_usable(key)]
    if not usable:
        raise InvalidArgument("it has no public key for ES256 (EC, P-256) or RS256 (RSA, 2048 bits or more)")
    return usable


def _is_usable(key: jwt.PyJWK) -> bool:
    public = key.key  # a private one has no place in a JWKS
    if key.public_key_use not in (None, "sig"):
        return False
    if key.algorithm_name == "ES256":
        return isinstance(public, EllipticCurvePublicKey) and isinstance(public.curve, SECP256R1)
    return key.algorithm_name == "RS256" and isinstance(public, RSAPublicKey) and public.key_size >= _SMALLEST_RSA
