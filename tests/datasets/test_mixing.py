from __future__ import annotations

import subprocess
import sys
from collections import Counter

from vlm.datasets.loading.mixing import derive_seed, draw_source


def test_seeds_depend_on_every_part_and_not_on_the_process() -> None:
    seeds = {derive_seed(*p) for p in [(1, "a", 2), (1, "a", 3), (2, "a", 2), (1, "b", 2), ("1", "a", 2), (1, "a2")]}
    assert len(seeds) == 6
    code = (
        "from vlm.datasets.loading.mixing import derive_seed; import sys; sys.stdout.write(str(derive_seed(1, 'a', 2)))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(other.stdout) == derive_seed(1, "a", 2)


def test_shares_follow_the_ratios() -> None:
    drawn = Counter(draw_source(42, step, [115, 14, 0]) for step in range(4000))
    assert drawn[2] == 0
    assert abs(drawn[1] / 4000 - 14 / 129) < 0.02
    assert draw_source(42, 17, [3.0]) == 0
