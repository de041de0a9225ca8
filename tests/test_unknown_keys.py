"""Unknown keys: the name here of what another program, or an older remit, calls otherwise."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipelines.errors import UserError
from pipelines.recipe import load as recipes
from pipelines.recipe.foreign_keys import FOREIGN, FORMER
from pipelines.recipe.unknown_keys import hint, schema_keys

ENTRIES = [(key, text) for sentences in FOREIGN.values() for key, text in sentences.items()]
TRAINED = ("pretrain", "mid_train", "sft", "dpo", "rlvr")


def known(name: str) -> bool:
    return any(f".{key}".endswith(f".{name}") for key in schema_keys())


def refused(override: str) -> str:
    with pytest.raises(UserError) as error:
        recipes.load("world-tiny", [override])
    return str(error.value)


def test_the_tables_are_sorted_and_name_each_key_once() -> None:
    keys = [key for key, _ in ENTRIES]
    assert len(keys) == len(set(keys)) >= 40 and not set(keys) & set(FORMER)
    assert all(list(of) == sorted(of) for of in (*FOREIGN.values(), FORMER))


@pytest.mark.parametrize(("key", "text"), ENTRIES)
def test_a_foreign_name(key: str, text: str) -> None:
    assert key not in schema_keys(), "it is refused where it stands alone"
    quoted = re.findall(r"(?<!\w)'([\w.]+)'", text)
    assert [name for name in quoted if not known(name)] == []
    assert hint(key, ["seed"]) == f". {text}"


def test_foreign_names_in_sections() -> None:
    bare, in_section = map(refused, ("per_device_train_batch_size=4", "sft.torch_dtype=bf16"))
    assert "here, in a section: for example mid_train.micro_batch_size=4." in bare
    assert in_section.endswith("It is called 'sft.dtype' here: bf16 or fp32.")
    words = "It is called 'sft.micro_batch_size' here. It counts"
    assert words in refused("sft.per_device_train_batch_size=4")
    assert "'launch.gpus'" in refused("nproc_per_node=8")
    assert "'launch.gpus'" in refused("launch.nproc-per-node=8")
    assert "'zero_stage'" in refused("zero_optimization.stage=2")
    assert "sequences, not tokens" in refused("global_batch_size=1024")
    assert "'tokens' in pretrain" in refused("mid_train.max_steps=9")
    assert "'rlvr.max_steps'" in refused("rlvr.num_train_epochs=1")


def test_a_foreign_name_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("sft: {gradient_accumulation_steps: 8}")
    with pytest.raises(UserError, match=r"mine\.yaml.*'global_batch_size'.*accumulation follows"):
        recipes.load(str(path))


@pytest.mark.parametrize(("old", "new"), FORMER.items())
def test_a_former_name_of_remit(old: str, new: str) -> None:
    whole = [key for key in schema_keys() if f".{key}".endswith(f".{new}")]
    assert whole, "the new name is there"
    for key in whole:
        section = key.removesuffix(new)
        before = f"{section}{old}".replace("<name>", "own")
        if before in schema_keys() or f"{section}{old}" in schema_keys():
            continue
        said = refused(f"{before}=1")
        assert f"unknown key '{before}'" in said
        assert f"Did you mean '{key.replace('<name>', 'own')}'?" in said


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("mid_train.eps=0.1", "'mid_train.remit.eps'"),
        ("eps=0.1", "Did you mean 'mid_train.remit.eps'?"),
        ("remit.eps=0.1", "Did you mean 'mid_train.remit'?"),
        ("rho1_keep=0.5", "Did you mean 'mid_train.rho1.keep'?"),
        ("sft.beta=0.1", "Did you mean 'dpo.beta' or 'rlvr.beta'?"),
        ("learning_rate=1e-4", "'pretrain.learning_rate', 'mid_train.learning_rate', 'sft.learn"),
        ("sft.attn_implementation=eager", "Did you mean 'model.attn_implementation'?"),
        ("mid_train.lerning_rate=1", "Did you mean 'learning_rate'?"),
        ("midtrain.tokens=1", "Did you mean 'mid_train'?"),
        ("qqqqqq=1", "unknown key 'qqqqqq'."),
    ],
)
def test_the_nearest_name_of_the_whole_tree(override: str, words: str) -> None:
    assert words in refused(override)
