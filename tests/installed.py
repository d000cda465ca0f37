"""Services as their images have them: from a wheel with their own dependencies only, and confined as in a pod."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
REQUIREMENTS = ROOT / "deploy/images/requirements"
UID = 10001

# The whole tree read-only, as `readOnlyRootFilesystem` makes it, and an empty /tmp in memory.
_READ_ONLY = "mount --make-rprivate / && mount -o remount,bind,ro / && mount -t tmpfs -o size=64m,mode=1777 tmpfs /tmp"
_UNPRIVILEGED = (
    f"setpriv --reuid {UID} --regid {UID} --clear-groups --no-new-privs "
    "--bounding-set -all --inh-caps -all --ambient-caps -all"
)


@dataclass(frozen=True)
class Installation:
    """A service's own virtual environment, at a path that every user may read."""

    service: str
    path: Path

    def command(self, *words: str) -> list[str]:
        """`promptlooper …` of this installation as user 10001 without capabilities, on a read-only tree. Only root can
        do that: anybody else runs it as the one they are."""
        program = [str(self.path / "bin/promptlooper"), *words]
        if os.geteuid() != 0:
            return program
        return ["unshare", "--mount", "sh", "-ec", f'{_READ_ONLY}; cd /tmp; exec {_UNPRIVILEGED} "$@"', "sh", *program]

    def env(self, **settings: str) -> dict[str, str]:
        """What the image sets, and the settings; nothing of whoever runs the tests."""
        return {
            "PATH": f"{self.path}/bin:/usr/bin:/bin",
            "HOME": "/tmp",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PROMPTLOOPER_SERVICE": self.service,
            **settings,
        }


def build_wheel(folder: Path) -> Path:
    """The project's wheel."""
    _uv("build", "--quiet", "--wheel", "--out-dir", str(folder), str(ROOT))
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(service: str, wheel: Path, folder: Path) -> Installation:
    """What the Dockerfile does: the hash-pinned dependencies of the service, and the wheel."""
    path = folder / service
    base = sys._base_executable  # type: ignore[attr-defined]  # not the one of the tests' own environment
    _uv("venv", "--quiet", "--python", base, str(path))
    to = ("pip", "install", "--quiet", "--python", str(path / "bin/python"), "--no-deps")
    _uv(*to, "--require-hashes", "-r", str(REQUIREMENTS / f"{service}.txt"))
    _uv(*to, "--no-index", str(wheel))
    return Installation(service, path)


def _uv(*args: str) -> None:
    """uv goes where pip goes: to its index, with its certificates."""
    names = {"index-url": "UV_DEFAULT_INDEX", "cert": "SSL_CERT_FILE"}
    settings = {names[name]: value for name, value in pip_settings().items() if name in names}
    subprocess.run([Path(sys.executable).parent / "uv", *args], check=True, env={**os.environ, **settings})


@cache
def pip_settings() -> Mapping[str, str]:
    """How pip is set up here, by the names of its options."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    found = dict(line.split("=", 1) for line in listed.stdout.splitlines())
    return {name.rsplit(".", 1)[-1]: value.strip("'") for name, value in found.items()}
