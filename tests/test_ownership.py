"""Resume state is loaded only where nobody else can have written it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipelines.errors import UserError
from pipelines.run_dir.ownership import check_resume_state, make_private


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """`run/stage/checkpoints/checkpoint-1` with one file, as a run with umask 022 leaves it."""
    folder = tmp_path / "run" / "stage" / "checkpoints" / "checkpoint-1"
    folder.mkdir(parents=True)
    (tmp_path / "run" / "ledger.jsonl").touch()
    (folder / "rng_state.pth").write_bytes(b"x")
    for path in (tmp_path / "run", *(tmp_path / "run").rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def test_what_is_ones_own_is_taken(checkpoint: Path) -> None:
    check_resume_state(checkpoint)
    make_private(checkpoint.parent)
    assert checkpoint.parent.stat().st_mode & 0o777 == 0o700
    check_resume_state(checkpoint)


@pytest.mark.parametrize("mode", [0o020, 0o002])
@pytest.mark.parametrize("place", ["", "..", "../..", "../../..", "rng_state.pth"])
def test_what_others_may_write_is_refused(checkpoint: Path, place: str, mode: int) -> None:
    loose = (checkpoint / place).resolve()
    loose.chmod(loose.stat().st_mode | mode)
    with pytest.raises(UserError, match="can be written by other users") as refused:
        check_resume_state(checkpoint)
    assert str(loose) in str(refused.value) and "chmod" in str(refused.value)
    # A folder that others might have written is not made private behind the user's back.
    make_private(checkpoint.parent)
    if loose == checkpoint.parent:
        with pytest.raises(UserError):
            check_resume_state(checkpoint)


def test_behind_a_private_folder_a_loose_umask_does_no_harm(checkpoint: Path) -> None:
    make_private(checkpoint.parent)
    checkpoint.chmod(0o775)
    (checkpoint / "rng_state.pth").chmod(0o664)
    checkpoint.parent.parent.chmod(0o775)
    check_resume_state(checkpoint)
    checkpoint.parent.parent.chmod(0o777)
    with pytest.raises(UserError, match="written by other users"):
        check_resume_state(checkpoint)


def test_a_link_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs.pth").write_bytes(b"x")
    (checkpoint / "rng_state.pth").unlink()
    (checkpoint / "rng_state.pth").symlink_to(tmp_path / "theirs.pth")
    with pytest.raises(UserError, match="is a link"):
        check_resume_state(checkpoint)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("place", ["", "..", "../..", "rng_state.pth"])
def test_what_belongs_to_another_is_refused(checkpoint: Path, place: str) -> None:
    os.chown((checkpoint / place).resolve(), 12345, -1)
    with pytest.raises(UserError, match="uid 12345"):
        check_resume_state(checkpoint)
