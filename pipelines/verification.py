"""What is in a store, read whole: what is there, what is damaged, foreign, missing or left over."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from tqdm import tqdm

from pipelines.engine import records
from pipelines.engine.cluster import DamagedError
from pipelines.engine.store import SHARD, Store, shard_name

# Folders, whose files are sealed.
KINDS = ("images", "timings", "features", "text", "scores", "dynamics", "latency", "plans", "runs", "failed", "lease")


@dataclass
class Verification:
    """there: {kind: files that are what their names say}. damaged: {file: why it is not}. missing: files that others
    say must be there. foreign: files that no job of ours writes there. left: temporary files, and those set aside."""

    there: Counter[str] = field(default_factory=Counter)
    damaged: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        return not (self.damaged or self.missing)

    def __str__(self) -> str:
        lines = [f"{count:>8} {kind}" for kind, count in self.there.items()]
        lines += [f"damaged: {name}: {why}" for name, why in self.damaged.items()]
        lines += [f"missing: {name}" for name in self.missing]
        lines += [f"foreign: {name} (no job reads it)" for name in self.foreign]
        lines += [f"left over: {name} (no job reads it)" for name in self.left]
        whole = "all that is there is what its name says"
        wrong = f"{len(self.damaged)} files are damaged, {len(self.missing)} are missing"
        return "\n".join([*lines, whole if self.is_whole else wrong])


def verify(store: Store) -> Verification:
    """Read every file that a job would read. Raises ValueError if there is no store, with nothing in it."""
    verification = Verification()
    listed = sorted(name for name, _ in store.listing())
    if not listed:
        raise ValueError(f"no store at {store.shown!r}: nothing is there")
    made_of: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)  # {(shard, shards): {file: what it is made of}}
    for name in tqdm(listed, desc="reading", unit="file", delay=1):
        kind = name.partition("/")[0]
        if name.rpartition("/")[2].startswith(".tmp-") or name.endswith(".bad"):
            verification.left.append(name)
        elif name == "spec.json" or (kind in KINDS and name.endswith((".json", ".parquet"))):
            try:
                owner = _read(store, name)
            except DamagedError as error:
                verification.damaged[name] = error.why
                continue
            except FileNotFoundError:  # a lease that was given back since
                continue
            verification.there[kind] += 1
            if (shard := SHARD.fullmatch(name)) and owner and "/reference-" not in name:
                made_of[shard[2], shard[3]][name] = owner
        elif kind in KINDS:
            verification.foreign.append(name)
    for files in made_of.values():
        verification.damaged |= _of_others(files)
    verification.missing = sorted(_missing(name for name in listed if name not in verification.left))
    return verification


def _read(store: Store, name: str) -> str:
    """What the file was made of, "" if that is not kept. Raises DamagedError."""
    if name.endswith(".json"):
        store.record(name)
        return ""
    return records.made_of(store.table(name))


def _of_others(files: dict[str, str]) -> dict[str, str]:
    """Of files of one shard, which are all of the same prompts: those that are of other prompts than most."""
    usual = Counter(files.values()).most_common(1)[0][0]
    return {file: f"is made of {own}, its shard's others of {usual}" for file, own in files.items() if own != usual}


def _missing(names: Iterable[str]) -> set[str]:
    """What the names in a store say must be there too: the other shards of each folder, and the spec."""
    present = set(names)
    expected = {"spec.json"}
    for name in present:
        shard = SHARD.fullmatch(name)
        if not shard or name.partition("/")[0] not in KINDS:
            continue
        folder, _, count, suffix = shard.groups()
        every = [shard_name(folder, i, int(count)) for i in range(int(count))]
        expected |= set(every) if suffix == "parquet" else {one.replace(".parquet", ".json") for one in every}
    return expected - present


def repair(store: Store, verification: Verification) -> None:
    """Set aside what is damaged: the next run of the same job makes it again, and what is missing. What was left
    half-written is removed."""
    for name in verification.damaged:
        store.set_aside(name)
    for name in verification.left:
        if not name.endswith(".bad"):
            store.delete(name)
