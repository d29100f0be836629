"""A sweep on three nodes and an S3 that fails, under random kills: its store must equal an undisturbed one.

    python tests/chaos/chaos.py                  200 kills, 20 flipped bits: about 20 minutes on two cores
    python tests/chaos/chaos.py --kills 8 --flips 2 --outage 5 --limit 32

Kills are SIGKILL of a worker, of a node (another one comes), of the driver (another one is started): drawn with --seed,
each when its share of the files is committed. In between bits are flipped in committed files: the sweep meets some of
them, and what it does not meet verify.py names at the end. Prints a summary, and ends with 1 if anything is lost, done
twice, or another byte, or a flipped bit was not noticed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import boto3
import psutil
from ray.cluster_utils import Cluster
from s3_proxy import Proxy
from tqdm import tqdm

ROOT = Path(__file__).parents[2]
QUIET = {
    "AWS_ACCESS_KEY_ID": "chaos",
    "AWS_SECRET_ACCESS_KEY": "chaos",
    "AWS_EC2_METADATA_DISABLED": "true",
    "RAY_AUTH_MODE": "disabled",
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "WANDB_MODE": "disabled",
    "PYTHONPATH": str(ROOT),
}
NODES = 3
MADE = ("text/", "images/", "features/", "scores/")  # what must be equal
SIZES = {"--grid": "small", "--shard": "4", "--batch-size": "4", "--n-reference": "250"}


@dataclass
class Summary:
    """What was done to a sweep, and what it came to. twice: files that were committed twice, though not damaged."""

    seed: int
    kills: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    flipped: list[str] = field(default_factory=list)
    noticed: int = 0  # of those, while the sweep ran and by verify.py
    met: int = 0  # of those, by the sweep
    files: int = 0
    lost: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def holds(self) -> bool:
        return not (self.lost or self.different or self.twice) and self.noticed == len(self.flipped)


class Bucket:
    """The objects of the store as they are, past the proxy. moto runs in a process of its own."""

    def __init__(self, folder: str):
        log = open(os.path.join(folder, "moto.log"), "w")  # noqa: SIM115 (the process keeps it)
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
        self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        self.port = self._port(os.path.join(folder, "moto.log"))
        url = f"http://127.0.0.1:{self.port}"
        self.client = boto3.client("s3", endpoint_url=url, region_name="us-east-1")
        self.client.create_bucket(Bucket="bucket")

    def _port(self, log: str) -> int:
        for _ in range(300):
            for line in Path(log).read_text().splitlines():
                if "Running on http://" in line:
                    return int(line.rpartition(":")[2])
            time.sleep(0.1)
        raise RuntimeError(f"moto did not start: {Path(log).read_text()}")

    def names(self, aside: bool = False) -> list[str]:
        """Of files that must be equal; aside: of those that were set aside."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix="sweep/")
        keys = (one["Key"].removeprefix("sweep/") for page in pages for one in page.get("Contents", ()))
        files = (key for key in keys if key.startswith(MADE) and not key.endswith("/"))  # pyarrow leaves folders
        return sorted(key for key in files if key.endswith(".bad") == aside)

    def get(self, name: str) -> bytes:
        return self.client.get_object(Bucket="bucket", Key=f"sweep/{name}")["Body"].read()

    def put(self, name: str, data: bytes) -> None:
        self.client.put_object(Bucket="bucket", Key=f"sweep/{name}", Body=data)


class Sweep:
    """The driver: a process of coco_sweep.py, started again whenever it has died."""

    def __init__(self, arguments: list[str], environment: Mapping[str, str], log: Path):
        self.command = [sys.executable, str(ROOT / "jobs/coco_sweep.py"), *arguments]
        self.environment, self.log = {**os.environ, **environment}, log
        self.started = 0
        self.start()

    def start(self) -> None:
        self.started += 1
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, env=self.environment, start_new_session=True, cwd=ROOT
            )

    def ended(self) -> bool:
        """Whether the sweep is done. One that set units aside, whose workers were killed too often, is run again, as it
        says. Raises RuntimeError if it failed otherwise."""
        status = self.process.poll()
        if status == 1 and "run again to retry" in self.log.read_text()[-5000:]:
            self.start()
            return False
        if status not in (None, 0, -signal.SIGKILL):
            raise RuntimeError(f"the sweep failed with {status}:\n{self.log.read_text()[-3000:]}")
        return status == 0

    def kill(self) -> bool:
        if self.process.poll() is not None:
            return False
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.start()
        return True


def new_cluster() -> Cluster:
    """A head that runs nothing, and three nodes of one worker; deaths are noticed in seconds."""
    fast = {
        "health_check_initial_delay_ms": 10000,
        "health_check_period_ms": 1000,
        "health_check_failure_threshold": 12,
    }
    head = {"num_cpus": 0, "_system_config": fast, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(NODES):
        add_node(cluster)
    return cluster


def add_node(cluster: Cluster) -> None:
    cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)


def replace_lost(cluster: Cluster) -> int:
    """Replace nodes that ended without being killed here: on a busy machine one misses its heartbeats."""
    lost = [n for n in cluster.worker_nodes if n.all_processes["raylet"][0].process.poll() is not None]
    for node in lost:
        cluster.remove_node(node, allow_graceful=False)
        add_node(cluster)
    return len(lost)


def kill_worker(draw: random.Random) -> bool:
    """Kill a process that is one of our actors."""
    mine = psutil.Process().children(recursive=True)
    actors = []
    for process in mine:
        try:
            command = process.cmdline()
        except psutil.Error:
            continue
        if command and command[0].startswith("ray::Worker"):  # Ray's agents are ray:: too, and a node dies with one
            actors.append(process)
    if not actors:
        return False
    draw.choice(sorted(actors, key=lambda process: process.pid)).kill()
    return True


