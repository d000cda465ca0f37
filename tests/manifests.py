"""What `kubectl kustomize` makes of deploy/k8s, read back."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
BASE, DEV, PRODUCTION = "base", "overlays/dev", "overlays/production"
SERVICES = {"runner": 7051, "adapter": 7052, "cache": 7053, "scorer": 7054}

Document = dict[str, Any]


@cache
def rendered(part: str) -> tuple[Document, ...]:
    """The documents of a base or an overlay."""
    kubectl = Path(sys.executable).parent / "kubectl"
    done = subprocess.run(
        [kubectl, "kustomize", ROOT / "deploy/k8s" / part], capture_output=True, text=True, check=True
    )
    return tuple(yaml.safe_load_all(done.stdout))


def of_kind(part: str, *kinds: str) -> list[Document]:
    return [document for document in rendered(part) if document["kind"] in kinds]


def named(part: str, kind: str, name: str) -> Document:
    (found,) = (document for document in of_kind(part, kind) if document["metadata"]["name"] == name)
    return found


def workloads(part: str) -> list[Document]:
    """Everything that has pods."""
    return of_kind(part, "Deployment", "StatefulSet", "Job")


def pod_of(workload: Document) -> Document:
    pod: Document = workload["spec"]["template"]["spec"]
    return pod


def container_of(workload: Document) -> Document:
    (container,) = pod_of(workload)["containers"]
    return dict(container)


def component_of(workload: Document) -> str:
    return str(workload["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"])


def deployment(part: str, service: str) -> Document:
    return named(part, "Deployment", f"promptlooper-{service}")


def environment(part: str, workload: Document) -> dict[str, str]:
    """The variables that its container gets; what the pod itself gives is the name of the field."""
    container, found = container_of(workload), dict[str, str]()
    for source in container.get("envFrom", ()):
        found |= named(part, "ConfigMap", source["configMapRef"]["name"])["data"]
    for variable in container.get("env", ()):
        found[variable["name"]] = variable.get("value") or variable["valueFrom"]["fieldRef"]["fieldPath"]
    return found
