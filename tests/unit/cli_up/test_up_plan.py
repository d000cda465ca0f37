"""What `up` will start: ports and environments."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from promptlooper.cli.stack import (
    MAX_PORT_BASE,
    MAX_REPLICAS,
    Options,
    environment_of,
    free_port_base,
    planned_parts,
    ports_in_use,
)
from promptlooper.cli.stack_state import planned_state
from promptlooper.cli.up import ready_lines

ONE_OF_EACH = {"runner": 1, "adapter": 1, "cache": 1, "scorer": 1}
OUTER = {
    "PATH": "/bin",
    "LC_ALL": "C.UTF-8",
    "OPENAI_API_KEY": "sk-secret",
    "MY_GATEWAY_TOKEN": "also-secret",
    "HTTPS_PROXY": "http://proxy:3128",
    "PROMPTLOOPER_LOG_LEVEL": "debug",
    "PROMPTLOOPER_DATABASE_URL": "postgresql://old:password@elsewhere/db",
    "PROMPTLOOPER_SERVER": "10.0.0.1:7051",
    "PROMPTLOOPER_SLOTS": "20",
    "PROMPTLOOPER_LEASE_TTL": "3",
    "PROMPTLOOPER_EVENT_RETENTION": "60",
    "PROMPTLOOPER_FAILPOINTS": "commit=crash",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317",
    "OTEL_SERVICE_NAME": "mine",
}


def environments(options: Options) -> dict[str, dict[str, str]]:
    parts = planned_parts(options.replicas, options.port_base)
    return {part.name: environment_of(part, parts, options, OUTER) for part in parts}


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(tmp_path, ONE_OF_EACH)


def test_services_have_their_documented_ports_and_health_and_metrics_are_above(options: Options) -> None:
    parts = {part.name: part for part in planned_parts(ONE_OF_EACH, options.port_base)}
    assert {name: part.port for name, part in parts.items()} == {
        "runner-0": 7051,
        "adapter-0": 7052,
        "cache-0": 7053,
        "scorer-0": 7054,
        "nats": 7055,
        "redis": 7056,
    }
    assert parts["runner-0"].health_address == "127.0.0.1:7151"
    assert parts["nats"].health_address is None
    assert parts["runner-0"].metrics_address == "127.0.0.1:7251"
    assert parts["nats"].metrics_address is None


def test_the_most_replicas_share_no_port_and_none_is_too_high() -> None:
    parts = planned_parts(dict.fromkeys(ONE_OF_EACH, MAX_REPLICAS), MAX_PORT_BASE)
    ports = [port for part in parts for port in part.ports]
    assert len(ports) == len(set(ports))
    assert max(ports) <= 65535


def test_brokers_start_first_and_the_runner_last(options: Options) -> None:
    kinds = [part.kind for part in planned_parts(ONE_OF_EACH, 7051)]
    assert set(kinds[:2]) == {"nats", "redis"}
    assert kinds[-1] == "runner"


def test_provider_keys_reach_the_adapter_and_no_other_part(options: Options) -> None:
    for name, env in environments(options).items():
        keys = {"OPENAI_API_KEY", "MY_GATEWAY_TOKEN", "HTTPS_PROXY"} & env.keys()
        assert len(keys) == (3 if name == "adapter-0" else 0), name


def test_every_service_is_told_where_traces_go_and_keeps_its_own_name(options: Options) -> None:
    for env in environments(options).values():
        assert env["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://collector:4317"
        assert "OTEL_SERVICE_NAME" not in env


def test_the_database_url_reaches_the_runner_and_no_other_part(tmp_path: Path) -> None:
    url = "postgresql://me:password@db/promptlooper"
    for name, env in environments(Options(tmp_path, ONE_OF_EACH, database_url=url)).items():
        assert env.get("PROMPTLOOPER_DATABASE_URL") == (url if name == "runner-0" else None)


def test_without_a_database_url_the_runner_gets_a_file_in_the_data_folder(options: Options) -> None:
    runner = environments(options)["runner-0"]
    assert runner["PROMPTLOOPER_DATABASE_URL"] == f"sqlite:///{options.data}/promptlooper.db"


def test_each_service_is_told_where_it_listens_and_the_runner_where_the_others_are(options: Options) -> None:
    envs = environments(options)
    assert envs["cache-0"]["PROMPTLOOPER_LISTEN"] == "127.0.0.1:7053"
    assert envs["cache-0"]["PROMPTLOOPER_HEALTH_LISTEN"] == "127.0.0.1:7153"
    assert envs["cache-0"]["PROMPTLOOPER_METRICS_LISTEN"] == "127.0.0.1:7253"
    assert envs["cache-0"]["PROMPTLOOPER_REDIS_URL"] == "redis://127.0.0.1:7056/0"
    runner = envs["runner-0"]
    assert runner["PROMPTLOOPER_NATS_URL"] == "nats://127.0.0.1:7055"
    assert runner["PROMPTLOOPER_ADAPTER_ADDRESS"] == "127.0.0.1:7052"
    assert runner["PROMPTLOOPER_CACHE_ADDRESS"] == "127.0.0.1:7053"
    assert runner["PROMPTLOOPER_SCORER_ADDRESS"] == "127.0.0.1:7054"


def test_every_runner_gets_the_addresses_of_all_replicas_and_one_of_its_own(tmp_path: Path) -> None:
    envs = environments(
        Options(tmp_path, dict.fromkeys(ONE_OF_EACH, 2), database_url="postgresql://me@db/promptlooper")
    )
    for name, port in (("runner-0", 7051), ("runner-1", 7061)):
        runner = envs[name]
        assert runner["PROMPTLOOPER_LISTEN"] == f"127.0.0.1:{port}"
        assert runner["PROMPTLOOPER_ADAPTER_ADDRESS"] == "127.0.0.1:7052,127.0.0.1:7062"
        assert runner["PROMPTLOOPER_CACHE_ADDRESS"] == "127.0.0.1:7053,127.0.0.1:7063"
        assert runner["PROMPTLOOPER_SCORER_ADDRESS"] == "127.0.0.1:7054,127.0.0.1:7064"
        assert runner["PROMPTLOOPER_DATABASE_URL"] == "postgresql://me@db/promptlooper"


def test_the_ready_lines_name_every_part_and_all_runners_as_one_server(tmp_path: Path) -> None:
    parts = planned_parts(dict.fromkeys(ONE_OF_EACH, 2), 7051)
    lines = ready_lines(planned_state(parts, None), tmp_path)
    assert [line.split()[0] for line in lines[1:-1]] == [part.name for part in parts]
    assert lines[-1] == "Run:   promptlooper run FILE --server 127.0.0.1:7051,127.0.0.1:7061"


def test_only_the_adapter_gets_the_providers_file(tmp_path: Path) -> None:
    file = tmp_path / "providers.yaml"
    for name, env in environments(Options(tmp_path, ONE_OF_EACH, providers=file)).items():
        assert env.get("PROMPTLOOPER_PROVIDERS") == (str(file) if name == "adapter-0" else None)


def test_settings_of_services_reach_all_and_those_of_the_command_line_none(options: Options) -> None:
    settings = ("LOG_LEVEL", "SLOTS", "LEASE_TTL", "EVENT_RETENTION", "FAILPOINTS")
    for env in environments(options).values():
        for name in settings:
            assert env[f"PROMPTLOOPER_{name}"] == OUTER[f"PROMPTLOOPER_{name}"]
        assert "PROMPTLOOPER_SERVER" not in env


def test_a_port_that_someone_listens_on_is_named_with_the_part_that_wants_it() -> None:
    base = free_port_base(ONE_OF_EACH)
    parts = planned_parts(ONE_OF_EACH, base)
    assert ports_in_use(parts) == []
    with socket.create_server(("127.0.0.1", base + 101)):
        ((port, part),) = ports_in_use(parts)
    assert (port, part.name) == (base + 101, "adapter-0")
