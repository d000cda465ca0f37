"""`python -m promptlooper.runner`: the Runner in the foreground."""

from promptlooper.rpc.process import run_service
from promptlooper.runner.app import run
from promptlooper.runner.settings import RunnerSettings


async def main() -> None:
    await run(RunnerSettings())


if __name__ == "__main__":
    run_service(main)
