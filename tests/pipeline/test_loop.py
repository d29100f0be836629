"""The loop's decisions, on workers that are pretended, with a clock of their own: no Ray, no waiting."""

import time
from collections import Counter

import pytest

from pipelines import bench
from pipelines.engine import loop as looping
from pipelines.engine.cluster import Limits, Resources, Unit, WorkersError
from pipelines.engine.loop import Failed, Loop
from pipelines.engine.queue import DAMAGES, Queue

NEVER = float("inf")


class Crew:
    """Workers on `nodes`, spread. do(node, task, riders) -> (seconds, what comes of it); start(node) the same.
    finish(node, task): of units that are answered as unfinished."""

    def __init__(self, nodes, do, start=lambda node: (0.0, False), room=2, finish=None):
        self.up = {node: f"10.0.0.{i}" for i, node in enumerate(nodes)}
        self.do, self.begin, self.room, self.finish = do, start, room, finish
        self.unfinished = {}
        self.where, self.answers, self.hints = {}, {}, []
        self.now, self.count = 0.0, 0

    def start(self, without):
        self.count += 1
        used = Counter(self.where.values())
        free = [node for node in self.up if node not in without and used[node] < self.room]
        self.where[self.count] = min(free, key=lambda node: used[node]) if free else None
        return self.count

    def call(self, worker, method, *args):
        node = self.where[worker]
        if method == "ahead":
            return self.hints.append((worker, *args))
        if method == "where":
            took, answer = (0.0 if node else NEVER), (node, worker)
        elif method == "finish":
            took, answer = self.finish(node, self.unfinished[worker].pop(0))
        else:
            took, answer = self.begin(node) if method == "start" else self.do(node, *args)
            if answer == looping.UNFINISHED:
                self.unfinished.setdefault(worker, []).append(args[0])
        self.count += 1
        self.answers[self.count] = self.now + took, answer, worker
        return self.count

    def wait(self, references, seconds):
        if gone := [ref for ref in references if self.answers[ref][2] not in self.where]:
            return gone
        first = min(references, key=lambda ref: self.answers[ref][0])
        at = self.answers[first][0]
        if at == NEVER:
            return []
        self.now = max(self.now, at)
        return [first]

    def answer(self, reference):
        at, answer, worker = self.answers[reference]
        if worker not in self.where:
            return Failed("worker died: it was killed", died=True)
        if at == NEVER or self.where[worker] in self.up:
            return None if at == NEVER else answer
        return Failed("worker died: its node has died", died=True)

    def kill(self, worker):
        del self.where[worker]

    def nodes(self):
        return {node: (address, True) for node, address in self.up.items()}


def work(units, crew, workers=4, done=(), committed=lambda name: False, set_aside=None, limits=Limits()):  # noqa: B008
    queue = Queue(units, done, limits)
    loop = Loop(queue, crew, Resources(workers, limits=limits), list, committed, set_aside)
    order = []
    for _ in range(10_000):
        if not queue.open:
            return queue, order
        order += loop.turn()
    raise AssertionError("it does not end")


def units_of(n, **more):
    return [Unit(f"u{i:03d}", "g", 1, f"u{i:03d}", **more) for i in range(n)]


def test_a_node_on_which_every_unit_fails_is_left_out(capsys):
    """One node fails at once, one needs 25 s a unit: all is done by the one, and no unit is to blame."""
    fired = []

    def do(node, task, riders):
        if node == "bad":
            fired.append(task)
            return 0.1, Failed("OSError: no space left on device", OSError(28, "no space left on device"))
        return 25.0, ()

    queue, order = work(units_of(40), Crew(["good", "bad"], do))
    assert sorted(order) == [f"u{i:03d}" for i in range(40)]
    assert queue.failed == {}
    assert len(fired) == len(set(fired))  # none was tried there twice
    assert 5 <= len(fired) <= 6  # the sixth was on its way
    assert [*queue.nodes.out] == ["bad"]
    assert "node 10.0.0.1 (bad) is left out: 5 units failed in a row; the last, u" in capsys.readouterr().err