def kill_node(cluster: Cluster, draw: random.Random) -> bool:
    cluster.remove_node(draw.choice(list(cluster.worker_nodes)), allow_graceful=False)
    add_node(cluster)
    return True


def torment(sweep: Sweep, cluster: Cluster, proxy: Proxy, bucket: Bucket, total: int, args, draw, summary) -> None:
    """Kill until `args.kills` are done and the sweep has ended."""
    kinds = draw.choices(("worker", "node", "driver"), weights=(14, 3, 3), k=args.kills)
    outage = args.kills // 2
    last = time.monotonic()
    with tqdm(total=args.kills, desc="kills", unit="kill", ncols=100, mininterval=5) as bar:
        while not sweep.ended():
            time.sleep(0.5)
            summary.kills["node by itself"] += replace_lost(cluster)
            made = len(bucket.names())
            bar.set_postfix_str(f"{made}/{total} files, {sweep.started} drivers, {proxy.failed} x 503", refresh=False)
            at = bar.n
            due = at < args.kills and made >= 0.97 * total * at / args.kills
            if not due and not (at < args.kills and time.monotonic() - last > args.patience):
                continue
            if at == outage and args.outage and not proxy.away:
                proxy.outage(args.outage)
            done = {
                "worker": lambda: kill_worker(draw),
                "node": lambda: kill_node(cluster, draw),
                "driver": sweep.kill,
            }[kinds[at]]()
            if done:
                summary.kills[kinds[at]] += 1
                last = time.monotonic()
                bar.update()
                if len(summary.flipped) < args.flips * bar.n // args.kills and made:
                    flip(bucket, draw, summary)


def flip(bucket: Bucket, draw: random.Random, summary: Summary) -> None:
    """Flip one bit in a committed file that none was flipped in before."""
    left = [name for name in bucket.names() if name not in summary.flipped]
    name = draw.choice(left)
    data = bytearray(bucket.get(name))
    bit = draw.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    bucket.put(name, bytes(data))
    summary.flipped.append(name)


def content(name: str, data: bytes) -> object:
    """What must be equal of a file: its bytes; of scores, which hold seconds too, the intervals."""
    if not name.startswith("scores/"):
        return data
    return {key: value for key, value in json.loads(data).items() if key not in ("seconds", "seal")}


def compare(undisturbed: Path, bucket: Bucket, proxy: Proxy, summary: Summary) -> None:
    expected = {
        str(file.relative_to(undisturbed)): file
        for file in undisturbed.rglob("*")
        if file.is_file() and str(file.relative_to(undisturbed)).startswith(MADE)
    }
    there = set(bucket.names())
    summary.files = len(there)
    summary.lost = sorted(expected.keys() - there)
    summary.different = sorted(
        {n for n in there & expected.keys() if content(n, bucket.get(n)) != content(n, expected[n].read_bytes())}
        | (there - expected.keys())
    )
    made_again = set(summary.flipped)
    names = {path.removeprefix("/bucket/sweep/"): times for path, times in proxy.puts.items()}
    summary.twice = sorted(n for n in there if names.get(n, 0) > 1 + (n in made_again))


def run(args: argparse.Namespace) -> Summary:
    """Needs QUIET in its environment."""
    began, draw, summary = time.monotonic(), random.Random(args.seed), Summary(args.seed)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        sizes = [*(word for pair in SIZES.items() for word in pair), "--limit", str(args.limit)]
        undisturbed = Path(folder) / "undisturbed"
        print("an undisturbed sweep first", file=sys.stderr)
        command = [sys.executable, "jobs/coco_sweep.py", *sizes, "--out", str(undisturbed)]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        total = sum(str(f.relative_to(undisturbed)).startswith(MADE) for f in undisturbed.rglob("*") if f.is_file())
        bucket = Bucket(folder)
        proxy = Proxy("127.0.0.1", bucket.port, args.faults, args.seed)
        port = proxy.server_address[1]
        url = f"s3://bucket/sweep?scheme=http&endpoint_override=127.0.0.1:{port}&region=us-east-1"
        cluster = new_cluster()
        try:
            log = args.log or Path(folder) / "driver.log"
            there = {"RAY_ADDRESS": cluster.address}
            sweep = Sweep([*sizes, "--out", url, "--workers", str(NODES)], there, log)
            torment(sweep, cluster, proxy, bucket, total, args, draw, summary)
            while len(summary.flipped) < args.flips:
                flip(bucket, draw, summary)
            summary.met = len(bucket.names(aside=True))
            subprocess.run([sys.executable, "jobs/verify.py", url, "--repair"], cwd=ROOT, stdout=subprocess.DEVNULL)
            aside = bucket.names(aside=True)
            summary.noticed = sum(f"{name}.bad" in aside for name in summary.flipped)
            sweep.start()
            while not sweep.ended():
                time.sleep(1)
            compare(undisturbed, bucket, proxy, summary)
        finally:
            cluster.shutdown()
            proxy.shutdown()
            bucket.process.kill()
    summary.refused, summary.seconds = proxy.failed, time.monotonic() - began
    return summary


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--flips", type=int, default=20)
    parser.add_argument("--faults", type=float, default=0.05, help="share of S3's requests that fail")
    parser.add_argument("--outage", type=float, default=60.0, help="seconds for which S3 is away once")
    parser.add_argument("--limit", type=int, default=192, help="prompts of the sweep")
    parser.add_argument("--patience", type=float, default=20.0, help="seconds without a kill after which one is due")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="keep the driver's output")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    os.environ |= QUIET  # of this process, and of all that it starts
    summary = run(args)
    print(json.dumps({**vars(summary), "holds": summary.holds}, indent=2))
    raise SystemExit(not summary.holds)


if __name__ == "__main__":
    main()
