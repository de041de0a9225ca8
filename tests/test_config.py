"""Recipes: every shipped one loads, overrides and mistakes are what they say, identity follows."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import UserError
from pipelines.recipe import load as recipes
from pipelines.recipe.schema import Config, SourceConfig
from pipelines.run_dir.paths import read_yaml, write_yaml


def shipped() -> list[str]:
    names = sorted(path.stem for path in recipes.configs_dir().glob("*.yaml"))
    assert names, "an empty glob tests nothing"
    return names


def refusal(tmp_path: Path, text: str = "", overrides: list[str] | None = None) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        recipes.load(str(path), overrides)
    return str(error.value)


@pytest.fixture(autouse=True)
def remit_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMIT_DATA", str(tmp_path))


def test_names_are_the_files_of_configs(checkout: Path) -> None:
    assert shipped() == sorted(path.stem for path in (checkout / "configs").glob("*.yaml"))
    suites = sorted(path.stem for path in (recipes.configs_dir() / "eval").glob("*.yaml"))
    assert suites == ["paper10", "quick", "world"]
    assert "world-tiny" in shipped()


@pytest.mark.parametrize("name", shipped())
def test_shipped_recipe_loads(name: str, checkout: Path) -> None:
    loaded = recipes.load(name)
    assert loaded.name == Path(name).stem
    header = (checkout / "configs" / f"{name}.yaml").read_text().splitlines()
    comments = [line for line in header if line.startswith("#")]
    assert any("remit " in line for line in comments), "its header says how to launch it"


@pytest.mark.parametrize("name", shipped())
def test_round_trip(name: str, tmp_path: Path) -> None:
    loaded = recipes.load(name)
    values = recipes.to_dict(loaded)
    assert recipes.from_dict(values) == loaded
    write_yaml(values, tmp_path / "config.yaml")
    assert recipes.from_dict(read_yaml(tmp_path / "config.yaml")) == loaded
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("seed=7", ("seed",), 7),
        ("mid_train.remit.eps=0.1", ("mid_train", "remit", "eps"), 0.1),
        ("mid_train.learning_rate=1e-4", ("mid_train", "learning_rate"), 1e-4),
        ("pretrain.tokens=20_000", ("pretrain", "tokens"), 20_000),
        ("dpo.enabled=false", ("dpo", "enabled"), False),
        ("launch.env.A=b", ("launch", "env"), {"A": "b"}),
        ("compare.arms=[ntp,remit]", ("compare", "arms"), ["ntp", "remit"]),
        ("stage.name=lr1e-4", ("stage", "name"), "lr1e-4"),
    ],
)
def test_override(override: str, path: tuple[str, ...], value: Any) -> None:
    found: Any = recipes.load("world-tiny", [override])
    for key in path:
        found = getattr(found, key)
    assert found == value and type(found) is type(value)


def test_the_last_override_wins_and_reaches_into_sources() -> None:
    loaded = recipes.load(
        "world-tiny", ["seed=1", "sft.sources.world.weight=0.5", "seed=2", "dpo.sources.b.path=b"]
    )
    assert loaded.seed == 2
    assert loaded.sft.sources["world"] == SourceConfig(kind="world", stream="sft", weight=0.5)
    assert loaded.dpo.sources["b"].path == "b"


def test_a_path_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("world-tiny").write_text("seed: 5\n")
    assert recipes.load("world-tiny").seed == 5


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        (
            "mid_train: {remit: {epss: 0.1}}",
            [],
            ["mine.yaml", "'mid_train.remit.epss'", "Did you mean 'eps'?"],
        ),
        ("midtrain: {eps: 0.1}", [], ["mine.yaml", "'midtrain'", "Did you mean 'mid_train'?"]),
        ("sft: {sources: {a: {pth: x}}}", [], ["'sft.sources.a.pth'", "'path'"]),
        ("", ["seeed=1"], ["override 'seeed=1'", "Did you mean 'seed'?"]),
        ("", ["seed"], ["override 'seed'", "key=value"]),
        ("", ["=3"], ["override '=3'", "key=value"]),
        ("seed: many", [], ["mine.yaml", "'seed'", "many"]),
        ("mid_train: {objective: rho}", [], ["'mid_train.objective'", "rho"]),
        ("mid_train: 3", [], ["mine.yaml", "mid_train"]),
        ("- a\n- b", [], ["mine.yaml", "mapping"]),
        ("a: [1", [], ["mine.yaml", "not valid YAML"]),
        ("data_root: ${oc.env:NOT_SET_HERE}", [], ["mine.yaml", "data_root", "NOT_SET_HERE"]),
        ("mid_train: {remit: {eps: 1.5}}", [], ["mine.yaml", "mid_train.remit.eps"]),
        ("sft: {max_steps: 0}", [], ["sft.max_steps"]),
        ("dpo: {zero_stage: 4}", [], ["dpo.zero_stage"]),
        (
            "rlvr: {num_generations: 3, global_batch_size: 16}",
            [],
            ["rlvr.global_batch_size = 16", "3"],
        ),
        ("sft: {sources: {a: {hash_range: [0.5, 0.5]}}}", [], ["sft.sources.a.hash_range"]),
        ("flywheel: {iterations: -1}", [], ["flywheel.iterations"]),
        ("sequence_length: 4", [], ["sequence_length"]),
        ("mid_train:\n  tokens: ???", [], ["mine.yaml", "mid_train.tokens"]),
    ],
)
def test_mistakes_are_named(
    tmp_path: Path, text: str, overrides: list[str], words: list[str]
) -> None:
    said = refusal(tmp_path, text, overrides)
    assert [word for word in words if word not in said] == []
    assert "\n" not in said or "not valid YAML" in said


def test_unknown_recipe_lists_those_there_are() -> None:
    with pytest.raises(UserError, match=r"world-tinny.*world-tiny.*Did you mean 'world-tiny'\?"):
        recipes.load("world-tinny")


def test_result_fields_leave_out_what_cannot_change_a_result() -> None:
    loaded = recipes.load("world-tiny")
    elsewhere = replace(
        loaded,
        name="other",
        data_root="/other",
        launch=replace(loaded.launch, gpus=4, env={"A": "b"}),
        stage=replace(loaded.stage, name="other"),
        flywheel=replace(loaded.flywheel, iterations=9),
        mid_train=replace(
            loaded.mid_train, zero_stage=3, micro_batch_size=1, save_total_limit=7, save_steps=3
        ),
    )
    assert recipes.result_fields(elsewhere) == recipes.result_fields(loaded)
    for changed in (
        replace(loaded, seed=1),
        replace(loaded, mid_train=replace(loaded.mid_train, learning_rate=0.1)),
        replace(loaded, dpo=replace(loaded.dpo, sources={})),
    ):
        assert recipes.result_fields(changed) != recipes.result_fields(loaded)


def test_every_field_says_what_it_is() -> None:
    def silent(of: type, prefix: str = "") -> list[str]:
        found = []
        for field in fields(of):
            if not field.metadata.get("help"):
                found.append(prefix + field.name)
            made = getattr(of(), field.name)
            if hasattr(made, "__dataclass_fields__"):
                found += silent(type(made), f"{prefix}{field.name}.")
        return found

    assert silent(Config) == []


def test_trackers_are_known() -> None:
    assert recipes.load("world").report_to == []
    assert recipes.load("world", ["report_to=[wandb]"]).report_to == ["wandb"]
    with pytest.raises(UserError, match="Did you mean 'tensorboard'"):
        recipes.load("world", ["report_to=[tensorbord]"])


def by_epochs(section: str, *sources: str) -> str:
    listed = ", ".join(sources)
    return f"{section}: {{max_steps: 0, num_train_epochs: 2, sources: {{{listed}}}}}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sft: {num_train_epochs: 2}", ["sft.max_steps = 200 and", "= 2 both set", "max_steps=0"]),
        ("dpo: {max_steps: 0}", ["dpo.max_steps = 0", "set dpo.num_train_epochs above 0"]),
        ("rlvr: {max_steps: 0}", ["rlvr.max_steps = 0 must be at least 1"]),
        (
            by_epochs("sft", "a: {kind: world, stream: sft}"),
            ["sft.num_train_epochs", "sft.sources.a", "never ends", "Set sft.sources.a.limit"],
        ),
        (
            by_epochs("dpo", "a: {path: a}", "b: {path: b, weight: 2}"),
            ["dpo.sources.b.weight = 2", "one weight", "its limit", "dpo.max_steps"],
        ),
    ],
)
def test_epochs_that_cannot_be(tmp_path: Path, text: str, words: list[str]) -> None:
    said = refusal(tmp_path, text)
    assert [word for word in words if word not in said] == []


def test_epochs_with_sources_that_end(tmp_path: Path) -> None:
    text = by_epochs(
        "sft", "a: {kind: world, stream: sft, limit: 9}", "b: {path: b}", "c: {path: c, weight: 0}"
    )
    (tmp_path / "mine.yaml").write_text(text)
    loaded = recipes.load(str(tmp_path / "mine.yaml"))
    assert (loaded.sft.max_steps, loaded.sft.num_train_epochs) == (0, 2.0)
