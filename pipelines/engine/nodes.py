"""Failures belong to nodes as well as to units: one that only fails is left out of a run."""

from collections import defaultdict
from dataclasses import dataclass

from pipelines.engine.cluster import WorkersError

# Units that fail for the first time on a node with none done there between them: then it is not the units that are
# wrong. Deaths are given more room: a process can be killed by what else runs on its machine.
ERRORS_IN_A_ROW, DEATHS_IN_A_ROW = 5, 20
STARTS = 3  # workers in a row that do not start


@dataclass
class Record:
    """errors, deaths: units that failed there for the first time since one was done; in_vain: workers that did not
    start since one did."""

    errors: int = 0
    deaths: int = 0
    in_vain: int = 0


class Nodes:
    """up: nodes that can run a worker. out: {node: reason} of those that are left out. Where a node is counted, the
    answer is whether it is left out from now on.

    Raises: WorkersError, with the `failed` units, if the only node or more than half of them would be left out.
    """

    def __init__(self, failed: dict[str, str]):
        self.failed = failed
        self.up: set[str] = set()
        self.out: dict[str, str] = {}
        self.records: defaultdict[str, Record] = defaultdict(Record)

    def worked(self, node: str) -> None:
        """A unit was done there."""
        record = self.records[node]
        record.errors = record.deaths = 0

    def failure(self, node: str, reason: str, first: bool, died: bool) -> bool:
        """A unit failed there, for the `first` time of all: a second says more about the unit than about the node."""
        record = self.records[node]
        if first:
            record.errors, record.deaths = record.errors + (not died), record.deaths + died
        if record.errors < ERRORS_IN_A_ROW and record.deaths < DEATHS_IN_A_ROW:
            return False
        return self._leave_out(node, f"{record.errors + record.deaths} units failed in a row; the last, {reason}")

    def started(self, node: str) -> None:
        self.records[node].in_vain = 0

    def not_started(self, node: str, reason: str) -> bool:
        record = self.records[node]
        record.in_vain += 1
        if record.in_vain < STARTS:
            return False
        return self._leave_out(node, f"workers do not start ({record.in_vain} tries): {reason}")

    def _leave_out(self, node: str, reason: str) -> bool:
        self.out[node] = reason
        known = self.up | self.out.keys()
        if 2 * len(self.out) > len(known):
            message = reason if len(known) == 1 else f"{len(self.out)} of {len(known)} nodes failed; the last: {reason}"
            raise WorkersError(message, self.failed)
        return True

    def gone(self, node: str) -> None:
        self.up.discard(node)
        self.records.pop(node, None)
        self.out.pop(node, None)
