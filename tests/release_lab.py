"""The code of a release beside ours, each as processes of its own. `released/` holds what is needed of a release: a
checkout may be without history."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fault_lab import Node, inherited_environment

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Version:
    """Sources in a folder, for our Python with our libraries. It does not see other sources: no .pth file is read, as
    that of an editable install would be."""

    folder: Path

    @property
    def python(self) -> Sequence[str]:
        return (sys.executable, "-S")

    @property
    def env(self) -> dict[str, str]:
        paths = (self.folder / "services", self.folder / "shared", sysconfig.get_path("purelib"))
        return {"PYTHONPATH": ":".join(map(str, paths))}

    def node(self, name: str, kind: str, folder: Path, env: dict[str, str]) -> Node:
        """A service of this version; `folder` is for its log."""
        return Node(name, f"promptlooper.{kind}", folder, {**env, **self.env}, self.python)

    def __call__(self, *args: str) -> str:
        """What a command of this version prints."""
        return self.prints("-m", "promptlooper.cli.main", *args)

    def prints(self, *args: str) -> str:
        env = inherited_environment() | self.env
        ended = subprocess.run([*self.python, *args], env=env, capture_output=True, text=True, check=False, timeout=100)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def migrate(self, database_url: str) -> None:
        self("migrate", "--database-url", database_url)


OURS = Version(ROOT)


def released(version: str, folder: Path) -> Version:
    """Unpacks it there."""
    with tarfile.open(ROOT / "released" / f"{version}.tgz") as archive:
        archive.extractall(folder, filter="data")
    return Version(folder)
