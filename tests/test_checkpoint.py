"""CKPT folders: only safetensors that are what they say, and nothing outside the folder."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import UserError
from pipelines.models.checkpoint import (
    check_made_model,
    content_hash,
    find_checkpoint,
    own_code,
)


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        find_checkpoint(str(folder), "--base")
    return str(error.value)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5"])
def test_pickles_are_refused_with_the_way_to_convert(model: Path, suffix: str) -> None:
    (model / "model.safetensors").rename(model / f"pytorch_model{suffix}")
    said = refusal(model)
    assert f"pytorch_model{suffix}" in said and "save_pretrained" in said and "pickle" in said


def test_a_pickle_beside_the_weights_is_never_opened(model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    trap = f"cos\nsystem\n(S'touch {tmp_path}/ran'\ntR."
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth"):
        (model / name).write_text(trap)
    folder = find_checkpoint(str(model), "--base").folder
    AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    assert not (tmp_path / "ran").exists()


def change_header(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    whole = path.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + length])
    changed = change(header)
    text = json.dumps(header if changed is None else changed).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])


def first(header: dict[str, Any]) -> dict[str, Any]:
    return next(v for k, v in header.items() if k != "__metadata__")


LIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "shape": lambda h: first(h).update(shape=[10**9]),
    "type": lambda h: first(h).update(dtype="F64"),
    "unknown type": lambda h: first(h).update(dtype="PICKLE"),
    "overlap": lambda h: first(h).update(data_offsets=[0, 4]),
    "negative": lambda h: first(h).update(data_offsets=[-4, 4]),
    "words": lambda h: first(h).update(data_offsets=["0", "4"]),
    "no offsets": lambda h: first(h).pop("data_offsets") and None,
    "list": lambda h: [h],
    "empty": lambda h: {},
}


@pytest.mark.parametrize("name", LIES)
def test_a_header_that_lies(model: Path, name: str) -> None:
    change_header(model / "model.safetensors", LIES[name])
    assert "model.safetensors" in refusal(model)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 200_000_000, 1])
def test_a_header_length_that_lies(model: Path, length: int) -> None:
    path = model / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    assert "not a safetensors file" in refusal(model)


def test_a_header_as_deep_as_the_stack(model: Path) -> None:
    text = b"[" * 200_000
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    assert "not a safetensors file" in refusal(model)
    (model / "model.safetensors").write_bytes(weights)
    (model / "config.json").write_bytes(text)
    assert "config.json" in refusal(model)


@pytest.mark.parametrize("target", ["../elsewhere.safetensors", "/etc/passwd", "pytorch_model.bin"])
def test_an_index_that_leads_out(model: Path, target: str) -> None:
    shutil.copy(model / "model.safetensors", model.parent / "elsewhere.safetensors")
    index = {"weight_map": {"a": "model.safetensors", "b": target}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert target in refusal(model)


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json", "notes.txt"])
def test_a_link_to_a_file_outside_is_refused(model: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("secret")
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(tmp_path / "secret")
    said = refusal(model)
    assert name in said and "link leads out of the model's folder" in said


@pytest.mark.parametrize(
    "name", ["additional_chat_templates/x.jinja", "a/b/notes.txt", "a/more.safetensors"]
)
def test_a_link_out_of_a_subfolder_is_refused(model: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("secret")
    (model / name).parent.mkdir(parents=True)
    (model / name).symlink_to(tmp_path / "secret")
    said = refusal(model)
    assert str(model / name) in said and "link leads out of the model's folder" in said


@pytest.mark.parametrize("name", ["additional_chat_templates", "folder.safetensors"])
def test_a_link_to_a_folder_outside_is_refused(model: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "secrets").mkdir()
    (model / name).symlink_to(tmp_path / "secrets")
    said = refusal(model)
    assert name in said and "link leads out of the model's folder" in said


def test_a_link_to_itself_is_refused(model: Path) -> None:
    (model / "a").mkdir()
    (model / "a" / "loop").symlink_to("loop")
    assert str(model / "a" / "loop") in refusal(model)


def test_links_that_are_allowed(model: Path, tmp_path: Path) -> None:
    hub = tmp_path / "models--org--name"
    (hub / "snapshots").mkdir(parents=True)
    (hub / "blobs").mkdir()
    snapshot = Path(shutil.move(model, hub / "snapshots" / "abc"))
    for path in list(snapshot.iterdir()):
        shutil.move(path, hub / "blobs" / path.name)
        path.symlink_to(Path("../../blobs") / path.name)
    (snapshot / "more").mkdir()
    (snapshot / "more" / "config.json").symlink_to(Path("../../../blobs/config.json"))
    (snapshot / "same").symlink_to("more")
    assert find_checkpoint(str(snapshot), "--base").folder == snapshot
    elsewhere = tmp_path / "big.safetensors"
    shutil.move(hub / "blobs" / "model.safetensors", elsewhere)
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(elsewhere)
    assert find_checkpoint(str(snapshot), "--base").folder == snapshot


@pytest.mark.parametrize("name", ["model.safetensors", "more.safetensors", "config.json"])
def test_a_pipe_does_not_hang(model: Path, name: str) -> None:
    (model / name).unlink(missing_ok=True)
    os.mkfifo(model / name)
    assert str(model) in refusal(model)


def test_an_adapter_is_refused(model: Path) -> None:
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
    said = refusal(model)
    assert "this is a LoRA adapter, not a model" in said and "merge_and_unload" in said
    # As peft saves it: with neither the model's config nor its weights.
    for name in ("config.json", "model.safetensors"):
        (model / name).unlink()
    (model / "adapter_model.safetensors").touch()
    assert refusal(model) == said


@pytest.mark.parametrize("spoil", ["missing", "cut", "no config"])
def test_a_damaged_model_of_a_stage_is_restored_by_its_command(
    model: Path, tmp_path: Path, spoil: str
) -> None:
    weights = model / "model.safetensors"
    if spoil == "missing":
        weights.unlink()
    elif spoil == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        (model / "config.json").unlink()
    assert "result.json" not in refusal(model)
    (tmp_path / "config.yaml").write_text("stage: x")
    (tmp_path / "result.json").write_text('{"model_sha256": "0"}')
    said = refusal(tmp_path)
    words = {"missing": "model.safetensors is missing", "cut": "bytes instead of"}
    assert words.get(spoil, "config.json is missing") in said and "download" not in said
    assert f"Remove {tmp_path / 'result.json'} and run that stage's command again" in said
    with pytest.raises(UserError, match=f"{words.get(spoil, 'config.json is missing')}.*Remove"):
        check_made_model(model, "1")


def with_code(model: Path, trap: Path) -> Path:
    (model / "modeling_mine.py").write_text(f"open({str(trap)!r}, 'w')\n")
    config = json.loads((model / "config.json").read_text())
    named = {"AutoConfig": "modeling_mine.Config", "AutoModelForCausalLM": "modeling_mine.Model"}
    (model / "config.json").write_text(
        json.dumps(config | {"model_type": "mine", "auto_map": named})
    )
    return model


@pytest.mark.parametrize("trusted", ["[]", "[someone/else]"])
def test_a_models_own_code_does_not_run_unless_that_model_is_named(
    remit: Callable[..., Any], model: Path, tmp_path: Path, trusted: str
) -> None:
    with_code(model, tmp_path / "ran")
    assert own_code(model) == ["modeling_mine.Config", "modeling_mine.Model"]
    done = remit("mid-train", "--base", model, "--config", "world-tiny",
                 f"trust_remote_code={trusted}", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert f"trust_remote_code=[{model}]" in " ".join(done.stderr.split())
    assert not (tmp_path / "ran").exists()


def test_a_models_code_is_part_of_its_hash(model: Path, tmp_path: Path) -> None:
    before = content_hash(model)
    assert content_hash(with_code(model, tmp_path / "ran")) != before
    known = content_hash(model)
    (model / "modeling_mine.py").write_text("import os\n")
    assert content_hash(model) != known


@pytest.mark.parametrize("name", ["additional_chat_templates/tool.jinja", "own/modeling.py"])
def test_templates_and_code_of_subfolders_are_part_of_the_hash(model: Path, name: str) -> None:
    without = content_hash(model)
    (model / name).parent.mkdir()
    assert content_hash(model) == without
    (model / name).write_text("one")
    first = content_hash(model)
    (model / name).write_text("two")
    assert len({without, first, content_hash(model)}) == 3


def test_the_hash_of_a_folder_without_subfolders(model: Path) -> None:
    """What runs that are there have recorded."""
    (model / "own.py").write_text("")
    names = ("model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja",
             "tokenizer_config.json", "own.py")  # fmt: skip
    lines = [f"{name}:{sha256((model / name).read_bytes()).hexdigest()}\n" for name in names]
    assert content_hash(model) == sha256("".join(lines).encode()).hexdigest()


def test_what_steers_generation_is_part_of_the_hash(model: Path) -> None:
    path = model / "generation_config.json"
    saved = json.loads(path.read_text())
    usual = content_hash(model)
    path.unlink()
    assert content_hash(model) == usual, "the file of every saved model says nothing more"
    found = {usual}
    more = ({"repetition_penalty": 5.0}, {"suppress_tokens": [7]}, {"eos_token_id": [1, 3]})
    for change in more:
        path.write_text(json.dumps(saved | change))
        found.add(content_hash(model))
    path.write_text("{}")
    assert len(found | {content_hash(model)}) == 5


def test_an_adopted_model_does_not_choose_its_attention(model: Path, tmp_path: Path) -> None:
    from pipelines.recipe import load as recipes
    from pipelines.run_dir.job import StageJob
    from pipelines.run_dir.paths import RunDir
    from pipelines.stages.base_model import import_checkpoint

    described = json.loads((model / "config.json").read_text())
    described["attn_implementation"] = "someone/kernel"
    (model / "config.json").write_text(json.dumps(described))
    run = RunDir(tmp_path / "run")
    stage_dir = run.stage("base")
    stage_dir.root.mkdir(parents=True)
    job = StageJob(
        kind="pretrain", module="", name="base", identity="",
        config=recipes.load("world-tiny"), run=run,
        stage_dir=stage_dir, inputs={"base": model}, hashes={}, data_sha256={}, chat=False,
    )  # fmt: skip
    assert import_checkpoint(job)["parameters"] > 0
    assert (stage_dir.model / "config.json").is_file()
