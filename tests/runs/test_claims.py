"""Claims: one worker to a job, whoever dies, whatever the clocks say."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from pathlib import Path

import pytest

from vi_lab.runs import claims
from vi_lab.runs.claims import Claims, Held, kernel
from vi_lab.runs.jobs import DEATHS, Jobs
from vi_lab.runs.lock import hold


def taken(claims_: Claims, job: str = "job", number: int = 1) -> Held:
    held = claims_.take(job, number)
    assert held is not None
    return held


def age(sweep: Path, seconds: float, name: str = "job.1") -> None:
    """Let a claim be untouched for so long."""
    path = sweep / claims.FOLDER / name
    then = time.time() - seconds
    os.utime(path, (then, then))


def elsewhere(sweep: Path, name: str = "job.1") -> None:
    """Let a claim be one of another machine."""
    path = sweep / claims.FOLDER / name
    path.write_text(json.dumps({**json.loads(path.read_text()), "kernel": "another"}))


def try_all(sweep: Path, start: multiprocessing.synchronize.Event, won: multiprocessing.Queue) -> None:
    own = Claims(sweep)
    start.wait()
    for job in range(200):
        if own.take(f"job-{job}", 1) is not None:
            won.put(job)
    won.put(None)


def test_of_those_who_try_one_gets_it(tmp_path: Path) -> None:
    start, won = multiprocessing.Event(), multiprocessing.Queue()
    workers = [multiprocessing.Process(target=try_all, args=(tmp_path, start, won)) for _ in range(4)]
    for worker in workers:
        worker.start()
    start.set()
    jobs: list[int] = []
    ended = 0
    while ended < 4:
        job = won.get(timeout=60)
        ended += job is None
        jobs += [] if job is None else [job]
    assert sorted(jobs) == list(range(200))


def test_outcomes_stand_in_their_order(tmp_path: Path) -> None:
    own = Claims(tmp_path)
    for number, outcome in ((1, "failed"), (2, "interrupted"), (3, "completed")):
        with taken(own, "a-temperature=0.5-s0", number) as held:
            assert own.read()["a-temperature=0.5-s0"][number - 1] is None
            held.outcome = outcome
    assert own.read() == {"a-temperature=0.5-s0": ["failed", "interrupted", "completed"]}
    assert own.take("a-temperature=0.5-s0", 3) is None  # a number is given once
    assert own.about("a-temperature=0.5-s0", 1)["worker"].endswith(f":{os.getpid()}")


def test_what_ends_without_a_word_was_interrupted(tmp_path: Path) -> None:
    own = Claims(tmp_path)
    with pytest.raises(ZeroDivisionError), taken(own):
        raise ZeroDivisionError
    assert own.read() == {"job": ["interrupted"]}


def test_on_one_machine_the_lock_tells_who_has_died(tmp_path: Path) -> None:
    own = Claims(tmp_path)
    taken(own)
    (tmp_path / "job").mkdir()
    assert own.is_live("job", 1)  # it has just been made: the lock comes
    age(tmp_path, claims.YOUNG + 1)
    assert not own.is_live("job", 1)
    with hold(tmp_path / "job"):
        assert own.is_live("job", 1)


def test_on_another_machine_the_last_sign_of_life_does(tmp_path: Path) -> None:
    own = Claims(tmp_path)
    taken(own)
    elsewhere(tmp_path)
    age(tmp_path, claims.STALE - 5)
    assert own.is_live("job", 1)
    age(tmp_path, claims.STALE + 5)
    assert not own.is_live("job", 1)


def test_clocks_may_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Claims(tmp_path)
    taken(own)
    elsewhere(tmp_path)
    for wrong in (-1e6, 1e6):
        monkeypatch.setattr(time, "time", lambda wrong=wrong: 1.8e9 + wrong)
        assert own.is_live("job", 1)


def test_a_claim_that_is_half_written_is_nobodys_to_take(tmp_path: Path) -> None:
    own = Claims(tmp_path)
    taken(own)
    (tmp_path / claims.FOLDER / "job.1").write_text("")
    assert own.about("job", 1) == {}
    assert own.is_live("job", 1)
    (tmp_path / claims.FOLDER / "job.1.end").write_text("{")
    assert own.read() == {"job": [None]}


def test_a_worker_that_was_away_goes_on_where_nobody_has_its_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, lost = taken(Claims(tmp_path)), threading.Event()
    held.lost = lambda path: lost.set()
    age(tmp_path, 1000)
    now, away = claims._now(), [0.0]
    monkeypatch.setattr(claims, "_now", lambda: now + away[0])
    with held:
        away[0] = 1000.0  # the machine slept
        deadline = time.monotonic() + 60
        while Claims(tmp_path).age("job.1") > 500:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        taken(Claims(tmp_path), number=2)  # once more, and another has come
        away[0] = 2000.0
        assert lost.wait(60)


def test_claims_that_somebody_has_removed_are_nobodys(tmp_path: Path) -> None:
    own = Claims(tmp_path)
    taken(own)
    taken(own, number=3)
    assert own.read() == {"job": [None, None, None]}
    assert not own.is_live("job", 2)
    (tmp_path / claims.FOLDER / "job.999999999").touch()
    assert own.read() == {}  # no list is made of it


def test_a_claim_is_touched_and_seen_to_be_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT", 0.05)
    own, lost = Claims(tmp_path), threading.Event()
    held = taken(own)
    age(tmp_path, 1000)
    held.lost = lambda path: lost.set()
    with held:
        deadline = time.monotonic() + 60
        while own.age("job.1") > 500:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert not lost.is_set()
        taken(own, number=2)
        assert lost.wait(60)


def test_the_machine_is_known(tmp_path: Path) -> None:
    assert kernel() == kernel() != ""


def test_a_job_with_which_workers_die_at_one_place_is_told(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path, ["job"])
    (tmp_path / "job" / "checkpoints").mkdir(parents=True)
    last = tmp_path / "job" / "checkpoints" / "last.ckpt"
    for number in range(1, DEATHS + 1):
        assert not jobs.dies("job", number - 1)
        assert jobs.claim("job", number) is not None
        age(tmp_path, claims.YOUNG + 1, f"job.{number}")
    assert jobs.dies("job", DEATHS)
    last.write_text("a step further")
    assert not jobs.dies("job", DEATHS)


def test_a_job_of_another_worker_is_not_claimed(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path, ["job"])
    assert jobs.claim("job", 1) is not None
    assert jobs.claim("job", 1) is None
    state = jobs.states()["job"]
    assert (state.name, state.claims) == ("running", 1)
    assert state.worker.endswith(f":{os.getpid()}")
