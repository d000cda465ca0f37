"""The settings in the manifests are ones that the services have, and take."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from manifests import (
    BASE,
    DEV,
    PRODUCTION,
    ROOT,
    SERVICES,
    container_of,
    deployment,
    environment,
    named,
    of_kind,
    pod_of,
    workloads,
)

from promptlooper.adapter.config import read_providers_file
from promptlooper.adapter.settings import AdapterSettings
from promptlooper.addresses import host_and_port
from promptlooper.cache.settings import CacheSettings
from promptlooper.errors import InvalidArgument
from promptlooper.rpc.client import is_name, target_of
from promptlooper.runner.settings import RunnerSettings
from promptlooper.scorer.settings import ScorerSettings
from promptlooper.settings import ServiceSettings

SETTINGS: dict[str, type[ServiceSettings]] = {
    "runner": RunnerSettings,
    "adapter": AdapterSettings,
    "cache": CacheSettings,
    "scorer": ScorerSettings,
}
PREFIX = "PROMPTLOOPER_"


@pytest.fixture(params=[DEV, PRODUCTION])
def part(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def settings_of(part: str, service: str) -> ServiceSettings:
    """As the service reads them in its pod."""
    env = environment(part, deployment(part, service))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        return SETTINGS[service]()


@pytest.fixture(autouse=True)
def _no_settings_of_ours(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import os

    for name in list(os.environ):
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)
    return


@pytest.mark.parametrize("service", SERVICES)
def test_every_variable_is_a_setting_of_its_service_which_takes_the_value(part: str, service: str) -> None:
    names = {name.removeprefix(PREFIX).lower() for name in environment(part, deployment(part, service))}
    assert names <= SETTINGS[service].model_fields.keys()
    port = SERVICES[service]
    settings = settings_of(part, service)
    assert [host_and_port(one) for one in (settings.listen, settings.health_listen, settings.metrics_listen)] == [
        ("0.0.0.0", port),
        ("0.0.0.0", port + 100),
        ("0.0.0.0", port + 200),
    ]


@pytest.mark.parametrize("service", SERVICES)
def test_base_alone_does_not_start_as_nobody_has_said_who_may_call(service: str) -> None:
    with pytest.raises(InvalidArgument, match="would be open to everyone who reaches it"):
        settings_of(BASE, service)


def test_runner_calls_the_names_of_services_which_stand_for_all_their_pods(part: str) -> None:
    settings = settings_of(part, "runner")
    assert isinstance(settings, RunnerSettings)
    for service in ("adapter", "cache", "scorer"):
        address = getattr(settings, f"{service}_address")
        assert address == target_of(address) == f"dns:///promptlooper-{service}:{SERVICES[service]}"
        assert is_name(address)
        assert named(part, "Service", f"promptlooper-{service}")
    assert settings.replica == "metadata.name"  # of the pod, so no two share it


def test_production_has_tls_and_tokens_everywhere_and_dev_says_that_it_has_none() -> None:
    for service in SERVICES:
        production, dev = settings_of(PRODUCTION, service), settings_of(DEV, service)
        assert dev.allow_unauthenticated
        assert not production.allow_unauthenticated
        assert production.tls_cert_file
        assert production.api_keys_file
        assert bool(production.tls_client_ca_file) is (service != "runner")
    runner = settings_of(PRODUCTION, "runner")
    assert runner.tls_ca_file
    assert runner.service_token_file


def test_files_that_settings_name_are_mounted_from_secrets(part: str) -> None:
    for workload in workloads(part):
        mounted = [one["mountPath"] for one in container_of(workload).get("volumeMounts", ())]
        values = " ".join(environment(part, workload).values())
        for path in re.findall(r"/etc/promptlooper/[\w/.-]+", values):
            assert any(path.startswith(f"{mount}/") for mount in mounted), path


def test_config_maps_that_are_mounted_or_read_are_there(part: str) -> None:
    for workload in workloads(part):
        for volume in pod_of(workload).get("volumes", ()):
            if "configMap" in volume:
                assert named(part, "ConfigMap", volume["configMap"]["name"])


def test_secrets_that_must_be_there_are_in_the_documentation() -> None:
    documented = (ROOT / "docs/kubernetes.md").read_text()
    for workload in workloads(PRODUCTION):
        for volume in pod_of(workload).get("volumes", ()):
            for source in volume.get("projected", {}).get("sources", ()):
                assert f"`{source['secret']['name']}`" in documented
    assert not of_kind(PRODUCTION, "Secret")
    assert not of_kind(DEV, "Secret")


def test_providers_file_is_one_that_the_adapter_takes() -> None:
    (entry,) = read_providers_file(ROOT / "deploy/k8s/base/providers.yaml")
    assert entry.name == "openai"
    assert str(entry.api_key_file).endswith("provider-keys/openai")
