"""`python -m promptlooper.adapter`: the Adapter in the foreground."""

from promptlooper.adapter.app import run
from promptlooper.adapter.settings import AdapterSettings
from promptlooper.rpc.process import run_service


async def main() -> None:
    await run(AdapterSettings())


if __name__ == "__main__":
    run_service(main)
