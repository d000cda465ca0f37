"""The four images, built without a daemon and looked into: `make test-images`, as root on Debian, several minutes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from installed import pip_settings
from manifests import ROOT, SERVICES

VERSION = "0.0.0-test"
BASE = "localhost/debian-python:12"


@dataclass(frozen=True)
class Buildah:
    """Has its images in a folder of its own."""

    folder: Path

    def __call__(self, command: str, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        stores = ("--root", str(self.folder / "root"), "--runroot", str(self.folder / "run"))
        words = ("buildah", *stores, "--storage-driver", "vfs", command, *args)
        return subprocess.run(words, check=check, text=True, stdout=subprocess.PIPE)

    def build(self, dockerfile: Path, tag: str, context: Path, *args: str) -> None:
        self("bud", "--isolation", "chroot", "--pull-never", "-f", str(dockerfile), "-t", tag, *args, str(context))

    def run(self, image: str, *words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        container = self("from", "--pull-never", image).stdout.strip()
        settings = [f"--env={name}={value}" for name, value in (env or {}).items()]
        return self("run", "--isolation", "chroot", *settings, container, "--", *words, check=False)


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    """With a base image: Debian, Python, pip."""
    folder = tmp_path_factory.mktemp("images")
    buildah, tree, context = Buildah(folder), folder / "tree", folder / "context"
    context.mkdir()
    packages = "--include=python3,python3-venv,python3-pip,ca-certificates"
    subprocess.run(["debootstrap", "--variant=minbase", packages, "bookworm", tree], check=True)
    subprocess.run(["tar", "-C", tree, "-cf", context / "base.tar", "."], check=True)
    (context / "Dockerfile").write_text("FROM scratch\nADD base.tar /\n")
    buildah.build(context / "Dockerfile", BASE, context)
    yield buildah
    buildah("rmi", "--all", "--force")


@pytest.fixture(scope="module", params=SERVICES)
def image(request: pytest.FixtureRequest, buildah: Buildah) -> str:
    service, settings = str(request.param), pip_settings()
    args = {"BASE": BASE, "SERVICE": service, "VERSION": VERSION}
    mounts = []
    if "cert" in settings:  # of this machine, which a build does not see
        mounts = ["--volume", f"{settings['cert']}:/ca.crt:ro"]
        args["PIP_CERT"] = "/ca.crt"
    if "index-url" in settings:
        args["PIP_INDEX_URL"] = settings["index-url"]
    given = [f"--build-arg={name}={value}" for name, value in args.items()]
    tag = f"localhost/promptlooper-{service}:test"
    buildah.build(ROOT / "deploy/images/Dockerfile", tag, ROOT, "--layers", "--network", "host", *mounts, *given)
    return tag


@pytest.mark.timeout(1_800)
def test_image_is_small_unprivileged_and_runs_its_service(buildah: Buildah, image: str) -> None:
    service = image.rpartition("-")[2].removesuffix(":test")
    config: dict[str, Any] = json.loads(buildah("inspect", image).stdout)["OCIv1"]["config"]
    assert (config["User"], config["Entrypoint"], config["Cmd"]) == ("10001:10001", ["promptlooper"], ["serve"])
    assert config["StopSignal"] == "SIGTERM"
    assert config["Labels"]["org.opencontainers.image.title"] == f"promptlooper-{service}"
    assert config["Labels"]["org.opencontainers.image.version"] == VERSION

    assert buildah.run(image, "id", "-u").stdout.strip() == "10001"
    assert buildah.run(image, "sh", "-c", "command -v gcc cc make pip pip3").stdout == ""
    assert buildah.run(image, "python", "-c", "import pip").returncode == 1
    # The service of the image reads its settings, and says which one it can't take.
    started = buildah.run(image, "promptlooper", "serve", env={"PROMPTLOOPER_LISTEN": "nowhere"})
    assert started.returncode == 2
    if service == "runner":
        migrated = buildah.run(image, "promptlooper", "migrate", "--database-url", "sqlite:////tmp/promptlooper.db")
        assert "to revision" in migrated.stdout
