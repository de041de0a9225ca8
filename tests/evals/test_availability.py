"""What cannot be measured here is refused by name; only a hub that says no is a reason to go on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.errors import UserError
from pipelines.evals.availability import check_available
from pipelines.recipe.schema import BenchmarkConfig, EvalConfig, SourceConfig, TaskConfig

SUMS = BenchmarkConfig(files={"test": "sums/test.jsonl"})
SETTINGS = EvalConfig(benchmarks={"sums": SUMS, "off": BenchmarkConfig(enabled=False)})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmarks without local files are asked of the hub."""
    for name in ("REMIT_DATA", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


def test_nothing_at_all_can_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMIT_DATA", str(tmp_path))
    with pytest.raises(UserError, match=f"sums: file {tmp_path}/sums/test.jsonl"):
        check_available(SETTINGS, str(tmp_path))
    parts = EvalConfig(benchmarks={"bbh": BenchmarkConfig(files={"test": "bbh/{name}.json"})})
    missing = rf"file {tmp_path}/bbh/\*\.json does not exist \(docs/guides/evaluation\.md lists"
    with pytest.raises(UserError, match=missing):
        check_available(parts, str(tmp_path))
    text = {"web": SourceConfig()}
    check_available(EvalConfig(benchmarks={"sums": SUMS}, bits_per_byte=text), str(tmp_path))
    task = {"own": TaskConfig()}
    check_available(EvalConfig(benchmarks={"sums": SUMS}, tasks=task), str(tmp_path))
    (tmp_path / "sums").mkdir()
    (tmp_path / "sums" / "test.jsonl").touch()
    check_available(SETTINGS, str(tmp_path))


def test_a_data_folder_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    monkeypatch.setenv("REMIT_DATA", str(gone))
    with pytest.raises(UserError, match=f"^REMIT_DATA={gone}: .* not a folder"):
        check_available(SETTINGS, str(gone))
    check_available(EvalConfig(), str(gone))


def refused(monkeypatch: pytest.MonkeyPatch, error: Exception) -> str:
    """What is said where loading a benchmark's data ends with an error."""
    pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")
    from pipelines.evals import hub_refusal

    def leaves(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(hub_refusal, "leaves", leaves)
    loaded, reason = hub_refusal.loaded_or_refused("sums", SUMS, None, SETTINGS, "/nowhere")
    assert not loaded
    return reason


def http_error(status: int) -> Exception:
    from huggingface_hub.errors import HfHubHTTPError

    error = HfHubHTTPError.__new__(HfHubHTTPError)
    Exception.__init__(error, f"status {status}")
    error.response = SimpleNamespace(status_code=status)  # type: ignore[assignment]
    return error


@pytest.mark.usefixtures("hub")
def test_a_gated_set_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets.exceptions import DatasetNotFoundError

    said = refused(monkeypatch, DatasetNotFoundError("Dataset 'x' is a gated dataset on the Hub."))
    reason = "the hub refused access to its data: DatasetNotFoundError"
    assert said.startswith(f"{reason}: Dataset 'x' is a gated")
    assert "status 403" in refused(monkeypatch, http_error(403))


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("kind", ["connection", "timeout", "offline", "http", "missing file"])
def test_a_hub_that_does_not_answer_is_an_error(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets.exceptions import DataFilesNotFoundError
    from huggingface_hub.errors import OfflineModeIsEnabled

    error = {
        "connection": ConnectionError("Couldn't reach 'x' on the Hub"),
        "timeout": TimeoutError("timed out"),
        "offline": OfflineModeIsEnabled("offline mode is enabled"),
        "http": http_error(503),
        "missing file": DataFilesNotFoundError("none"),
    }[kind]
    with pytest.raises(
        UserError, match=r"eval\.benchmarks\.sums: its data could not be downloaded from the hub"
    ):
        refused(monkeypatch, error)


def test_an_error_of_local_files_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(PermissionError):
        refused(monkeypatch, PermissionError("no"))
    with pytest.raises(UserError, match="could not be downloaded"):
        refused(monkeypatch, ConnectionError("no"))


def test_lengths_of_a_plan_before_anything_trains(tmp_path: Path) -> None:
    from pipelines.models.checkpoint import ModelRef
    from pipelines.plan import flywheel
    from pipelines.plan.context import longest_context
    from pipelines.plan.preflight import check_plan
    from pipelines.recipe import load as config
    from pipelines.run_dir.paths import RunDir

    asks = "eval.benchmarks={sums: {files: {test: sums.jsonl}, max_new_tokens: 128}}"
    (tmp_path / "sums.jsonl").touch()
    loaded = config.load("world-tiny", [asks, f"data_root={tmp_path}"])
    assert loaded.sequence_length == 128
    stages = flywheel.plan_flywheel(loaded, None, None)
    evaluated = [stage for stage in stages if stage.kind == "evaluate"]
    assert {longest_context(stage, stages) for stage in evaluated} == {128}
    with pytest.raises(UserError, match=r"max_new_tokens = 128 leaves no room .* 128 tokens"):
        check_plan(stages, RunDir(tmp_path / "run"))
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 4096}')
    given = ModelRef("given", folder=tmp_path)
    stages = flywheel.plan_flywheel(loaded, given, None)
    assert {longest_context(s, stages) for s in stages if s.kind == "evaluate"} == {4096}
    assert longest_context(evaluated[-1], evaluated) is None