def unfinished(finish, do=None, **more):
    """A crew whose units take 10 s, and are then finished beside the next."""
    return Crew(["a"], do or (lambda node, task, riders: (10.0, looping.UNFINISHED)), finish=finish, **more)


def test_a_worker_is_given_the_next_unit_while_one_is_finished():
    """A unit is done when it is committed; at the end its worker is waited for, and no other is started."""
    events, starts = [], []

    def do(node, task, riders):
        events.append((crew.now, "run", task))
        return 10.0, looping.UNFINISHED

    def finish(node, task):
        events.append((crew.now, "finish", task))
        return 4.0, ()

    class Slow(Crew):
        waits = 0

        def wait(self, references, seconds):
            self.waits += 1
            return super().wait(references, seconds) if self.waits % 2 else []  # nothing in time: the loop turns

    crew = Slow(["a"], do, start=lambda node: (starts.append(node) or 0.0, False), finish=finish)
    _, order = work(units_of(3), crew, workers=1)
    assert order == ["u000", "u001", "u002"]
    assert events == [
        (0.0, "run", "u000"),
        (10.0, "finish", "u000"),
        (10.0, "run", "u001"),
        (20.0, "finish", "u001"),
        (20.0, "run", "u002"),
        (30.0, "finish", "u002"),
    ]
    assert crew.now == 34.0
    assert starts == ["a"]


def test_riders_of_a_unit_are_done_when_it_is_finished():
    do = lambda node, task, riders: (1.0, looping.UNFINISHED if task == "image" else ())  # noqa: E731
    _, order = work(chain(), unfinished(lambda node, task: (1.0, ("feature",)), do))
    assert order == ["text", "image", "feature", "score", "other"]


def test_a_unit_that_cannot_be_finished_fails_and_the_next_one_of_its_worker_does_not():
    """Nor is that thrown away: the worker is replaced when it has answered."""
    runs, failed = Counter(), []

    def do(node, task, riders):
        runs[task] += 1
        return 10.0, looping.UNFINISHED

    def finish(node, task):
        if task == "u000":
            failed.append(task)
            return 1.0, Failed("OSError: disk full", OSError(28, "disk full"))
        return 1.0, ()

    queue, order = work(units_of(6), unfinished(finish, do), workers=1)
    assert queue.failed == {"u000": "OSError: disk full"}
    assert len(order) == 5
    assert runs == {"u000": 3, **{f"u{i:03d}": 1 for i in range(1, 6)}}


def test_what_a_worker_was_finishing_when_another_unit_killed_it_is_not_to_blame():
    """u001 kills its worker: it is set aside after three times, and nothing else is, whatever it was beside."""
    died = []

    def do(node, task, riders):
        if task == "u001":
            died.append(task)
            return 1.0, Failed("worker died", died=True)
        return 10.0, looping.UNFINISHED

    def finish(node, task):
        if task == "u000" and len(died) < 1:
            return 1.0, Failed("worker died", died=True)
        return 2.0, ()

    queue, order = work(units_of(5), unfinished(finish, do), workers=1)
    assert queue.failed == {"u001": "worker died"}
    assert queue.losses == {"u000": 1}
    assert len(order) == 4


@pytest.mark.parametrize("hangs", ["run", "finish"])
def test_what_hangs_beside_another_unit_is_alone_to_blame(hangs):
    """The worker is killed for it, and with it another unit is lost, which is made again."""
    tries = Counter()

    def step(kind, task, took, answer):
        tries[kind, task] += 1
        bad = kind == hangs and task == "u001"
        bad |= hangs == "finish" and (kind, task) == ("run", "u002") and tries[kind, task] == 1  # killed meanwhile
        return (NEVER if bad else took), answer

    class Late(Queue):
        def overdue(self, name, seconds):
            return name == "u001" and tries[hangs, name] > 0

    crew = unfinished(
        lambda node, task: step("finish", task, NEVER if tries["finish", task] == 0 and task == "u000" else 2.0, ()),
        lambda node, task, riders: step("run", task, 1.0, looping.UNFINISHED),
    )
    queue = Late(units_of(4))
    loop = Loop(queue, crew, Resources(1), list, lambda name: False)
    order = []
    for _ in range(200):
        if queue.open:
            order += loop.turn()
    assert [*queue.failed] == ["u001"]
    assert queue.failed["u001"].startswith("hung: no answer after")
    assert sorted(order) == ["u000", "u002", "u003"]
    assert set(queue.attempts) == {"u001"}
    assert queue.losses


