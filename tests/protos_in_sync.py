"""Fail when the committed stubs differ from what protos/ generates now."""

import filecmp
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
STUBS = Path("promptlooper/v1")


def generate(target: Path) -> None:
    protos = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "protos/promptlooper/v1").glob("*.proto"))
    services = [path for path in protos if path.endswith("_service.proto")]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    protoc = [sys.executable, "-m", "grpc_tools.protoc", "-Iprotos"]
    messages = [f"--python_out={target}", f"--mypy_out=quiet:{target}", *protos]
    rpcs = [f"--grpc_python_out={target}", f"--mypy_grpc_out=quiet,only_async:{target}", *services]
    subprocess.run([*protoc, *messages], cwd=ROOT, env=environment, check=True)
    subprocess.run([*protoc, *rpcs], cwd=ROOT, env=environment, check=True)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = {path.name for path in (Path(folder) / STUBS).glob("*_pb2*")}
        committed = {path.name for path in (ROOT / "shared" / STUBS).glob("*_pb2*")}
        _, changed, missing = filecmp.cmpfiles(
            Path(folder) / STUBS, ROOT / "shared" / STUBS, sorted(fresh), shallow=False
        )
        stale = sorted({*changed, *missing, *(committed - fresh)})
    if stale:
        print(f"stubs are not in sync with protos/: {', '.join(stale)}; run `make protos` and commit the result")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
