"""Buffers of killed starts are removed from /dev/shm; those of living runs are left alone."""

from __future__ import annotations

import mmap
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.machine.process import free_port
from pipelines.run_dir import shared_memory
from pipelines.run_dir.paths import StageDir, read_json, write_json
from pipelines.run_dir.shared_memory import none_left, own_buffer


def buffer(port: int, rank: int = 0, address: str = "127.0.0.1") -> Path:
    env = {"MASTER_ADDR": address, "MASTER_PORT": str(port), "RANK": str(rank)}
    path = own_buffer(env)
    path.write_bytes(bytes(mmap.PAGESIZE))
    return path


@pytest.fixture
def stage_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StageDir]:
    monkeypatch.setattr(shared_memory, "SHARED", tmp_path)
    yield StageDir(tmp_path / "stage")


def test_buffers_of_a_killed_start_go_with_the_next(stage_dir: StageDir) -> None:
    old, new, other = 40001, 40002, 40003
    # As a kill leaves it.
    write_json(stage_dir.port, {"port": old, "host": socket.gethostname()})
    left = [buffer(old), buffer(old, 1), buffer(old, 0, "host_name")]
    others = [buffer(other), buffer(other, old)]
    with none_left(stage_dir, new):
        assert not any(path.exists() for path in left)
        assert read_json(stage_dir.port)["port"] == new
        own = buffer(new)
    assert not own.exists() and not stage_dir.port.exists()
    assert all(path.exists() for path in others)


def test_buffers_of_a_start_that_fails_are_removed(stage_dir: StageDir) -> None:
    with pytest.raises(KeyError), none_left(stage_dir, 40004):
        own = buffer(40004)
        raise KeyError
    assert not own.exists()


@pytest.mark.parametrize("content", ["", "[", '{"port": 40005, "host": "elsewhere"}'])
def test_what_is_not_known_to_be_ours_stays(content: str, stage_dir: StageDir) -> None:
    path = buffer(40005)
    stage_dir.root.mkdir()
    stage_dir.port.write_text(content)
    with none_left(stage_dir, 40006):
        assert path.exists()


def test_a_buffer_in_use_stays(tmp_path: Path) -> None:
    """Its port was free again, and another run took it."""
    path = buffer(port := free_port())
    try:
        with path.open("r+b") as stream, mmap.mmap(stream.fileno(), 0):
            with none_left(StageDir(tmp_path), port):
                pass
            assert path.exists()
        with none_left(StageDir(tmp_path), port):
            pass
        assert not path.exists()
    finally:
        path.unlink(missing_ok=True)
