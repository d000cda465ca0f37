"""A gRPC channel as a context manager, and the server's errors as ours again."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import grpc
import orjson
from google.protobuf.descriptor import FileDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from grpc_status import rpc_status

from promptlooper import tracing
from promptlooper.addresses import host_and_port
from promptlooper.errors import (
    DeadlineExceeded,
    DomainError,
    Draining,
    InvalidArgument,
    NotAvailableYet,
    PermissionDenied,
    ServiceUnavailable,
    TooLarge,
    Unauthenticated,
)
from promptlooper.rpc.deadlines import usual_deadline
from promptlooper.rpc.secured import SecuredChannel
from promptlooper.rpc.security import PLAIN, ChannelSecurity
from promptlooper.rpc.status import error_of

Code = grpc.StatusCode

# Attempts and the first wait, in seconds, which doubles: 2.2 s of waiting in all, and 0.7 s for calls with a short
# deadline: a deadline that ends the attempts would hide what is wrong. In a rolling restart the replica that is back
# may not be connected again when the next one goes. More than 5 attempts grpc does not make.
_PATIENT, _BRIEF = (5, 0.15), (4, 0.1)
_SHORT = 2.0  # seconds: a deadline that needs the brief ones


@asynccontextmanager
async def open_channel(
    address: str,
    *descriptors: ServiceDescriptor | FileDescriptor,
    default_deadline: float = 10.0,
    security: ChannelSecurity | None = None,
) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to `address`: HOST:PORT, a list (`10.0.0.1:7052,10.0.0.2:7052`), `dns:///NAME:PORT` or `unix:PATH`.

    Calls without a timeout get the RPC's usual one, `default_deadline` where it is not one of ours. Calls are spread
    over all addresses that answer. Unary methods of `descriptors` that are safe to repeat are repeated when a server is
    gone or going. Connects when first used; an address that can't be read, or a file of `security` that can't be taken,
    raises InvalidArgument.
    """
    target, options = target_of(address), _options(*descriptors)
    if security is None or security == PLAIN:
        made = grpc.aio.insecure_channel(target, options=options)
    else:
        made = SecuredChannel(address, target, options, security)
    async with made as channel:
        yield _Channel(channel, default_deadline)


def target_of(address: str) -> str:
    """What grpc calls the address."""
    if "," in address:
        return _list_target([part.strip() for part in address.split(",")])
    if address.startswith(("unix:", "ipv4:", "ipv6:", "dns:")):
        return address
    host_and_port(address)
    return f"dns:///{address}"


def replicas_of(address: str) -> list[str]:
    """The addresses of a list, each fit for a channel of its own; of a name only itself, whatever stands behind it."""
    return [_list_target([part.strip()]) for part in address.split(",")] if "," in address else [address]


def is_name(address: str) -> bool:
    """Whether any number of replicas may stand behind the address: not a list, an IP address or a socket's path."""
    if "," in address or address.startswith(("unix:", "ipv4:", "ipv6:")):
        return False
    host, _ = host_and_port(address.removeprefix("dns:").rpartition("/")[2])
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host != "localhost"
    return False


def _list_target(addresses: list[str]) -> str:
    families = set()
    found = []
    for address in addresses:
        host, port = host_and_port(address)
        host = "127.0.0.1" if host == "localhost" else host
        try:
            ip = ipaddress.ip_address(host)
        except ValueError:
            raise InvalidArgument(
                f"{address!r} in a list of addresses is not an IP address: use one name that stands for all of them",
                field="address",
            ) from None
        families.add(ip.version)
        found.append(f"{host}:{port}" if ip.version == 4 else f"[{host}]:{port}")
    if len(families) > 1:
        raise InvalidArgument(f"{','.join(addresses)!r} mixes IPv4 and IPv6: list one kind", field="address")
    return f"ipv{families.pop()}:{','.join(found)}"


def service_config(*descriptors: ServiceDescriptor | FileDescriptor) -> str:
    """Round robin, and retries for the unary methods whose idempotency level allows it.

    Holds no timeouts: grpc ends them too early.
    """
    services = [s for d in descriptors for s in (d.services_by_name.values() if isinstance(d, FileDescriptor) else [d])]
    safe: dict[tuple[int, float], list[dict[str, str]]] = {}
    for service in services:
        for method in service.methods:
            if method.client_streaming or method.server_streaming:
                continue
            if method.GetOptions().idempotency_level != MethodOptions.IDEMPOTENCY_UNKNOWN:
                seconds = usual_deadline(f"/{service.full_name}/{method.name}", otherwise=None)
                attempts = _BRIEF if seconds is not None and seconds <= _SHORT else _PATIENT
                safe.setdefault(attempts, []).append({"service": service.full_name, "method": method.name})
    config: dict[str, Any] = {
        "loadBalancingConfig": [{"round_robin": {}}],
        # Each failure takes a token, each success brings a tenth; below half nothing is repeated. A connection that is
        # lost fails all its calls at once, so there must be more than those.
        "retryThrottling": {"maxTokens": 1000, "tokenRatio": 0.1},
    }
    if safe:
        config["methodConfig"] = [{"name": names, "retryPolicy": _retry(*attempts)} for attempts, names in safe.items()]
    return orjson.dumps(config).decode()


def _retry(attempts: int, first_wait: float) -> dict[str, Any]:
    return {
        "maxAttempts": attempts,
        "initialBackoff": f"{first_wait}s",
        "maxBackoff": "1s",
        "backoffMultiplier": 2,
        # A server of Python that stops drops a call which it has taken but not started: CANCELLED.
        "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
    }


