"""Names from data, recipes and run directories that become paths stay in their folder."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from pipelines.errors import UserError
from pipelines.evals.benchmarks import _changes
from pipelines.recipe import load as recipes
from pipelines.recipe.schema import BenchmarkConfig
from pipelines.report import write_report
from pipelines.run_dir import ledger
from pipelines.run_dir.paths import RunDir

OUT = ["../out", "/etc/passwd", "a/../../out", "..", "a\0b"]


@pytest.mark.parametrize("name", ["../out", "/etc/out", "..", ".", "a/b"])
def test_the_name_of_a_recipe(name: str) -> None:
    with pytest.raises(UserError, match="names a folder"):
        recipes.load("world-tiny", [f"name={name}"])


@pytest.mark.parametrize("name", OUT)
def test_the_data_set_of_a_task_file(tmp_path: Path, name: str) -> None:
    """`{name}` of `files` is filled with what the task's own file says."""
    (tmp_path / "data").mkdir()
    (tmp_path / "out.json").write_text("[]")
    entry = SimpleNamespace(cfg={"dataset_name": name}, yaml_path="task.yaml")
    benchmark = BenchmarkConfig(files={"test": "{name}.json"})
    with pytest.raises(UserError, match="plain name"):
        _changes("mine", entry, benchmark, tmp_path / "data")


@pytest.mark.parametrize("name", [*OUT, "", 3, None])
def test_stages_of_a_ledger(tmp_path: Path, name: object) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text(json.dumps({"time": 1, "event": "start", "stage": name}) + "\n")
    ledger.append(path, "start", "round-1/10-mid-train")
    assert [entry["stage"] for entry in ledger.read(path)] == ["round-1/10-mid-train"]


def test_stages_of_a_plan(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.root.mkdir()
    ledger.append(run.ledger, "start", "base", kind="pretrain")
    run.flywheel_plan.write_text(
        "config: {}\nstages: [{name: ../../out, kind: evaluate}]\nlayout: 2\n"
    )
    with pytest.raises(UserError, match=r"names a stage '\.\./\.\./out'"):
        write_report(run)


def test_no_interpolation_of_a_recipe_runs_code(tmp_path: Path) -> None:
    """Only OmegaConf's own resolvers are there; docs/background/security.md says what they do."""
    known = (
        "oc.coerce", "oc.create", "oc.decode", "oc.deprecated", "oc.dict.keys", "oc.dict.values",
        "oc.env", "oc.select",
    )  # fmt: skip
    from omegaconf.basecontainer import BaseContainer

    recipes.load("world-tiny")
    assert set(BaseContainer._resolvers) == set(known)
    assert all(OmegaConf.has_resolver(name) for name in known)


@pytest.mark.parametrize(
    "text",
    [
        "name: !!python/object/apply:os.system ['touch owned']",
        "name: !!python/name:os.system", "name: !function os.system",
        "seed: !!python/object/new:os.system ['touch owned']",
    ],
)  # fmt: skip
def test_tags_that_make_objects_are_refused(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="not valid YAML"):
        recipes.load(str(path))
    assert [found.name for found in tmp_path.iterdir()] == ["mine.yaml"]


def test_yaml_that_is_deep_or_grows(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    many = "\n".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]" for i in range(9))
    for text, words in (
        ("a: " + "[" * 100_000, "deeper than 50 levels"),
        ("- " * 100_000 + "a", "deeper than 50 levels"),
        (f"a0: &a0 x\n{many}", "more than 100000 values"),
        ("a: &a [*a]", "refers to a value that contains it"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=words):
            recipes.load(str(path))
