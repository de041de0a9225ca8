"""Hub names without network: models from the hub's cache on disk, data sets from a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tiny_model: Path, tmp_path: Path) -> dict[str, str]:
    """The environment of a machine whose hub cache holds `org/tiny`, at its branch `stage1`."""
    repository = tmp_path / "hub" / "models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "stage1").write_text(REVISION)
    shutil.copytree(tiny_model, repository / "snapshots" / REVISION)
    return {"HF_HUB_CACHE": str(tmp_path / "hub")}


def test_a_base_by_name_and_revision(
    remit: Callable[..., Any], hub: dict[str, str], tiny_model: Path, tmp_path: Path
) -> None:
    def adopt(revision: str) -> Any:
        return remit(
            "pretrain-ckpt", "--config", "world-tiny", "--base", f"org/tiny@{revision}",
            "--run-dir", tmp_path / "run", env=hub,
        )  # fmt: skip

    refused = adopt("stage9")
    assert refused.returncode == 2 and "--base org/tiny" in refused.stderr
    assert adopt("stage1").returncode == 0
    weights = (tmp_path / "run" / "base" / "model" / "model.safetensors").read_bytes()
    assert weights == (tiny_model / "model.safetensors").read_bytes()
    assert adopt("stage1").returncode == 0
    events = [json.loads(line)["event"] for line in (tmp_path / "run" / "ledger.jsonl").open()]
    assert events == ["start", "finish", "skip"]


def test_a_data_set_by_name(
    remit: Callable[..., Any],
    write_recipe: Callable[[dict[str, Any]], Path],
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    data = tmp_path / "data-set"
    data.mkdir()
    (data / "train.jsonl").write_text(
        "".join(json.dumps({"q": f"{i} + 1 =", "a": str(i + 1)}) + "\n" for i in range(40))
    )
    source = {"kind": "hub", "path": str(data), "text": "{{ q }} {{ a }}"}
    recipe = write_recipe({"mid_train": {"sources": {"world": {"weight": 0}, "named": source}}})
    args = ("mid-train", "--config", recipe, "--base", tiny_model, "--run-dir", tmp_path / "run",
            "mid_train.tokens=2048")  # fmt: skip
    remit(*args, check=True)
    result = json.loads((tmp_path / "run" / "mid-train" / "result.json").read_text())
    assert set(result["mixture"]) == {"named"} and result["mixture"]["named"]["epochs"] > 1
    missing = remit(*args, "mid_train.sources.named.split=dev", "stage.name=dev")
    assert missing.returncode == 2 and "mid_train.sources.named" in missing.stderr