def test_a_store_that_is_away_from_a_writer_is_no_failed_unit(monkeypatch):
    monkeypatch.setattr(looping, "PAUSE", 0.0)
    fired, starts = [], []

    def finish(node, task):
        if len(fired) < 4:
            fired.append(task)
            return 1.0, Failed("OSError: 503", OSError("503"))
        return 1.0, ()

    queue, order = work(units_of(3), unfinished(finish, start=lambda node: (starts.append(node) or 0.0, False)))
    assert len(order) == 3
    assert queue.attempts == {}
    assert len(starts) <= 2


def test_only_one_node_that_fails_stops_the_run():
    crew = Crew(["one"], lambda node, task, riders: (1.0, Failed("ValueError: x", ValueError("x"))))
    with pytest.raises(WorkersError, match=r"^5 units failed in a row; the last, u004: ValueError: x$"):
        work(units_of(40), crew, workers=1)


def test_nodes_that_all_fail_stop_the_run():
    crew = Crew(["a", "b", "c"], lambda node, task, riders: (1.0, Failed("ValueError: x", ValueError("x"))))
    with pytest.raises(WorkersError, match=r"^2 of 3 nodes failed; the last: 5 units failed in a row"):
        work(units_of(40), crew)


def test_a_unit_that_fails_everywhere_is_set_aside_and_was_tried_on_each_node():
    tried = []

    def do(node, task, riders):
        if task != "u003":
            return 1.0, ()
        tried.append(node)
        return 1.0, Failed("ValueError: x", ValueError("x"))

    queue, order = work(units_of(20), Crew(["a", "b", "c"], do), workers=3)
    assert queue.failed == {"u003": "ValueError: x"}
    assert len(order) == 19
    assert sorted(tried) == ["a", "b", "c"]


@pytest.mark.parametrize("lost", [True, False])
def test_nodes_lost_under_a_unit_do_not_count_against_it(lost):
    """By a word of Ray's (preempted, out of memory), or because the node is no longer there."""
    deaths = []

    def do(node, task, riders):
        if task == "u000" and len(deaths) < 6:
            deaths.append(node)
            if lost:
                return 1.0, Failed("worker died: preempted", died=True, lost=True)
            del crew.up[node]
            crew.up[f"node {len(deaths)}"] = "10.0.1.1"
        return 1.0, ()

    crew = Crew(["a", "b"], do)
    queue, order = work(units_of(8), crew)
    assert len(deaths) == 6
    assert queue.failed == {}
    assert len(order) == 8


def test_a_unit_that_loses_node_after_node_is_set_aside_in_the_end():
    crew = Crew(["a"], lambda node, task, riders: (1.0, Failed("worker died: memory", died=True, lost=True)))
    queue, _ = work(units_of(1), crew)
    assert queue.failed == {"u000": "its node was lost 20 times; the last: worker died: memory"}


def test_a_death_whose_node_turns_out_to_be_gone_is_forgiven():
    """Processes of a machine that is shut down die before the cluster knows that it is gone."""
    queue = Queue([Unit("a", "g", 1, 0), Unit("b", "g", 1, 0, ("a",))])
    for _ in range(3):
        assert queue.take()
        queue.failure("a", "worker died", "spot", died=True)
    assert set(queue.failed) == {"a", "b"}
    queue.gone(["spot"])
    assert queue.failed == {}
    assert queue.take().name == "a"


def test_workers_that_hang_while_they_start_are_their_nodes_fault(capsys):
    started = []

    def start(node):
        started.append(node)
        return (NEVER if node == "bad" else 0.0), False

    crew = Crew(["good", "bad"], lambda node, task, riders: (1.0, ()), start)
    _, order = work(units_of(30), crew, limits=Limits(start=-1.0))  # who has not answered at once is late
    assert len(order) == 30
    assert 3 <= started.count("bad") <= 4
    told = capsys.readouterr().err
    assert "(bad) is left out: workers do not start (3 tries): hung: no answer after 0 s" in told


