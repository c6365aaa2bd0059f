"""Waiting threads: what others use of the cores is counted, and a crowd comes and goes with it."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from tests.support import TIME_LIMIT
from vi_lab.training import waiting
from vi_lab.training.waiting import Watch, busy_seconds, watch_cores

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="GNU's OpenMP on Linux")
STAT = """cpu  999 999 999 999 999 999 999 999 0 0
cpu0 100 20 30 4000 50 6 7 8 0 0
cpu1 1 0 0 9000 0 0 0 0 0 0
cpu12 700 0 0 9000 0 0 0 0 0 0
intr 5
"""


def test_work_is_counted_on_the_cores_of_this_process() -> None:
    """User, nice, system, interrupts and what a hypervisor has taken; not idle, not waiting for a disk."""
    ticks = os.sysconf("SC_CLK_TCK")
    assert busy_seconds(STAT, {0, 1}) == pytest.approx((100 + 20 + 30 + 6 + 7 + 8 + 1) / ticks)
    assert busy_seconds(STAT, {12}) == pytest.approx(700 / ticks)


@pytest.mark.parametrize(
    ("cores", "threads", "others", "wanted"),
    [(2, 2, 0.1, False), (2, 2, 0.5, True), (8, 4, 3.9, False), (8, 4, 4.5, True), (2, 2, 0.0, False)],
)
def test_a_crowd_is_called_where_threads_and_others_do_not_fit(
    monkeypatch: pytest.MonkeyPatch, cores: int, threads: int, others: float, wanted: bool
) -> None:
    called = []

    class Fake(waiting.Crowd):
        def __init__(self, threads: int, cores: int) -> None:
            called.append((threads, cores))
            super().__init__(threads, threads - 1)  # no team at all

    monkeypatch.setattr(waiting, "Crowd", Fake)
    times = iter([(0.0, 0.0, 0.0), (1.0, 1.5 + others, 1.5), (2.0, 3.0 + others, 3.0)])
    monkeypatch.setattr(Watch, "_times", lambda self: next(times))
    watch = Watch(threads, set(range(cores)))
    watch.look()
    assert called == ([(threads, cores)] if wanted else [])
    crowd = watch.crowd
    watch.look()  # nobody else any more
    assert watch.crowd is None
    assert crowd is None or crowd.leave.is_set()


@linux
def test_a_crowd_is_more_threads_than_cores() -> None:
    """In a process of its own, as thread pools stay; the results of torch are the same before, with and after."""
    code = """
import os, time, torch
from vi_lab.training.waiting import Crowd
torch.set_num_threads(2)
def threads(): return len(os.listdir("/proc/self/task"))
x = torch.randn(300, 784, generator=torch.Generator().manual_seed(0))
def product(): return (x @ x.T).sum(), x.exp().sum()
before, few = product(), threads()
crowd = Crowd(2, 3)
while threads() < few + 2 * crowd.teams: time.sleep(0.01)
assert crowd.teams == 2 and product() == before
crowd.leave.set()
while threads() > few: time.sleep(0.01)
assert product() == before
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=TIME_LIMIT, env=environment)


def test_a_process_that_goes_on_with_one_thread_needs_no_crowd(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a sweep over `threads` does, in one process."""
    seconds = iter(range(100))
    monkeypatch.setattr(Watch, "_times", lambda self: (t := float(next(seconds)), 9 * t, t))  # others are busy
    monkeypatch.setattr(waiting.Crowd, "_stay", lambda self: None)
    watch = Watch(2, {0, 1})
    watch.look()
    assert watch.crowd is not None
    monkeypatch.setattr(waiting.threading, "enumerate", lambda: [watch])
    assert watch_cores(1) is watch
    assert watch.crowd is None
    watch.look()
    assert watch.crowd is None


@linux
def test_an_environment_that_says_how_to_wait_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert watch_cores(1) is None
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert watch_cores(2) is None


@linux
def test_it_watches_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in waiting.SET_BY_USERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Watch, "run", lambda self: time.sleep(5))
    watch = watch_cores(2)
    assert watch is not None
    assert watch_cores(3) is watch
    assert watch.threads == 3
