"""Fail when what is kept of a release is not what its tag says. A checkout without the tag can't compare them."""

import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]


def contents(archive: IO[bytes]) -> dict[str, bytes]:
    with tarfile.open(fileobj=archive) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}


def main() -> int:
    failed = 0
    for kept in sorted((ROOT / "released").glob("*.tgz")):
        with kept.open("rb") as archive:
            stored = contents(archive)
        paths = sorted({name.partition("/")[0] for name in stored})
        tag = f"v{kept.stem}"
        command = ["git", "archive", "--format=tar", tag, *paths]
        tagged = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
        if tagged.returncode:
            print(f"{kept.name}: this checkout has no tag {tag} to compare it with")
        elif contents(BytesIO(tagged.stdout)) != stored:
            print(f"{kept.name} is not what {tag} says; run `make released VERSION={kept.stem}` and commit the result")
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
