from __future__ import annotations

import pytest
from pydantic import SecretStr, ValidationError

from promptlooper.errors import InvalidArgument
from promptlooper.settings import ServiceSettings, masked


class CacheSettings(ServiceSettings):
    listen: str = "127.0.0.1:7053"
    redis_url: str = "redis://127.0.0.1:6379/0"
    token: SecretStr = SecretStr("")
    replicas: int = 1


class NeedySettings(ServiceSettings):
    database_url: str


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "LISTEN",
        "HEALTH_LISTEN",
        "REDIS_URL",
        "TOKEN",
        "REPLICAS",
        "LOG_LEVEL",
        "REFLECTION",
        "DATABASE_URL",
    ):
        monkeypatch.delenv(f"PROMPTLOOPER_{name}", raising=False)


def test_defaults_are_the_services_own() -> None:
    settings = CacheSettings()
    assert (settings.listen, settings.health_listen) == ("127.0.0.1:7053", "127.0.0.1:7153")
    assert settings.reflection


def test_environment_wins_over_defaults_and_arguments_over_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTLOOPER_LISTEN", "0.0.0.0:9000")
    monkeypatch.setenv("PROMPTLOOPER_ALLOW_UNAUTHENTICATED", "true")
    monkeypatch.setenv("PROMPTLOOPER_LOG_LEVEL", "DEBUG")
    monkeypatch.setenv("PROMPTLOOPER_REFLECTION", "false")
    monkeypatch.setenv("PROMPTLOOPER_OF_ANOTHER_SERVICE", "x")
    settings = CacheSettings()
    assert (settings.listen, settings.health_listen, settings.log_level) == ("0.0.0.0:9000", "0.0.0.0:9100", "debug")
    assert not settings.reflection
    assert CacheSettings(listen="127.0.0.1:0").health_listen == "127.0.0.1:0"
    assert CacheSettings(listen="0.0.0.0:9000").metrics_listen == "0.0.0.0:9200"
    assert CacheSettings(metrics_listen="off").metrics_listen == "off"
    monkeypatch.setenv("PROMPTLOOPER_HEALTH_LISTEN", "[::1]:1")
    assert CacheSettings().health_listen == "[::1]:1"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("LISTEN", "7053", "PROMPTLOOPER_LISTEN is '7053': '7053' is not an address: write HOST:PORT"),
        ("METRICS_LISTEN", "nowhere", "is not an address: write HOST:PORT"),
        ("LOG_FORMAT", "xml", "input should be 'text' or 'json'"),
        ("LISTEN", "127.0.0.1:65400", "leaves no room for the metrics port, 200 above"),
        ("LISTEN", "127.0.0.1:65500", "leaves no room for the health port, 100 above: set PROMPTLOOPER_HEALTH_LISTEN"),
        ("REPLICAS", "many", "PROMPTLOOPER_REPLICAS is 'many': input should be a valid integer"),
        (
            "LOG_LEVEL",
            "loud",
            "PROMPTLOOPER_LOG_LEVEL is 'loud': input should be 'debug', 'info', 'warning' or 'error'",
        ),
        ("GRACE", "-1", "PROMPTLOOPER_GRACE is '-1': input should be greater than or equal to 0"),
    ],
)
def test_wrong_value_is_a_sentence_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(f"PROMPTLOOPER_{name}", value)
    with pytest.raises(InvalidArgument) as caught:
        CacheSettings()
    assert said in caught.value.message
    assert "\n" not in caught.value.message


def test_every_wrong_value_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTLOOPER_LISTEN", "nowhere")
    with pytest.raises(InvalidArgument) as caught:
        NeedySettings()
    assert "PROMPTLOOPER_LISTEN" in caught.value.message
    assert "PROMPTLOOPER_DATABASE_URL is not set: set it" in caught.value.message
    assert "HEALTH" not in caught.value.message


def test_settings_can_not_be_changed() -> None:
    with pytest.raises(ValidationError):
        CacheSettings().listen = "x:1"  # type: ignore[misc]


def test_described_settings_have_no_secrets() -> None:
    settings = CacheSettings(redis_url="redis://me:hunter2@cache:6379/0", token=SecretStr("hunter2"))
    described = settings.described()
    assert described["redis_url"] == "redis://me:***@cache:6379/0"
    assert described["token"] == "***"
    assert described["listen"] == "127.0.0.1:7053"
    assert "hunter2" not in str(described)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (3, "3"),
        ("redis://:hunter2@h/0", "redis://:***@h/0"),
        ("postgresql://h/db?user=a&password=hunter2&x=1", "postgresql://h/db?user=a&password=***&x=1"),
        ("nats://token:a:b@h:1", "nats://token:***@h:1"),
        ("postgresql://me:p/w@d@h/db", "postgresql://me:***@h/db"),
        ("a://u:x@h,b://u:y@h", "a://u:***@h,b://u:***@h"),
        ("nats://hunter2token@h:4222", "nats://***@h:4222"),
        ("redis://:a,b@h/0", "redis://:***@h/0"),
        ("postgresql+psycopg://postgres@127.0.0.1:5432/db", "postgresql+psycopg://postgres@127.0.0.1:5432/db"),
        ("http://127.0.0.1:8080/v1", "http://127.0.0.1:8080/v1"),
    ],
)
def test_masked_text_keeps_all_but_the_secret(value: object, text: str) -> None:
    assert masked(value) == text
