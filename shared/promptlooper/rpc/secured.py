"""A channel over TLS and with a token, whose files may be rotated while calls run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc

from promptlooper.addresses import hosts_of, is_loopback
from promptlooper.errors import InvalidArgument
from promptlooper.reloading import Reloaded, secret_of
from promptlooper.rpc.certificates import channel_credentials
from promptlooper.rpc.security import ChannelSecurity

_UNTIL_THEY_END = 365 * 24 * 3600.0  # seconds: at the end of a channel's grace its calls are cancelled

Options = Sequence[tuple[str, Any]]


class SecuredChannel(grpc.aio.Channel):
    """gRPC's channel can't take new certificates, so each set has one of its own: after a rotation new calls go to a
    new channel, and the old one is closed when its last call has ended. Raises InvalidArgument where a file can't be
    taken, or a token would be readable on its way."""

    def __init__(self, address: str, target: str, options: Options, security: ChannelSecurity) -> None:
        self._target = target
        self._options = [*options, *_name_option(address, security)]
        self._credentials = _credentials(security)
        self._token = _token(address, security)
        self._made_of = self._credentials.current() if self._credentials is not None else None
        self._current = self._made()
        self._retired: dict[grpc.aio.Channel, asyncio.Task[None]] = {}

    def current(self) -> grpc.aio.Channel:
        """The channel that new calls take."""
        if self._credentials is not None and (credentials := self._credentials.current()) is not self._made_of:
            self._retire(self._current)
            self._made_of = credentials
            self._current = self._made()
        return self._current

    def with_token(self, metadata: Any) -> Any:
        """The metadata of a call with our token, unless it has one of its own."""
        if self._token is None:
            return metadata
        given = tuple(metadata or ())
        if any(key.lower() == "authorization" for key, _ in given):
            return given
        return (*given, ("authorization", self._token.current()))

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return _Method(self, "unary_unary", method, args, kwargs)

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return _Method(self, "unary_stream", method, args, kwargs)

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return _Method(self, "stream_unary", method, args, kwargs)

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return _Method(self, "stream_stream", method, args, kwargs)

    async def close(self, grace: float | None = None) -> None:
        for task in self._retired.values():
            task.cancel()
        await asyncio.gather(*(channel.close(grace) for channel in (self._current, *self._retired)))

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self.current().get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self.current().wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self.current().channel_ready()

    async def __aenter__(self) -> SecuredChannel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _retire(self, channel: grpc.aio.Channel) -> None:
        task = asyncio.ensure_future(channel.close(_UNTIL_THEY_END))
        self._retired[channel] = task
        task.add_done_callback(lambda _: self._retired.pop(channel, None))

    def _made(self) -> grpc.aio.Channel:
        if self._made_of is None:
            return grpc.aio.insecure_channel(self._target, options=self._options)
        return grpc.aio.secure_channel(self._target, self._made_of, options=self._options)


class _Method:
    """One RPC, called on whatever channel is the current one."""

    def __init__(self, owner: SecuredChannel, kind: str, method: str, args: Any, kwargs: Any) -> None:
        def make(channel: grpc.aio.Channel) -> Any:
            return getattr(channel, kind)(method, *args, **kwargs)

        self._owner = owner
        self._make = make
        self._made_for: grpc.aio.Channel | None = None
        self._call: Any = None

    def __call__(self, *args: Any, metadata: Any = None, **kwargs: Any) -> Any:
        channel = self._owner.current()
        if channel is not self._made_for:
            self._made_for, self._call = channel, self._make(channel)
        return self._call(*args, metadata=self._owner.with_token(metadata), **kwargs)


def _credentials(security: ChannelSecurity) -> Reloaded[grpc.ChannelCredentials] | None:
    if (security.cert_file is None) != (security.key_file is None):
        raise InvalidArgument("a client certificate needs its key, and a key its certificate: give both files")
    if security.ca_file is None:
        if security.cert_file is not None:
            raise InvalidArgument(
                "a client certificate is for TLS: give the file of the CA that signed the server's too"
            )
        return None
    return channel_credentials(security.ca_file, security.cert_file, security.key_file)


def _token(address: str, security: ChannelSecurity) -> Reloaded[str] | None:
    path = security.token_file
    if path is None:
        return None
    readable = security.ca_file is None and not all(is_loopback(host) for host in hosts_of(address))
    if readable and not security.allow_plaintext_token:
        raise InvalidArgument(
            f"the token in {str(path)!r} is not sent to {address} unencrypted: set PROMPTLOOPER_SERVER_CA_FILE (a"
            " service: PROMPTLOOPER_TLS_CA_FILE) for TLS, or PROMPTLOOPER_ALLOW_PLAINTEXT_TOKENS=true where the network"
            " encrypts"
        )
    return Reloaded(f"the token in {str(path)!r}", [path], lambda data: f"Bearer {secret_of(data[0])}")


def _name_option(address: str, security: ChannelSecurity) -> Options:
    """A list of addresses has no name that a certificate could carry, unless we give it one."""
    if security.ca_file is None:
        return ()
    hosts = hosts_of(address)
    name = security.server_name or (hosts[0] if len(set(hosts)) == 1 and len(hosts) > 1 else "")
    if not name and len(hosts) > 1:
        raise InvalidArgument(
            f"{address!r} lists several servers, and TLS needs the one name that their certificates carry: set"
            " PROMPTLOOPER_SERVER_NAME (a service: PROMPTLOOPER_TLS_SERVER_NAME)"
        )
    return (("grpc.default_authority", name),) if name else ()
