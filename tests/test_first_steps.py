"""Golden numbers: the first steps of each network, with each blend and variant, compute what they always have."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from first_steps import CASES, COMMAND, processor

TESTS = Path(__file__).parent
GOLDEN = json.loads((TESTS / "golden" / "first_steps.json").read_text())


def test_the_golden_file_has_all_cases():
    assert GOLDEN["metrics"].keys() == CASES.keys()


# The others have oracles in `test_gnp_variants.py`, or are of networks whose step takes 14 seconds; each takes thirty
# seconds of processor time to compile.
QUICK = ["vit paper", "vit groups"]


@pytest.mark.parametrize(
    ("names", "num_steps"),
    [
        pytest.param(QUICK, 3, marks=pytest.mark.slow, id="some"),
        pytest.param(list(CASES), 3, marks=pytest.mark.long, id="all"),
    ],
)
def test_the_first_steps_are_those_of_the_golden_file(names, num_steps):
    command = [sys.executable, str(TESTS / "first_steps.py"), str(num_steps), *names]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["metrics"]
    # Bitwise equal on the same kind of processor; on another one sums may be taken in another order.
    is_same = (GOLDEN["processor"], GOLDEN["jax"]) == (processor(), jax.__version__)
    for name in names:
        rows = zip(found[name], GOLDEN["metrics"][name][:num_steps], strict=True)
        for number, (row, golden) in enumerate(rows, start=1):
            expected = golden if is_same else pytest.approx(golden, rel=1e-9)
            assert row == expected, (
                f"step {number} of {name} has other numbers than tests/golden/first_steps.json. If they were meant to "
                f"change, say so in the changelog and make the file again with `{COMMAND}`."
            )