class Losing(Crew):
    """The first `times` workers are lost before they have a node, and where `nodes_go` that node with them."""

    def __init__(self, times, nodes_go):
        super().__init__(["node 0"], lambda node, task, riders: (1.0, ()))
        self.times, self.nodes_go, self.lost = times, nodes_go, 0

    def call(self, worker, method, *args):
        if method != "where" or self.lost == self.times:
            return super().call(worker, method, *args)
        self.lost += 1
        if self.nodes_go:
            self.up = {f"node {self.lost}": "10.0.0.0"}
        self.where[worker] = next(iter(self.up))
        self.count += 1
        self.answers[self.count] = (
            self.now,
            Failed("worker died: it was cancelled before it started", died=True),
            worker,
        )
        return self.count


def test_workers_that_are_lost_with_their_nodes_are_replaced_for_as_long_as_nodes_come():
    crew = Losing(40, nodes_go=True)
    _, order = work(units_of(5), crew, workers=2)
    assert (len(order), crew.lost) == (5, 40)
    with pytest.raises(WorkersError, match=r"workers do not start \(6 tries\): worker died: it was cancelled"):
        work(units_of(5), Losing(40, nodes_go=False), workers=2)


def test_a_retry_does_not_wait_for_ever_for_another_node(monkeypatch):
    """It is up, but has no room."""
    monkeypatch.setattr(looping, "PLACE", -1.0)
    failed = []

    def do(node, task, riders):
        if failed:
            return 1.0, ()
        failed.append(node)
        return 1.0, Failed("ValueError: x", ValueError("x"))

    crew = Crew(["a", "full"], do)
    crew.room = 1
    crew.where["of another job"] = "full"
    _, order = work(units_of(1), crew)
    assert order == ["u000"]
    assert failed == ["a"]


def test_who_hangs_is_known_by_the_pace_of_its_group():
    queue = Queue(
        [Unit("fast", "g", 1, 0), Unit("slow", "g", 10, 0), Unit("first", "h", 1, 0)], limits=Limits(3600, 60)
    )
    assert queue.take().name == "slow"
    assert not queue.overdue("slow", 3599)
    assert queue.overdue("slow", 3601)  # no pace is known
    queue.finished(["slow"], "n", 100.0)  # 10 s a unit of cost
    assert not queue.overdue("fast", 199)
    assert queue.overdue("fast", 201)
    assert not queue.overdue("first", 3599)  # of another group
    queue.finished(["fast"], "n", 0.1)
    assert queue.slowest["g"] == 10.0


def chain():
    return [
        Unit("text", "t", 1, "text", on_demand=True),
        Unit("image", "g", 5, "image", ("text",)),
        Unit("feature", "e", 1, "feature", ("image",), rides=True),
        Unit("score", "", 1, "score", ("feature", "image")),
        Unit("other", "", 0.5, "other", ("feature",)),
    ]


class Damaged(ValueError):
    def __init__(self, name):
        super().__init__(f"{name} is damaged")
        self.name = name


def test_a_damaged_file_of_long_ago_is_made_again_and_then_what_needs_it():
    bad, aside, ran = {"image"}, [], []

    def do(node, task, riders):
        ran.append(task)
        if task == "feature" and "image" in bad:
            return 1.0, Failed("Damaged", Damaged("image"))
        bad.discard(task)
        return 1.0, ()

    queue, order = work(chain(), Crew(["a"], do), done={"image", "other"}, set_aside=aside.append)
    assert aside == ["image"]
    assert ran == ["feature", "text", "image", "feature", "score"]  # its text is no longer there: it is made first
    assert order == ["text", "image", "feature", "score"]
    assert queue.damaged == {"image": 1}
    assert queue.attempts == {}


