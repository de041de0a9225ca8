"""What the launcher side makes of the ranks' beats: who moves, who hangs, for how long it may."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.launch.watch import Watch
from pipelines.recipe.schema import LaunchConfig
from pipelines.run_dir import heartbeat
from pipelines.run_dir.heartbeat import Heartbeat
from pipelines.run_dir.paths import StageDir

IN_STEPS, OUTSIDE = 0.3, 0.9


@pytest.fixture
def stage(tmp_path: Path) -> StageDir:
    return StageDir(tmp_path)


@pytest.fixture
def own(stage: StageDir) -> Iterator[Heartbeat]:
    """This process as rank 0 of the stage."""
    heartbeat.begin(stage, 0)
    yield heartbeat._own[0]
    heartbeat._own.clear()


def watching(stage: StageDir, num_ranks: int, outside: float = OUTSIDE) -> Watch:
    launch = LaunchConfig(hang_seconds=IN_STEPS, hang_seconds_outside=outside)
    watch = Watch(stage, num_ranks, launch)
    watch.look(at_once=True)
    return watch


def seconds_to_a_hang(watch: Watch, longest: float) -> float:
    begun = time.monotonic()
    while not watch.hang():
        if time.monotonic() - begun > longest:
            return float("inf")
        watch.look(at_once=True)
        time.sleep(0.01)
    return time.monotonic() - begun


@pytest.mark.parametrize(
    ("phase", "allowed", "key"),
    [
        (heartbeat.TRAINING, IN_STEPS, "launch.hang_seconds sets"),
        (heartbeat.WORKING, OUTSIDE, "launch.hang_seconds_outside sets"),
        (heartbeat.FIRST_STEP, OUTSIDE, "launch.hang_seconds_outside sets"),
        (heartbeat.SAVING, OUTSIDE, "launch.hang_seconds_outside sets"),
    ],
)
def test_each_phase_has_its_limit(stage: StageDir, phase: str, allowed: float, key: str) -> None:
    for rank in (0, 1):
        Heartbeat(stage.heartbeats, rank).beat(phase, 3)
    watch = watching(stage, 2)
    assert allowed * 0.9 < seconds_to_a_hang(watch, 5) < allowed + 3
    assert key in watch.hang() and "made equal progress" in watch.hang()


def test_one_rank_outside_of_its_steps_gives_all_the_longer_limit(stage: StageDir) -> None:
    Heartbeat(stage.heartbeats, 0).beat(heartbeat.TRAINING, 3)
    Heartbeat(stage.heartbeats, 1).beat(heartbeat.SAVING, 3)
    assert seconds_to_a_hang(watching(stage, 2), 5) > OUTSIDE * 0.9


def test_a_rank_that_never_begins_is_named(stage: StageDir) -> None:
    Heartbeat(stage.heartbeats, 0).beat()
    watch = watching(stage, 3)
    assert seconds_to_a_hang(watch, 5) > OUTSIDE * 0.9
    assert "rank 1 and rank 2 never started" in watch.hang()


def test_zero_is_never(stage: StageDir) -> None:
    Heartbeat(stage.heartbeats, 0).beat()
    assert seconds_to_a_hang(watching(stage, 1, outside=0), 0.5) == float("inf")


def test_loops_outside_of_steps_beat_once_a_second(
    stage: StageDir, own: Heartbeat, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats = own.last.beats
    heartbeat.tick()
    assert own.last.beats == beats
    monkeypatch.setattr(heartbeat, "TICK_SECONDS", 0.05)
    watch = watching(stage, 1, outside=0.9)
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        heartbeat.tick()
        watch.look(at_once=True)
        assert not watch.hang()
        time.sleep(0.01)
    assert 3 <= own.last.beats - beats <= 30
    assert seconds_to_a_hang(watch, 5) < 5
