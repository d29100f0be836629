"""Three nodes of Ray on this machine: what one of them does wrong is not held against the units."""

import json
import os
import re
import subprocess
import sys

import pytest

SCRIPT = '''
import json, os, sys, time
from concurrent.futures import ThreadPoolExecutor
import ray
from ray.cluster_utils import Cluster
from pipelines.engine import workers
from pipelines.engine.cluster import Limits, Resources, Unit

folder, scenario = sys.argv[1:]
fast = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 200, "health_check_timeout_ms": 500,
        "health_check_failure_threshold": 3}
node = dict(num_cpus=2, object_store_memory=80 * 2**20)
head = dict(num_cpus=0, object_store_memory=80 * 2**20, include_dashboard=False, _system_config=fast)
cluster = Cluster(initialize_head=True, head_node_args=head)
added = [cluster.add_node(**node) for _ in range(2)]
ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
bad = added[0].node_id


def faults():
    return [name for name in os.listdir(folder) if name.startswith("fault")]


def quiet():
    return time.time() - max([int(name.split()[-1]) / 1e9 for name in faults()], default=0)


def make():
    here = ray.get_runtime_context().get_node_id()

    def mark(kind, task):
        open(f"{folder}/{kind} {task} {here} {time.time_ns()}", "w").close()

    class Handler:
        def __init__(self):
            if scenario == "hangs at start" and here == bad:
                mark("fault", "start")
                time.sleep(600)

        def __call__(self, task, riders=()):
            if scenario == "bad" and here == bad:
                mark("fault", task)
                raise OSError(28, "no space left on device")
            until = time.monotonic() + 60  # as long as a real unit, beside one that fails at once
            least = {"bad": (5, 0.0), "hangs at start": (3, 8.0)}.get(scenario, (0, 0.0))
            while time.monotonic() < until and (len(faults()) < least[0] or quiet() < least[1]):
                time.sleep(0.1)
            if scenario == "preempted" and task == 0:
                if len(faults()) < 3:
                    mark("fault", task)
                    time.sleep(600)
            time.sleep(0.2)
            mark("done", task)
            return tuple(riders)

        def ahead(self, task):
            mark("ahead", task)

    return Handler()


def preempt():
    """A node is taken away under the unit, and another comes, three times."""
    for count in range(1, 4):
        while len(found := faults()) < count:
            time.sleep(0.1)
        at = max(found, key=lambda name: int(name.split()[-1])).split()[2]
        taken = next(one for one in added if one.node_id == at)
        added.append(cluster.add_node(**node))
        added.remove(taken)
        cluster.remove_node(taken)


units = [Unit(f"u{i}", "g", 1 + (i == 0), i) for i in range(12)]
units.append(Unit("r5", "e", 1, "r5", ("u5",), rides=True))
resources = Resources(4, limits=Limits(start=2.0))
with ThreadPoolExecutor() as pool:
    running = pool.submit(workers.run, units, make, lambda name: False, resources)
    if scenario == "preempted":
        preempt()
    failed = running.result()
print(json.dumps({"failed": failed, "bad": bad}))
ray.shutdown()
cluster.shutdown()
'''


def run(folder, scenario):
    """Of a run in which nothing is lost: the bad node, the log, and the marks: (kind, task, node) each."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "RAY_BACKEND_LOG_LEVEL": "fatal"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), scenario],
        env=environment, timeout=180, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    marks = [tuple(name.split()[:3]) for name in os.listdir(folder)]
    assert told["failed"] == {}
    assert {task for task, _ in of("done", marks)} == {str(i) for i in range(12)}  # r5 rode with one of them
    return told["bad"], done.stderr, marks


def of(kind, marks):
    return [(task, node) for what, task, node in marks if what == kind]


def test_a_bad_node_is_left_out_and_all_is_done_elsewhere(tmp_path):
    bad, log, marks = run(tmp_path, "bad")
    faults = of("fault", marks)
    assert {node for _, node in faults} == {bad}
    assert 5 <= len(faults) <= 6
    assert len({task for task, _ in faults}) == len(faults)  # a retry goes to the other node
    assert f"({bad[:8]}) is left out: 5 units failed in a row; the last, u" in log
    assert "No space left on device" in log or "no space left on device" in log
    assert of("ahead", marks)


@pytest.mark.slow
def test_a_node_that_is_preempted_three_times_under_a_unit_does_not_set_it_aside(tmp_path):
    _, _, marks = run(tmp_path, "preempted")
    assert len(of("fault", marks)) == 3


@pytest.mark.slow
def test_workers_that_hang_while_they_start_are_left_out_with_their_node(tmp_path):
    bad, log, marks = run(tmp_path, "hangs at start")
    assert 3 <= len(of("fault", marks)) <= 5
    assert re.search(rf"\({bad[:8]}\) is left out: workers do not start \([34] tries\): hung: no answer after", log)
