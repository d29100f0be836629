"""A little chaos: of the whole see `make chaos`."""

import chaos
import pytest


@pytest.mark.slow
def test_a_few_kills_faults_and_flipped_bits_leave_the_store_of_an_undisturbed_sweep():
    summary = chaos.run(chaos.parse(["--kills", "6", "--flips", "2", "--outage", "5", "--limit", "16"]))
    assert (summary.lost, summary.different) == ([], []), summary
    assert summary.noticed == len(summary.flipped) == 2
    assert sum(summary.kills[kind] for kind in ("worker", "node", "driver")) == 6
    assert summary.refused > 10