def test_one_damaged_file_that_two_units_meet_is_set_aside_once():
    """The second one began before the file was made again."""
    queue = Queue(chain(), done={"text", "image", "feature"})
    assert {queue.take().name, queue.take().name} == {"score", "other"}
    assert queue.is_new("score", "feature")
    queue.damage("score", "feature", True)
    assert not queue.is_new("other", "feature")  # it is being made
    assert queue.take().name == "feature"
    queue.finished(["feature"])
    assert not queue.is_new("other", "feature")  # it was read before
    queue.damage("other", "feature", False)
    assert {queue.take().name, queue.take().name} == {"score", "other"}
    assert queue.is_new("other", "feature")
    assert queue.damaged == {"feature": 1}


def test_a_file_that_is_damaged_again_and_again_fails_who_reads_it():
    aside = []

    def do(node, task, riders):
        return 1.0, (Failed("Damaged: image", Damaged("image")) if task == "feature" else ())

    queue, _ = work(chain(), Crew(["a"], do), set_aside=aside.append)
    assert aside == ["image"] * DAMAGES
    assert queue.failed == {
        "feature": "Damaged: image",
        "score": "needs feature, which failed: Damaged: image",
        "other": "needs feature, which failed: Damaged: image",
    }


def test_a_foreign_file_is_set_aside_and_nothing_is_made_for_it():
    aside = []

    def do(node, task, riders):
        return 1.0, (Failed("Damaged", Damaged("foreign")) if task == "score" and not aside else ())

    queue, order = work(chain(), Crew(["a"], do), set_aside=aside.append)
    assert aside == ["foreign"]
    assert queue.failed == {}
    assert len(order) == 5


def test_a_store_that_is_away_is_no_failed_unit(monkeypatch):
    monkeypatch.setattr(looping, "PAUSE", 0.0)
    asked = []

    def do(node, task, riders):
        return 1.0, (Failed("OSError: 503", OSError("503")) if len(asked) < 12 else ())

    def committed(name):
        asked.append(name)
        raise OSError("503 slow down")

    queue, order = work(units_of(6), Crew(["a"], do), committed=committed)
    assert len(asked) >= 12
    assert queue.failed == queue.attempts == {}
    assert len(order) == 6
    asked.clear()
    with pytest.raises(WorkersError, match=r"^the store has not answered for 0 s: 503 slow down$"):
        work(units_of(6), Crew(["a"], do), committed=committed, limits=Limits(away=0.0))


def test_a_store_that_was_away_from_workers_alone_is_no_failed_unit(monkeypatch):
    """As when it is back by the time that it is asked: 8 units failed in a row, and none has an attempt."""
    monkeypatch.setattr(looping, "PAUSE", 0.0)
    fired = []

    def do(node, task, riders):
        if len(fired) < 8:
            fired.append(task)
            return 1.0, Failed("OSError: SLOW_DOWN", OSError("AWS Error SLOW_DOWN"))
        return 1.0, ()

    starts = []
    crew = Crew(["a"], do, lambda node: (starts.append(node) or 0.0, False))
    queue, order = work(units_of(6), crew, workers=2)
    assert len(fired) == 8
    assert len(order) == 6
    assert queue.attempts == {}
    assert len(starts) == 2  # and no worker was replaced
    assert not looping.is_away(OSError(28, "no space left on device"))
    assert looping.is_away(ConnectionResetError(104, "reset"))
    assert not looping.is_away(FileNotFoundError("bucket/name"))


def test_the_store_is_asked_before_a_unit_is_given_again():
    """A worker failed, or was lost, after its commit: also its riders' are counted."""
    runs = Counter()

    def do(node, task, riders):
        runs[task] += 1
        return 1.0, (Failed("ValueError: late", ValueError("late")) if task == "image" else ())

    queue, order = work(chain(), Crew(["a"], do), committed=lambda name: name in ("image", "feature"))
    assert order == ["text", "image", "feature", "score", "other"]
    assert runs == {"text": 1, "image": 1, "score": 1, "other": 1}
    assert queue.attempts == {}


