"""`python -m promptlooper.scorer`: the Scorer in the foreground."""

from promptlooper.rpc.process import run_service
from promptlooper.scorer.app import run
from promptlooper.scorer.settings import ScorerSettings


async def main() -> None:
    await run(ScorerSettings())


if __name__ == "__main__":
    run_service(main)
