"""How a channel proves its server, and itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ChannelSecurity:
    """`ca_file` switches TLS on; `cert_file` and `key_file` are what the channel shows of itself. The token in
    `token_file` goes with every call, and unless `allow_plaintext_token` never unencrypted to another machine. All
    files may be replaced at any time."""

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    token_file: Path | None = None
    server_name: str = ""
    """The name in the server's certificate, where it is not the address's own."""
    allow_plaintext_token: bool = False

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> ChannelSecurity:
        """What users set: PROMPTLOOPER_SERVER_CA_FILE and its like."""

        def path(name: str) -> Path | None:
            return Path(value) if (value := env.get(f"PROMPTLOOPER_SERVER_{name}")) else None

        return cls(
            ca_file=path("CA_FILE"),
            cert_file=path("CERT_FILE"),
            key_file=path("KEY_FILE"),
            token_file=path("TOKEN_FILE"),
            server_name=env.get("PROMPTLOOPER_SERVER_NAME", ""),
            allow_plaintext_token=env.get("PROMPTLOOPER_ALLOW_PLAINTEXT_TOKENS", "").lower()
            in ("1", "true", "yes", "on"),
        )


PLAIN = ChannelSecurity()
