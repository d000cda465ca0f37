"""Addresses as users write them: HOST:PORT."""

from __future__ import annotations

import ipaddress

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
    return _above(listen, 100, "health", "PROMPTLOOPER_HEALTH_LISTEN")


def metrics_address(listen: str) -> str:
    """Where metrics are: the same host, 200 ports up; port 0 stays 0."""
    return _above(listen, 200, "metrics", "PROMPTLOOPER_METRICS_LISTEN")


def _above(listen: str, step: int, what: str, variable: str) -> str:
    _, port = host_and_port(listen)
    if port and port + step > 65535:
        raise InvalidArgument(
            f"{listen!r} leaves no room for the {what} port, {step} above: set {variable}", field="listen"
        )
    return f"{listen.rpartition(':')[0]}:{port + step if port else 0}"


def hosts_of(address: str) -> list[str]:
    """The hosts of an address of a channel: `HOST:PORT`, a list of them, or a target of gRPC such as
    `dns:///NAME:PORT`. None of `unix:PATH`."""
    if address.startswith("unix:"):
        return []
    scheme, colon, rest = address.partition(":")
    plain = rest.rpartition("/")[2] if colon and scheme in ("dns", "ipv4", "ipv6") else address
    return [_host_of(part.strip()) for part in plain.split(",")]


def is_loopback(host: str) -> bool:
    """Whether what is sent there stays on this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _host_of(part: str) -> str:
    try:
        return host_and_port(part)[0]
    except InvalidArgument:  # gRPC takes a name without a port
        return part
