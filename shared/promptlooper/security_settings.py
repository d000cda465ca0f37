"""The settings of a service that say who it is, whom it trusts, and who may call it."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationInfo, field_validator
from pydantic_settings import BaseSettings

from promptlooper.addresses import host_and_port, is_loopback
from promptlooper.rpc.security import ChannelSecurity


class SecuritySettings(BaseSettings):
    """All files may be replaced while the service runs. docs/security.md says how they work together."""

    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None
    tls_client_ca_file: Path | None = None  # clients must show a certificate that it signed
    tls_ca_file: Path | None = None  # calls to other services go over TLS, and show our certificate
    tls_server_name: str = ""  # the name in other services' certificates, where addresses don't say it
    service_token_file: Path | None = None  # sent to other services
    api_keys_file: Path | None = None
    jwks_file: Path | None = None
    jwt_issuer: str = ""
    jwt_audience: str = ""
    allow_unauthenticated: bool = False  # beyond loopback
    allow_plaintext_tokens: bool = False  # beyond loopback

    @field_validator("*", mode="before")
    @classmethod
    def _empty_file_is_none(cls, value: object, info: ValidationInfo) -> object:
        return None if value == "" and (info.field_name or "").endswith("_file") else value

    def channel_security(self) -> ChannelSecurity:
        """What calls to other services need."""
        ours = self.tls_ca_file is not None
        return ChannelSecurity(
            ca_file=self.tls_ca_file,
            cert_file=self.tls_cert_file if ours else None,
            key_file=self.tls_key_file if ours else None,
            token_file=self.service_token_file,
            server_name=self.tls_server_name,
            allow_plaintext_token=self.allow_plaintext_tokens,
        )

    def check_security(self, listen: str) -> None:
        """Raises ValueError with what to set, where the settings don't go together or leave a port open to all."""
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("PROMPTLOOPER_TLS_CERT_FILE and PROMPTLOOPER_TLS_KEY_FILE go together: set both")
        if self.tls_client_ca_file is not None and self.tls_cert_file is None:
            raise ValueError("PROMPTLOOPER_TLS_CLIENT_CA_FILE needs PROMPTLOOPER_TLS_CERT_FILE and its key: set them")
        if self.jwks_file is not None and not (self.jwt_issuer and self.jwt_audience):
            raise ValueError(
                "PROMPTLOOPER_JWKS_FILE needs PROMPTLOOPER_JWT_ISSUER and PROMPTLOOPER_JWT_AUDIENCE: without them,"
                " tokens that were made for others would be taken"
            )
        known = self.tls_client_ca_file or self.api_keys_file or self.jwks_file
        if not known and not self.allow_unauthenticated and not is_loopback(host_and_port(listen)[0]):
            raise ValueError(
                f"{listen} would be open to everyone who reaches it: set PROMPTLOOPER_TLS_CLIENT_CA_FILE,"
                " PROMPTLOOPER_API_KEYS_FILE or PROMPTLOOPER_JWKS_FILE, listen on 127.0.0.1, or say that this is meant"
                " with PROMPTLOOPER_ALLOW_UNAUTHENTICATED=true"
            )