def _options(*descriptors: ServiceDescriptor | FileDescriptor) -> list[tuple[str, Any]]:
    return [
        ("grpc.service_config", service_config(*descriptors)),
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.enable_http_proxy", 0),  # services talk to each other directly, whatever the environment says
        ("grpc.max_receive_message_length", 4 * 1024 * 1024),
        ("grpc.max_send_message_length", 4 * 1024 * 1024),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.ping_timeout_ms", 10_000),  # else a frozen server is seen after a minute more
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.keepalive_permit_without_calls", 1),
        # A service that comes back is found again within a second; by default up to two minutes pass.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1_000),
        ("grpc.max_reconnect_backoff_ms", 300),
        ("grpc.dns_min_time_between_resolutions_ms", 5_000),
        ("grpc.use_local_subchannel_pool", 1),  # each channel has connections of its own
    ]


class _Channel(grpc.aio.Channel):
    """Fills in timeouts, and the trace of the work at hand. Not an interceptor: those put a task around each call."""

    def __init__(self, channel: grpc.aio.Channel, default_deadline: float) -> None:
        self._channel = channel
        self._default_deadline = default_deadline

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._filled(self._channel.unary_unary(method, *args, **kwargs), method, self._default_deadline)

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._filled(self._channel.stream_unary(method, *args, **kwargs), method, self._default_deadline)

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._filled(self._channel.unary_stream(method, *args, **kwargs), method, None)

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._filled(self._channel.stream_stream(method, *args, **kwargs), method, None)

    def _filled(self, call: Any, method: str, otherwise: float | None) -> Any:
        seconds = usual_deadline(method, otherwise=otherwise)

        def filled(request: Any = None, *, timeout: float | None = None, **kwargs: Any) -> Any:
            if traceparent := tracing.current.get():
                kwargs["metadata"] = (*(kwargs.get("metadata") or ()), ("traceparent", traceparent))
            return call(request, timeout=seconds if timeout is None else timeout, **kwargs)

        return filled

    async def close(self, grace: float | None = None) -> None:
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._channel.channel_ready()

    async def __aenter__(self) -> _Channel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


@contextmanager
def domain_errors(address: str, service: str | None = None) -> Iterator[None]:
    """Raises what the server raised where a call failed; what grpc itself says becomes ours too.

    `address` and `service` (`cache`) are for the message when nothing answers.
    """
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise domain_error(error, address, service) from error


@contextmanager
def away(address: str, service: str) -> Iterator[None]:
    """As `domain_errors`, for services that may come and go: one that is slow or leaving raises ServiceUnavailable, as
    one that is gone does. So does one that refuses our token: who asked us has nothing to do with that."""
    try:
        with domain_errors(address, service):
            yield
    except (DeadlineExceeded, Draining) as error:
        raise ServiceUnavailable(error.message, address=address) from error
    except (Unauthenticated, PermissionDenied) as error:
        message = (
            f"the {service} at {address} refuses this service, see PROMPTLOOPER_SERVICE_TOKEN_FILE: {error.message}"
        )
        raise ServiceUnavailable(message, address=address) from error


def domain_error(error: grpc.aio.AioRpcError, address: str, service: str | None = None) -> DomainError:
    """The domain error that a failed call stands for: by its reason, else by its code."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    if status is not None and (found := error_of(status)) is not None:
        return found
    details = error.details() or "no details"
    match error.code():
        case Code.DEADLINE_EXCEEDED:
            return DeadlineExceeded(f"{address} gave no answer in time: it may be busy; try again or allow more time")
        case Code.UNAVAILABLE | Code.CANCELLED:
            return ServiceUnavailable(_unreachable(address, service, details), address=address)
        case Code.RESOURCE_EXHAUSTED if "larger than max" in details or "metadata size" in details:
            return TooLarge(f"a message to or from {address} is too large; send less at once ({details})")
        case Code.RESOURCE_EXHAUSTED:
            return ServiceUnavailable(f"{address} has too much to do: try again later ({details})", address=address)
        case Code.UNIMPLEMENTED:
            what = f"is not a {service.capitalize()} of this version" if service else "does not serve this call"
            return NotAvailableYet(f"{address} {what}: give the right address", feature="")
        case Code.INVALID_ARGUMENT:
            return InvalidArgument(details)
        case code:
            return DomainError(f"{address} failed with {code.name}: {details}; its log may say more")


def _unreachable(address: str, service: str | None, details: str) -> str:
    start = f"`promptlooper serve {service}`" if service else "`promptlooper serve`"
    return (
        f"no {service or 'service'} answers at {address}: start it ({start}, or `promptlooper up` for all), "
        f"or correct the address ({_why(details)})"
    )


def _why(details: str) -> str:
    """What grpc says of a connection, without its internals."""
    if "HTTP/2" in details:
        return "what listens there does not speak gRPC"
    if "WRONG_VERSION_NUMBER" in details:
        return "what listens there does not speak TLS"
    if "CERTIFICATE_VERIFY_FAILED" in details:
        why = details.rpartition("CERTIFICATE_VERIFY_FAILED: ")[2].removesuffix(": OK")
        return f"the server's certificate is not to be trusted: {why}"
    if "Hostname Verification" in details:
        return "the server's certificate is for another name"
    if "Socket closed" in details:
        return "the connection was closed; servers do so where TLS or a client certificate of theirs is missing"
    if "resolving" in details or "lookup" in details:
        return "the name is not known"
    return details.rsplit("last error: ", 1)[-1].rsplit("remote host: ", 1)[-1].removeprefix("UNKNOWN: ")
