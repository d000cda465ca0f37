from __future__ import annotations

from pathlib import Path

import pytest

from promptlooper.adapter.settings import AdapterSettings
from promptlooper.errors import InvalidArgument
from promptlooper.rpc.security import PLAIN, ChannelSecurity


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LISTEN", "HEALTH_LISTEN", "ALLOW_UNAUTHENTICATED"):
        monkeypatch.delenv(f"PROMPTLOOPER_{name}", raising=False)


@pytest.mark.parametrize("listen", ["127.0.0.1:7052", "127.9.9.9:1", "[::1]:7052", "localhost:7052"])
def test_loopback_needs_nothing(listen: str) -> None:
    assert AdapterSettings(listen=listen).channel_security() == PLAIN


@pytest.mark.parametrize(
    "listen", ["0.0.0.0:7052", "[::]:7052", "10.1.2.3:7052", "adapter:7052", "[::ffff:127.0.0.1]:1"]
)
def test_other_addresses_need_to_know_who_calls(listen: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        AdapterSettings(listen=listen)
    assert caught.value.message.startswith(f"{listen} would be open to everyone who reaches it: set PROMPTLOOPER_TLS_")
    tls = {"tls_cert_file": Path("c"), "tls_key_file": Path("k")}
    with pytest.raises(InvalidArgument):
        AdapterSettings(listen=listen, **tls)  # this says who the server is, not who calls
    AdapterSettings(listen=listen, **tls, tls_client_ca_file=Path("ca"))
    AdapterSettings(listen=listen, api_keys_file=Path("keys"))
    AdapterSettings(listen=listen, jwks_file=Path("jwks"), jwt_issuer="i", jwt_audience="a")
    AdapterSettings(listen=listen, allow_unauthenticated=True)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tls_cert_file": "c"}, "PROMPTLOOPER_TLS_KEY_FILE go together"),
        ({"tls_key_file": "k"}, "PROMPTLOOPER_TLS_CERT_FILE and"),
        ({"tls_client_ca_file": "ca"}, "PROMPTLOOPER_TLS_CLIENT_CA_FILE needs PROMPTLOOPER_TLS_CERT_FILE"),
        ({"jwks_file": "j"}, "needs PROMPTLOOPER_JWT_ISSUER and PROMPTLOOPER_JWT_AUDIENCE"),
        ({"jwks_file": "j", "jwt_issuer": "i"}, "needs PROMPTLOOPER_JWT_ISSUER and PROMPTLOOPER_JWT_AUDIENCE"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, str], said: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        AdapterSettings(**settings)
    assert said in caught.value.message


def test_empty_variable_names_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTLOOPER_TLS_CERT_FILE", "")
    monkeypatch.setenv("PROMPTLOOPER_API_KEYS_FILE", "")
    settings = AdapterSettings()
    assert settings.tls_cert_file is None
    assert settings.api_keys_file is None


def test_services_show_their_certificate_where_they_use_tls() -> None:
    own = {"tls_cert_file": Path("c"), "tls_key_file": Path("k")}
    assert AdapterSettings(**own).channel_security() == PLAIN
    settings = AdapterSettings(**own, tls_ca_file=Path("ca"), service_token_file=Path("t"), tls_server_name="adapter")
    assert settings.channel_security() == ChannelSecurity(Path("ca"), Path("c"), Path("k"), Path("t"), "adapter")


def test_users_say_in_the_environment_whom_they_trust() -> None:
    assert ChannelSecurity.from_environment({"PROMPTLOOPER_SERVER_CA_FILE": "", "PROMPTLOOPER_SERVER": "x:1"}) == PLAIN
    names = ("CA_FILE", "CERT_FILE", "KEY_FILE", "TOKEN_FILE", "NAME")
    env = {f"PROMPTLOOPER_SERVER_{name}": name for name in names} | {"PROMPTLOOPER_ALLOW_PLAINTEXT_TOKENS": "true"}
    files = (Path(name) for name in names[:-1])
    assert ChannelSecurity.from_environment(env) == ChannelSecurity(*files, "NAME", allow_plaintext_token=True)
