"""A little chaos: of the whole see `make chaos`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

# A process of its own: what chaos.py sets in its environment is for all that it starts, and for no other test.
CHAOS = [sys.executable, str(Path(__file__).with_name("chaos.py"))]


@pytest.mark.slow
def test_a_few_kills_faults_and_flipped_bits_leave_the_store_of_an_undisturbed_sweep():
    few = ["--kills", "6", "--flips", "2", "--outage", "5", "--limit", "16"]
    done = subprocess.run([*CHAOS, *few], capture_output=True, text=True, timeout=900)
    summary = json.loads(done.stdout)
    assert (summary["lost"], summary["different"], summary["twice"]) == ([], [], []), summary
    assert summary["noticed"] == len(summary["flipped"]) == 2
    assert sum(summary["kills"][kind] for kind in ("worker", "node", "driver")) == 6
    assert summary["refused"] > 10
