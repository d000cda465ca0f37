"""TLS of servers and channels: PEM files read, checked, and read again when they are rotated."""

from __future__ import annotations

from pathlib import Path

import grpc

from promptlooper.errors import InvalidArgument
from promptlooper.reloading import Reloaded


def server_credentials(cert_file: Path, key_file: Path, client_ca_file: Path | None = None) -> grpc.ServerCredentials:
    """TLS with a certificate; with `client_ca_file` clients must show one that it signed.

    Each new connection gets the files as they are then; connections that are open stay. Raises InvalidArgument where
    a file can't be taken.
    """

    def read(data: list[bytes]) -> grpc.ServerCertificateConfiguration:
        chain, key, *authorities = data
        check_identity(chain, key, cert_file, key_file)
        if client_ca_file is not None:
            check_authorities(authorities[0], client_ca_file)
        return grpc.ssl_server_certificate_configuration([(key, chain)], *authorities)

    paths = [cert_file, key_file, *([client_ca_file] if client_ca_file else [])]
    # Every time: a handshake costs a hundred times more, and who connects after a rotation must get the new one.
    files = Reloaded("the server's certificate", paths, read, look_every=0.0)
    return grpc.dynamic_ssl_server_credentials(files.current(), files.current, client_ca_file is not None)


def channel_credentials(
    ca_file: Path, cert_file: Path | None = None, key_file: Path | None = None
) -> Reloaded[grpc.ChannelCredentials]:
    """What a channel needs to trust servers of `ca_file`, and to show a certificate of its own where there is one."""
    paths = [ca_file, *([cert_file, key_file] if cert_file and key_file else [])]

    def read(data: list[bytes]) -> grpc.ChannelCredentials:
        authorities, *own = data
        check_authorities(authorities, ca_file)
        if not own or cert_file is None or key_file is None:
            return grpc.ssl_channel_credentials(authorities)
        check_identity(own[0], own[1], cert_file, key_file)
        return grpc.ssl_channel_credentials(authorities, own[1], own[0])

    return Reloaded("the certificates of channels", paths, read)


def check_identity(chain: bytes, key: bytes, cert_file: Path, key_file: Path) -> None:
    """Raises InvalidArgument unless they are a certificate and its key. gRPC itself says nothing, and serves nobody."""
    from cryptography import x509  # only where there is TLS: it takes a while
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        certificates = x509.load_pem_x509_certificates(chain)
    except ValueError:
        raise InvalidArgument(f"{str(cert_file)!r} holds no certificate in PEM format") from None
    try:
        private = load_pem_private_key(key, password=None)
    except TypeError:
        raise InvalidArgument(f"the key in {str(key_file)!r} is encrypted: store it without a password") from None
    except (ValueError, UnsupportedAlgorithm):
        raise InvalidArgument(f"{str(key_file)!r} holds no private key in PEM format") from None
    if private.public_key() != certificates[0].public_key():
        raise InvalidArgument(
            f"the key in {str(key_file)!r} is not that of the first certificate in {str(cert_file)!r}"
        )


def check_authorities(data: bytes, path: Path) -> None:
    """Raises InvalidArgument unless there is a certificate at least."""
    from cryptography import x509

    try:
        x509.load_pem_x509_certificates(data)
    except ValueError:
        raise InvalidArgument(f"{str(path)!r} holds no certificates in PEM format") from None
