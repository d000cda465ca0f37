"""`python -m promptlooper.cache`: the Cache in the foreground."""

from promptlooper.cache.app import run
from promptlooper.cache.settings import CacheSettings
from promptlooper.rpc.process import run_service


async def main() -> None:
    await run(CacheSettings())


if __name__ == "__main__":
    run_service(main)
