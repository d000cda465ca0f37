"""What the images are made of."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest
from manifests import ROOT, SERVICES
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

IMAGES = ROOT / "deploy/images"
OLDER_PYTHON = {"async-timeout"}  # for 3.11.2 and older, such as Debian 12's


def pins(text: str) -> dict[str, str]:
    found = re.findall(r"^([\w.-]+)(?:\[[\w,-]+\])?==([^\s;\\]+)", text, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def closure(name: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]]) -> None:
    """A distribution and all that it needs, as it is installed here."""
    if (name, extras) in seen:
        return
    seen.add((name, extras))
    for text in requires(name) or ():
        one = Requirement(text)
        if any(one.marker is None or one.marker.evaluate({"extra": extra}) for extra in extras | {""}):
            closure(canonicalize_name(one.name), frozenset(one.extras), seen)


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, IMAGES / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("extra", [*SERVICES, "tracing"])
def test_image_installs_what_its_extra_needs_each_pinned_by_hash(extra: str) -> None:
    text = (IMAGES / f"requirements/{extra}.txt").read_text()
    seen: set[tuple[str, frozenset[str]]] = set()
    closure("promptlooper", frozenset((extra,)), seen)
    assert pins(text).keys() - OLDER_PYTHON == {name for name, _ in seen} - {"promptlooper"}, "run `make pins`"
    for block in re.split(r"\n(?=\w)", text.strip()):
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), block


@pytest.mark.parametrize("name", [*SERVICES, "tracing", "build"])
def test_images_install_the_versions_that_are_tested_and_name_no_place_to_get_them(name: str) -> None:
    text = (IMAGES / f"requirements/{name}.txt").read_text()
    tested = pins((ROOT / "constraints.txt").read_text())
    untested = {name for name, version in pins(text).items() if tested.get(name) != version}
    assert untested <= OLDER_PYTHON, "run `make pins`"
    assert "://" not in text


def test_image_of_a_service_has_no_user_root_and_no_shell_form() -> None:
    lines = (IMAGES / "Dockerfile").read_text().splitlines()
    final = lines[max(n for n, line in enumerate(lines) if line.startswith("FROM")) :]
    assert "USER 10001:10001" in final
    assert 'ENTRYPOINT ["promptlooper"]' in final
    assert "STOPSIGNAL SIGTERM" in final
    assert all(line.startswith("RUN [") for line in final if line.startswith("RUN"))
