"""What every pod must be, whatever overlay it comes from."""

from __future__ import annotations

import re

import kubernetes_validate
import pytest
import yaml
from manifests import (
    BASE,
    DEV,
    PRODUCTION,
    ROOT,
    SERVICES,
    component_of,
    container_of,
    deployment,
    environment,
    named,
    of_kind,
    pod_of,
    rendered,
    workloads,
)

from promptlooper.rpc.health import LIVENESS
from promptlooper.rpc.process import _CLEANING_UP

PARTS = (BASE, DEV, PRODUCTION)
KUBERNETES = "1.37"
# Of KEDA, which is not Kubernetes's: its schema is in no validator that works offline.
FOREIGN = {"ScaledObject"}


@pytest.fixture(params=PARTS)
def part(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_kubernetes_takes_every_document_as_it_is(part: str) -> None:
    for document in rendered(part):
        if document["kind"] not in FOREIGN:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_every_document_is_in_the_namespace_which_lets_in_restricted_pods_only(part: str) -> None:
    (namespace,) = of_kind(part, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    others = {document["metadata"]["namespace"] for document in rendered(part) if document is not namespace}
    assert others == {namespace["metadata"]["name"]}


def test_pods_keep_the_rules_of_restricted_and_more(part: str) -> None:
    for workload in workloads(part):
        pod, container = pod_of(workload), container_of(workload)
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] == security["runAsGroup"] == security["fsGroup"] == 10001
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers"} & pod.keys()


def test_pods_write_only_where_the_size_is_limited_and_secrets_are_for_their_user_alone(part: str) -> None:
    for workload in workloads(part):
        for volume in pod_of(workload).get("volumes", ()):
            (kind,) = volume.keys() - {"name"}
            assert kind in ("emptyDir", "configMap", "projected")
            if kind == "emptyDir":
                assert "sizeLimit" in volume["emptyDir"]
            if kind == "projected":
                assert volume["projected"]["defaultMode"] == 0o400
        assert not any("secretKeyRef" in str(variable) for variable in container_of(workload).get("env", ()))


def test_requests_and_limits_are_there_and_no_memory_is_promised_twice(part: str) -> None:
    for workload in workloads(part):
        resources = container_of(workload)["resources"]
        assert resources["requests"].keys() == resources["limits"].keys() == {"cpu", "memory", "ephemeral-storage"}
        assert resources["requests"]["memory"] == resources["limits"]["memory"]


def test_images_have_a_full_version_or_a_digest(part: str) -> None:
    for workload in workloads(part):
        image = container_of(workload)["image"]
        assert re.search(r"@sha256:[0-9a-f]{64}$|:\d+\.\d+(\.\d+)?(-\w+)?$", image), image
        assert container_of(workload)["imagePullPolicy"] == ("Always" if part == PRODUCTION else "IfNotPresent")


def test_one_release_is_deployed_and_its_migration_has_a_name_of_its_own(part: str) -> None:
    (job,) = of_kind(part, "Job")
    images = [container_of(deployment(part, service))["image"] for service in SERVICES]
    (version,) = {image.rpartition(":")[2] for image in (*images, container_of(job)["image"])}
    assert job["metadata"]["name"] == f"promptlooper-migrate-{version.replace('.', '-')}"
    assert job["spec"]["ttlSecondsAfterFinished"] > 0
    assert container_of(job)["args"] == ["migrate"]


@pytest.mark.parametrize("service", SERVICES)
def test_liveness_is_not_readiness_and_both_are_asked_on_the_health_port(part: str, service: str) -> None:
    container = container_of(deployment(part, service))
    alive, ready, started = (container[f"{name}Probe"] for name in ("liveness", "readiness", "startup"))
    assert alive["grpc"] == started["grpc"] == {"port": SERVICES[service] + 100, "service": LIVENESS}
    assert ready["grpc"] == {
        "port": SERVICES[service] + 100,
        "service": f"promptlooper.v1.{service.capitalize()}Service",
    }


@pytest.mark.parametrize("service", SERVICES)
def test_pod_lives_as_long_as_its_drain_takes(part: str, service: str) -> None:
    pod, env = pod_of(deployment(part, service)), environment(part, deployment(part, service))
    (container,) = pod["containers"]
    pre_stop = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = float(env["PROMPTLOOPER_LAME_DUCK"]) + float(env["PROMPTLOOPER_GRACE"]) + _CLEANING_UP
    assert pre_stop > 0
    assert pre_stop + drain < pod["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("service", SERVICES)
def test_service_names_its_ready_pods_one_by_one(part: str, service: str) -> None:
    spec = named(part, "Service", f"promptlooper-{service}")["spec"]
    assert (spec["clusterIP"], spec["publishNotReadyAddresses"]) == ("None", False)
    assert spec["selector"] == {"app.kubernetes.io/component": component_of(deployment(part, service))}
    base = SERVICES[service]
    ports = {port["name"]: port["containerPort"] for port in container_of(deployment(part, service))["ports"]}
    assert ports == {"grpc": base, "health": base + 100, "metrics": base + 200}
    assert {port["name"]: port["port"] for port in spec["ports"]} == ports
    assert [port["targetPort"] for port in spec["ports"]] == [port["name"] for port in spec["ports"]]


@pytest.mark.parametrize("service", SERVICES)
def test_pods_of_a_service_are_spread_and_go_one_at_a_time(part: str, service: str) -> None:
    labels = {"app.kubernetes.io/component": service}
    constraints = pod_of(deployment(part, service))["topologySpreadConstraints"]
    assert [one["topologyKey"] for one in constraints] == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
    assert all(one["labelSelector"] == {"matchLabels": labels} for one in constraints)
    budget = named(part, "PodDisruptionBudget", f"promptlooper-{service}")["spec"]
    assert budget == {"maxUnavailable": 1, "selector": {"matchLabels": labels}}


def test_production_scales_every_service_from_three_and_nothing_sets_replicas_back() -> None:
    scaled = {one["metadata"]["name"]: one["spec"] for one in of_kind(PRODUCTION, "HorizontalPodAutoscaler")}
    (runner,) = of_kind(PRODUCTION, "ScaledObject")
    assert {name: spec["minReplicas"] for name, spec in scaled.items()} == {
        f"promptlooper-{service}": 3 for service in SERVICES if service != "runner"
    }
    assert all(spec["scaleTargetRef"]["name"] == name for name, spec in scaled.items())
    assert (runner["spec"]["scaleTargetRef"]["name"], runner["spec"]["minReplicaCount"]) == ("promptlooper-runner", 3)
    assert not [one for one in of_kind(PRODUCTION, "Deployment") if "replicas" in one["spec"]]


def test_runners_are_scaled_by_metrics_that_they_have() -> None:
    (runner,) = of_kind(PRODUCTION, "ScaledObject")
    (trigger,) = runner["spec"]["triggers"]
    metrics = set(re.findall(r"promptlooper_\w+", trigger["metadata"]["query"]))
    assert "promptlooper_claimable_runs" in metrics
    documented = (ROOT / "docs/observability.md").read_text()
    assert all(name in documented for name in metrics)


def test_what_the_autoscaler_asks_for_has_the_labels_that_prometheus_is_told_to_give() -> None:
    (runner,) = of_kind(PRODUCTION, "ScaledObject")
    (trigger,) = runner["spec"]["triggers"]
    assert trigger["metadata"]["ignoreNullValues"] == "false"  # else "no such metric" would mean "nothing to do"
    example = (ROOT / "deploy/observability/prometheus.yaml").read_text()
    commented = re.search(r"^  # - job_name:.*(?:\n  # .*)*", example, re.MULTILINE)
    assert commented
    (job,) = yaml.safe_load(re.sub(r"^  # ", "", commented[0], flags=re.MULTILINE))
    given = {one["target_label"] for one in job["relabel_configs"] if "target_label" in one}
    asked = set(re.findall(r"[{,](\w+)=", trigger["metadata"]["query"]))
    assert asked == {"namespace"} <= given


@pytest.mark.parametrize("service", SERVICES)
def test_service_says_what_its_port_speaks(part: str, service: str) -> None:
    spec = named(part, "Service", f"promptlooper-{service}")["spec"]
    secured = environment(part, deployment(part, service)).get("PROMPTLOOPER_TLS_CERT_FILE")
    protocols = {port["name"]: port["appProtocol"] for port in spec["ports"]}
    assert protocols == {
        "grpc": "https" if secured else "kubernetes.io/h2c",
        "health": "kubernetes.io/h2c",
        "metrics": "http",
    }


def test_dev_fits_into_two_cores_beside_the_cluster_itself() -> None:
    asked = [container_of(one)["resources"]["requests"]["cpu"] for one in workloads(DEV)]
    assert sum(int(cpu.removesuffix("m")) for cpu in asked) <= 1000
