"""What every fault test starts from: a seed that is printed, and can be given to have the same again."""

from __future__ import annotations

import os
import random

import pytest


@pytest.fixture
def seed() -> int:
    given = os.environ.get("PROMPTLOOPER_SEED")
    chosen = int(given) if given else random.SystemRandom().randrange(2**32)
    print(f"\nseed {chosen}: PROMPTLOOPER_SEED={chosen} gives the same choices again")
    return chosen