@pytest.mark.parametrize("rode", [True, False])
def test_riders_go_with_what_they_need_or_back_to_the_queue(rode):
    carried = {}

    def do(node, task, riders):
        carried[task] = riders
        return 1.0, ("feature", "score") if rode and riders else ()  # "score" rides with nobody: it is not believed

    _, order = work(chain(), Crew(["a"], do))
    assert order == ["text", "image", "feature", "score", "other"]
    assert carried.pop("image") == ("feature",)
    assert set(carried) == {"text", "score", "other"} | (set() if rode else {"feature"})
    assert not any(carried.values())


def test_a_worker_reads_ahead_what_it_is_given_next():
    given = {}

    def do(node, task, riders):
        given.setdefault(crew.calling, []).append(task)
        return 1.0, ()

    class Watched(Crew):
        def call(self, worker, method, *args):
            self.calling = worker
            return super().call(worker, method, *args)

    crew = Watched(["a"], do, start=lambda node: (0.0, True))
    queue, order = work(units_of(12), crew, workers=3)
    assert len(order) == len(set(order)) == 12
    hints = [(worker, task) for worker, task in crew.hints if len(given[worker]) > 1]
    right = sum(task in given[worker] for worker, task in hints)
    assert len(hints) >= 9
    assert right >= len(hints) - 2  # at the end one takes what another was to have
    assert queue.hinted == {}


def test_what_a_lost_worker_was_to_have_is_not_lost():
    queue = Queue(units_of(3))
    assert queue.take("w").name == "u000"
    assert queue.hint("w", "", "g", False).name == "u001"
    assert queue.take("other").name == "u002"
    queue.release("w")
    assert queue.take("other").name == "u001"


def test_order_text_then_images_then_features_and_scores_at_once():
    units = []
    for c in "ab":
        units.append(Unit(f"score {c}", "", 1, 0, tuple(f"feature {c}{i}" for i in range(2))))
        for i in range(2):
            units.append(Unit(f"feature {c}{i}", "encoder", 1, 0, (f"image {c}{i}",), rides=True))
            units.append(Unit(f"image {c}{i}", f"model {c}", 1, 0, (f"text {i}",)))
    units += [Unit(f"text {i}", "text", 1, 0, on_demand=True) for i in range(2)]
    queue, order, group = Queue(units), [], ""
    while queue.open:
        unit = queue.take(group=group)
        group = unit.group or group
        names = [unit.name, *(rider.name for rider in queue.riders(unit.name))]
        order += names
        queue.finished(names)
    expected = ["text 0", "text 1"]
    for c in "ab":
        expected += [f"image {c}0", f"feature {c}0", f"image {c}1", f"feature {c}1", f"score {c}"]
    assert order == expected


def test_what_is_there_is_not_made_and_text_only_for_whom_it_serves():
    everything = {"text", "image", "feature", "score", "other"}
    assert Queue(chain(), everything).open == {}
    assert Queue(chain(), everything - {"text"}).open == {}
    assert set(Queue(chain(), everything - {"image"}).open) == {"image"}
    assert set(Queue(chain(), everything - {"image", "text"}).open) == {"text", "image"}
    assert set(Queue(chain(), everything - {"score"}).open) == {"score"}


@pytest.mark.parametrize("held", [False, True])
def test_the_queue_does_not_grow_slow(held):
    """Also while one text unit is outstanding, and thousands wait for it. A scan of the queue for each would take
    minutes."""
    began = time.monotonic()
    measured = bench.driver(configurations=500, shards=30, workers=64, held=held)
    assert measured["units"] == 500 * 61 + 30
    assert time.monotonic() - began < 30


def test_what_failed_on_a_node_that_is_left_out_is_tried_again():
    """Also a unit that was set aside: it failed three times, and each time there."""
    queue = Queue(units_of(6))
    queue.nodes.up = {"good", "better", "bad"}
    names = [queue.take().name for _ in range(6)]
    for _ in range(3):
        queue.failure(names[0], "OSError: a broken disk", "bad")
    assert set(queue.failed) == {names[0]}
    for name in names[1:5]:
        queue.failure(name, "OSError: a broken disk", "bad")
    assert set(queue.nodes.out) == {"bad"}
    assert queue.failed == {}
    assert set(names[:5]) <= queue.ready
