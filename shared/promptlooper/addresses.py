"""Addresses as users write them: HOST:PORT."""

from __future__ import annotations

from promptlooper.errors import InvalidArgument


def host_and_port(address: str) -> tuple[str, int]:
    """The two parts of `HOST:PORT` or `[IPV6]:PORT`. Raises InvalidArgument where it is neither."""
    host, colon, port = address.rpartition(":")
    plain = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not plain or not port.isdecimal() or int(port) > 65535 or (":" in plain and plain == host):
        raise InvalidArgument(
            f"{address!r} is not an address: write HOST:PORT, such as 127.0.0.1:7051", field="address"
        )
    return plain, int(port)


def health_address(listen: str) -> str:
    """Where health is served alone: the same host, 100 ports up; port 0 stays 0."""
    _, port = host_and_port(listen)
    if port and port + 100 > 65535:
        raise InvalidArgument(
            f"{listen!r} leaves no room for the health port, 100 above: set PROMPTLOOPER_HEALTH_LISTEN", field="listen"
        )
    return f"{listen.rpartition(':')[0]}:{port + 100 if port else 0}"
