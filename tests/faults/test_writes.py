"""Each file that is written: killed in the middle, refused for want of space, damaged later."""

from __future__ import annotations

import ast
import contextlib
import errno
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.data.new_tokenizer import build_tokenizer
from pipelines.data.packed_set import PackedDataset
from pipelines.data.packing import pack
from pipelines.data.score_cache import ScoreCache, ScoreKey, open_scores
from pipelines.errors import WRONG_INPUT_CODE, UserError
from pipelines.models.checkpoint import content_hash
from pipelines.plan.identity import is_made
from pipelines.recipe.schema import SourceConfig, TokenizerConfig
from pipelines.run_dir import fail_points, heartbeat, ledger
from pipelines.run_dir.disk import explained, require_space, shortage
from pipelines.run_dir.paths import RunDir, RunLock, StageDir, read_json, write_json
from pipelines.worker import worker

KEY = ScoreKey("data", True, "model", 300, "sdpa", "fp32")
ROWS = np.arange(2 * 4, dtype=np.float32).reshape(2, 4) / 8


def killed_at(instant: str, work: Callable[[], Any]) -> None:
    """Do the work in a forked process, which must be killed at an instant."""
    child = os.fork()
    if child == 0:
        os.environ[fail_points.VARIABLE] = instant
        try:
            work()
        finally:
            os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def flip_a_bit(path: Path) -> None:
    """Change one bit in the middle of a file, and neither its size nor its time of change."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_every_instant_of_the_code_is_named_and_every_name_is_met(checkout: Path) -> None:
    met = []
    for path in (checkout / "pipelines").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "fail_point":
                (argument,) = node.args
                assert isinstance(argument, ast.Constant), path
                met.append(argument.value)
    assert sorted(met) == sorted(fail_points.INSTANTS)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("before lunch", "unknown fail point"),
        ("after the result:explode", "the kind must be one of kill, kill-group"),
        ("after the result:kill:first", "rank and count must be numbers"),
        ("after the result:kill::0", "count at least 1"),
    ],
)
def test_an_unknown_fail_point_is_refused(
    value: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(fail_points.VARIABLE, value)
    with pytest.raises(UserError, match=re.escape(words)):
        fail_points.fail_point("after the result")


def test_rank_and_count_choose_the_passing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fail_points, "_passed", fail_points.Counter())
    monkeypatch.setenv(fail_points.VARIABLE, "before the result:no-space:1:2")
    for rank in ("0", "1", "0"):
        monkeypatch.setenv("RANK", rank)
        fail_points.fail_point("before the result")
        fail_points.fail_point("after the result")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(OSError, match="before the result") as raised:
        fail_points.fail_point("before the result")
    assert raised.value.errno == errno.ENOSPC
    monkeypatch.delenv(fail_points.VARIABLE)
    fail_points.fail_point("before the result")


def test_half_a_ledger_line_is_read_over(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger.append(path, "start", "base")
    killed_at("half a ledger line", lambda: ledger.append(path, "finish", "base", loss=1.0))
    assert not path.read_bytes().endswith(b"\n")
    ledger.append(path, "resume", "base")
    assert [entry["event"] for entry in ledger.read(path)] == ["start", "resume"]


def test_a_file_is_there_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"number": 1})
    killed_at("before a file is renamed", lambda: write_json(path, {"number": 2}))
    assert read_json(path) == {"number": 1}


def test_what_killed_writes_left_is_gone_with_the_next_start(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    stage = run.stage("round-0/10-mid-train")
    for path in (run.flywheel_plan, run.data / "hashes.json", stage.result):
        killed_at("before a file is renamed", lambda path=path: write_json(path, {}))
        assert len(list(path.parent.glob(".*"))) == 1
    (run.root / ".gitignore").write_text("*")
    with RunLock(run, "remit"):
        stage.clear_traces()
    assert [path.name for path in run.root.rglob(".*")] == [".gitignore"]


def cache_of(folder: Path) -> ScoreCache:
    return ScoreCache(folder, KEY, "stream", 4, shard_sequences=2)


def test_a_score_shard_cut_short_is_none(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    cache.write(0, ROWS)
    killed_at("before a score shard is renamed", lambda: cache.write(1, ROWS + 1))
    assert (cache.has(0), cache.has(1)) == (True, False)
    cache.write(1, ROWS + 1)
    killed_at("before the marker of scores", cache.finish)
    assert not cache.is_complete() and cache.has(0) and cache.has(1)
    cache.finish()
    opened = open_scores(tmp_path, KEY, "stream", 4, "ref")
    assert opened[3].tolist() == (ROWS + 1)[1].tolist()
    assert sorted(p.name for p in cache.folder.iterdir()) == [
        "complete.json", "sequences-000000000-000000002.npy", "sequences-000000002-000000004.npy",
    ]  # fmt: skip


def test_shards_of_another_size_go_when_the_scoring_is_finished(tmp_path: Path) -> None:
    cut_short = cache_of(tmp_path)
    cut_short.write(0, ROWS)
    resumed = ScoreCache(tmp_path, KEY, "stream", 4, shard_sequences=4)
    resumed.write(0, np.concatenate([ROWS, ROWS + 1]))
    assert cut_short.path(0).is_file()
    resumed.finish()
    assert sorted(p.name for p in resumed.folder.iterdir()) == [
        "complete.json", "sequences-000000000-000000004.npy",
    ]  # fmt: skip
    assert open_scores(tmp_path, KEY, "stream", 4, "ref")[3].tolist() == (ROWS + 1)[1].tolist()


def test_a_longer_set_of_the_same_stream_serves_a_shorter_one(tmp_path: Path) -> None:
    long = cache_of(tmp_path)
    for shard in (0, 1):
        long.write(shard, ROWS + shard)
    long.finish()
    short = replace(KEY, data="its beginning")
    assert open_scores(tmp_path, short, "stream", 3, "ref")[2].tolist() == (ROWS + 1)[0].tolist()
    for key, stream, number in (
        (short, "another stream", 3), (short, "stream", 5), (replace(short, model="m"), "stream", 3)
    ):  # fmt: skip
        with pytest.raises(UserError, match="has no scores of ref"):
            open_scores(tmp_path, key, stream, number, "ref")
    flip_a_bit(long.path(0))
    with pytest.raises(UserError, match="has no scores of ref"):
        open_scores(tmp_path, short, "stream", 3, "ref")


@pytest.mark.parametrize("damage", [flip_a_bit, cut_off])
@pytest.mark.parametrize("finished", [True, False])
def test_a_damaged_score_shard_is_named_and_made_again(
    tmp_path: Path, damage: Callable[[Path], None], finished: bool
) -> None:
    cache = cache_of(tmp_path)
    for shard in (0, 1):
        cache.write(shard, ROWS)
    if finished:
        cache.finish()
    damage(cache.path(1))
    if finished:
        with pytest.raises(UserError, match=cache.path(1).name):
            open_scores(tmp_path, KEY, "stream", 4, "ref")
    again = cache_of(tmp_path)
    assert (again.has(0), again.has(1)) == (True, False)
    again.write(1, ROWS)
    again.finish()
    assert open_scores(tmp_path, KEY, "stream", 4, "ref")[2].tolist() == ROWS[0].tolist()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:50])


def rename_a_key(path: Path) -> None:
    path.write_text(path.read_text().replace('"shard_sequences"', '"shard_sequencez"'))


def change_the_size(path: Path) -> None:
    facts = json.loads(path.read_text())
    del facts["checksum"]
    path.write_text(json.dumps(facts | {"shard_sequences": 4}))


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, rename_a_key, change_the_size])
def test_a_damaged_marker_of_scores_is_named_and_all_made_again(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    cache = cache_of(tmp_path)
    for shard in (0, 1):
        cache.write(shard, ROWS)
    cache.finish()
    marker = cache.folder / "complete.json"
    damage(marker)
    # Another set beside it is no reason to fail.
    with pytest.raises(UserError, match="has no scores of ref"):
        open_scores(tmp_path, replace(KEY, model="other"), "stream", 4, "ref")
    with pytest.raises(UserError, match=r"complete\.json .* was removed.*score only what"):
        open_scores(tmp_path, KEY, "stream", 4, "ref")
    damage_again = cache_of(tmp_path)
    for shard in (0, 1):
        assert not damage_again.has(shard)
        damage_again.write(shard, ROWS)
    damage_again.finish()
    damage(marker)
    # The stage that makes them again.
    again = cache_of(tmp_path)
    assert again.drop_damaged() == ["complete.json"] and list(again.folder.iterdir()) == []
    for shard in (0, 1):
        again.write(shard, ROWS)
    again.finish()
    assert open_scores(tmp_path, KEY, "stream", 4, "ref")[2].tolist() == ROWS[0].tolist()


@pytest.mark.parametrize("damage", [None, truncate, flip_a_bit, Path.unlink])
def test_a_score_stage_without_a_whole_marker_is_not_made(
    tmp_path: Path, damage: Callable[[Path], None] | None
) -> None:
    cache, stage_dir = cache_of(tmp_path / "scores"), StageDir(tmp_path / "score")
    for shard in (0, 1):
        cache.write(shard, ROWS)
    cache.finish()
    write_json(stage_dir.result, {"kind": "score", "seconds": 1, "scores": str(cache.folder)})
    stage_dir.config.touch()
    if damage is not None:
        damage(cache.folder / "complete.json")
    assert is_made(stage_dir) == (damage is None)


@pytest.fixture
def pack_here(tmp_path: Path) -> Callable[[], PackedDataset]:
    tokenizer = build_tokenizer(TokenizerConfig(kind="world"), {}, ".", 0)

    def work() -> PackedDataset:
        return pack(
            {"world": SourceConfig(kind="world", stream="mid_train")}, tokenizer,
            sequence_length=32, document_mask=True, num_tokens=32 * 20, seed=0, data_root=".",
            out_dir=tmp_path / "data", data_sha256={"world": ""},
        )  # fmt: skip

    return work


@pytest.mark.parametrize(
    "instant", ["while packed data is written", "before packed data is renamed"]
)
def test_packed_data_cut_short_is_none(
    instant: str, tmp_path: Path, pack_here: Callable[[], PackedDataset]
) -> None:
    killed_at(instant, pack_here)
    assert [path.name[:9] for path in (tmp_path / "data").iterdir()] == [".packing-"]
    assert len(pack_here()) == 20


@pytest.mark.parametrize("name", ["tokens.bin", "starts.bin", "sources.bin", "complete.json"])
@pytest.mark.parametrize("damage", [flip_a_bit, cut_off])
def test_damaged_packed_data_is_named_and_made_again(
    name: str, damage: Callable[[Path], None], pack_here: Callable[[], PackedDataset],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = pack_here().folder
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    if name == "complete.json":
        (folder / name).write_bytes(whole[name][: len(whole[name]) // 2])
    else:
        damage(folder / name)
    pack_here()
    assert f"{folder / name}: damaged" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"num_sequences"', '"num_sequencez"'), ('"dtype": "uint16"', '"dtype": "uint9"'),
        ('"dtype": "uint16"', '"dtype": "uint32"'), ('"dtype": "uint16"', '"dtype": 16'),
        ('"num_sequences": 20', '"num_sequences": "20"'), ('"share"', '"shape"'),
        ('"num_sequences": 20', '"num_sequences": 21'), ('"sources"', '"sourcez"'),
        ('"bytes"', '"bites"'), ('"tokens.bin"', '"token.bin"'),
    ],
)  # fmt: skip
def test_a_marker_of_packed_data_that_parses_can_be_damaged_too(
    old: str, new: str, sealed: bool, pack_here: Callable[[], PackedDataset],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    marker = pack_here().folder / "complete.json"
    whole = marker.read_text()
    assert old in whole
    facts = json.loads(whole.replace(old, new))
    if not sealed:
        del facts["checksum"]
    marker.write_text(json.dumps(facts))
    assert len(pack_here()) == 20
    assert f"{marker}: damaged" in capsys.readouterr().out
    assert marker.read_text() == whole


@pytest.mark.parametrize("damage", [cut_off, flip_a_bit, truncate, lambda p: p.write_text("[1")])
def test_a_damaged_cache_of_hashes_is_thrown_away(
    damage: Callable[[Path], None], tiny_model: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "hashes.json"
    expected = content_hash(tiny_model, cache)
    whole = cache.read_text()
    cache.write_text(whole.rstrip())
    damage(cache)
    assert content_hash(tiny_model, cache) == expected == content_hash(tiny_model)
    assert cache.read_text() == whole


def test_a_log_that_takes_no_line_leaves_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(stage_dir: StageDir) -> None:
        raise UserError("no space")

    monkeypatch.setattr(worker, "run_job", fails)
    full = open("/dev/full", "w")  # noqa: SIM115 - its end fails
    monkeypatch.setattr(sys, "stdout", full)
    code = worker.run_rank(StageDir(tmp_path))
    monkeypatch.undo()
    with contextlib.suppress(OSError):
        full.close()
    heartbeat._own.clear()
    assert code == WRONG_INPUT_CODE


def test_a_disk_without_room_for_a_line_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shortage(tmp_path) == ""
    monkeypatch.setattr("pipelines.run_dir.disk.free_bytes", lambda folder: 512)
    assert "its disk has 512 bytes (512B) free" in shortage(tmp_path)


def test_bytes_needed_and_free_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a model: it needs 1000000000000000000 bytes .* bytes .*"):
        require_space(tmp_path / "not" / "yet", 10**18, "a model")
    require_space(tmp_path, 1, "a byte")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "free"),
        (RuntimeError("[enforce fail at inline_container.cc] PytorchStreamWriter failed"), "free"),
        (OSError(errno.EROFS, "Read-only file system"), "read-only"),
        (OSError(errno.ENOENT, "No such file"), None),
        (ValueError("no"), None),
    ],
)
def test_failed_writes_are_told_from_other_errors(
    error: Exception, words: str | None, tmp_path: Path
) -> None:
    try:
        raise RuntimeError("while saving") from error
    except RuntimeError as raised:
        why = explained(raised, tmp_path)
    assert (why is None) == (words is None)
    assert words is None or words in str(why)
