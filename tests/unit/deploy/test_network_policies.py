"""Who may reach whom: exactly those who have to."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import pytest
from manifests import BASE, DEV, PRODUCTION, SERVICES, component_of, deployment, environment, of_kind, workloads

PARTS = (BASE, DEV, PRODUCTION)
Edge = tuple[str, str, int]
USERS = {"promptlooper-client": "true"}


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    wanted = selector.get("matchLabels", {}).items()
    among = selector.get("matchExpressions", ())
    assert all(one["operator"] == "In" for one in among)
    return wanted <= labels.items() and all(labels.get(one["key"]) in one["values"] for one in among)


def labels_of(part: str) -> dict[str, dict[str, str]]:
    return {component_of(one): one["spec"]["template"]["metadata"]["labels"] for one in workloads(part)}


def policies_of(part: str, component: str) -> Iterator[Mapping[str, Any]]:
    labels = labels_of(part)[component]
    return (one["spec"] for one in of_kind(part, "NetworkPolicy") if selects(one["spec"]["podSelector"], labels))


def allowed(part: str, component: str, direction: str, peers: str) -> set[Edge]:
    """(who is meant, by component; port) that the policies of a component allow, for peers in its namespace."""
    edges = set()
    for policy in policies_of(part, component):
        for rule in policy.get(direction, ()):
            for peer in rule[peers]:
                if peer.keys() == {"podSelector"}:
                    others = {name for name, labels in labels_of(part).items() if selects(peer["podSelector"], labels)}
                    edges |= {(other, component, port["port"]) for other in others for port in rule["ports"]}
    return edges


def blocks(part: str, component: str) -> list[Mapping[str, Any]]:
    """What a component may reach outside."""
    rules = [rule for policy in policies_of(part, component) for rule in policy.get("egress", ())]
    return [peer["ipBlock"] for rule in rules for peer in rule["to"] if "ipBlock" in peer]


def dependencies(part: str) -> set[Edge]:
    """(caller, callee, port), as the settings of the callers say."""
    edges = set()
    for caller in workloads(part):
        for name, value in environment(part, caller).items():
            if name.endswith(("_ADDRESS", "_URL")):
                url = urlsplit(value if "://" in value else f"//{value}")
                host, port = url.path.strip("/").split(":") if url.scheme == "dns" else (url.hostname, url.port or 0)
                edges.add((component_of(caller), str(host).removeprefix("promptlooper-"), int(port)))
    return edges


@pytest.fixture(params=PARTS)
def part(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_pod_is_denied_everything_that_is_not_allowed(part: str) -> None:
    (deny,) = (one["spec"] for one in of_kind(part, "NetworkPolicy") if one["metadata"]["name"] == "default-deny")
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for policy in of_kind(part, "NetworkPolicy"):
        rules = {"ingress": "Ingress", "egress": "Egress"}
        assert {rules[name] for name in rules if name in policy["spec"]} <= set(policy["spec"]["policyTypes"])
        for rule in (*policy["spec"].get("ingress", ()), *policy["spec"].get("egress", ())):
            assert rule["ports"]
            assert rule.get("from") or rule.get("to")  # an empty list would mean everyone


def test_calls_within_the_namespace_are_allowed_on_both_sides_and_are_those_that_are_made(part: str) -> None:
    components = labels_of(part).keys()
    out = {
        (component, other, port)
        for component in components
        for other, _, port in allowed(part, component, "egress", "to")
    }
    into = {edge for component in components for edge in allowed(part, component, "ingress", "from")}
    needed = {edge for edge in dependencies(part) if edge[1] in components}
    assert out == into == needed


def test_only_the_adapter_leaves_the_cluster_and_reaches_no_private_address(part: str) -> None:
    v4, v6 = (block for block in blocks(part, "adapter") if "except" in block or ":" in block["cidr"])
    excepted = [ipaddress.ip_network(one) for one in v4["except"]]
    for private in ("10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "127.0.0.1", "224.0.0.1"):
        assert any(ipaddress.ip_address(private) in network for network in excepted)
    assert not any(ipaddress.ip_address("1.1.1.1") in network for network in excepted)
    for private in ("fd00::1", "fe80::1", "::1", "::ffff:10.0.0.1"):
        assert ipaddress.ip_address(private) not in ipaddress.ip_network(v6["cidr"])
    for component in labels_of(part):
        for block in blocks(part, component):
            if component == "adapter" and block in (v4, v6):
                continue
            assert ipaddress.ip_network(block["cidr"]).is_private
            assert part == PRODUCTION


def test_scorer_calls_nobody_and_others_look_names_up(part: str) -> None:
    assert not [rule for policy in policies_of(part, "scorer") for rule in policy.get("egress", ())]
    for component in ("runner", "adapter", "cache", "migration"):
        assert any(
            port == {"protocol": "UDP", "port": 53}
            for policy in policies_of(part, component)
            for rule in policy.get("egress", ())
            for port in rule["ports"]
        )


def test_from_other_namespaces_come_users_to_the_runner_and_nats_and_metrics_from_monitoring(part: str) -> None:
    from_users, from_monitoring = set(), set()
    for component in labels_of(part):
        for policy in policies_of(part, component):
            for rule in policy.get("ingress", ()):
                for peer in rule["from"]:
                    namespaces = peer.get("namespaceSelector", {}).get("matchLabels")
                    if namespaces == USERS or peer.get("podSelector", {}).get("matchLabels") == USERS:
                        from_users |= {(component, port["port"]) for port in rule["ports"]}
                    elif namespaces is not None:
                        assert namespaces == {"kubernetes.io/metadata.name": "monitoring"}
                        assert [(port["port"], port["endPort"]) for port in rule["ports"]] == [(7251, 7254)]
                        from_monitoring.add(component)
    assert from_users == {("runner", 7051)} | ({("nats", 4222)} if part == DEV else set())
    assert from_monitoring == SERVICES.keys()


def test_production_reaches_what_it_stands_on() -> None:
    outside = {edge for edge in dependencies(PRODUCTION) if edge[1] not in labels_of(PRODUCTION)}
    reached = set()
    for component in labels_of(PRODUCTION):
        for policy in policies_of(PRODUCTION, component):
            for rule in policy.get("egress", ()):
                if any("ipBlock" in peer and "except" not in peer["ipBlock"] for peer in rule["to"]):
                    reached |= {(component, port["port"]) for port in rule["ports"] if port["port"] != 443}
    assert reached == {(caller, port) for caller, _, port in outside}
    assert deployment(PRODUCTION, "runner")
