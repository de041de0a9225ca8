"""A user's mistake gets exit code 2 and one paragraph that names it; nothing is made or started."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import UserError
from pipelines.models.checkpoint import find_checkpoint
from pipelines.models.tokenizer import num_tokens
from pipelines.plan.identity import identity_fields
from pipelines.plan.preflight import check_tokenizers
from pipelines.recipe import load as recipes
from pipelines.run_dir.paths import RunDir, RunLock, write_yaml

TINY = ("--config", "world-tiny")
Refuse = Callable[..., str]
Recipe = Callable[[dict[str, Any]], Path]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The empty folder that commands run in."""
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


@pytest.fixture
def refuse(remit: Callable[..., Any], here: Path) -> Refuse:
    """Run a command that must be refused; its one paragraph. `run_dir` must stay as it was."""

    def run(*args: str | Path, words: list[str], run_dir: Path | None = None, **keys: Any) -> str:
        before = sorted(run_dir.rglob("*")) if run_dir else []
        done = remit(*args, cwd=here, timeout=60, **keys)
        assert done.returncode == 2, done.stderr
        assert done.stdout == ""
        said = str(done.stderr)
        assert "Traceback" not in said
        assert said.startswith("error: ") and "\n\n" not in said.strip()
        assert [word for word in words if word not in said] == [], said
        assert list(here.iterdir()) == [], "nothing was made"
        assert (sorted(run_dir.rglob("*")) if run_dir else []) == before
        return said

    return run


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A model folder that a test may spoil."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def edit_tokenizer(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 64}))
    path = folder / "tokenizer.json"
    rules = json.loads(path.read_text())
    change(rules)
    path.write_text(json.dumps(rules))
    return folder


# --- CKPT


@pytest.mark.parametrize(
    ("args", "option"),
    [
        (("pretrain-ckpt", "--base"), "--base"), (("mid-train", "--base"), "--base"),
        (("rl-tune", "--base"), "--base"), (("post-train", "--base"), "--base"),
        (("eval", "--model"), "--model"), (("flywheel", "--base"), "--base"),
        (("flywheel", "--ref"), "--ref"), (("plan", "--base"), "--base"),
    ],
)  # fmt: skip
def test_missing_ckpt(refuse: Refuse, args: tuple[str, ...], option: str) -> None:
    refuse(*args, "./nowhere", *TINY, words=[f"{option} ./nowhere", "folder does not exist"])


@pytest.mark.parametrize("empty", ["", "  "])
@pytest.mark.parametrize("args", [("mid-train", "--base"), ("flywheel", "--ref")])
def test_empty_ckpt(refuse: Refuse, args: tuple[str, ...], empty: str) -> None:
    refuse(*args, empty, *TINY, words=[f"{args[1]} is empty"])


def test_hub_name_without_network(refuse: Refuse) -> None:
    refuse("mid-train", "--base", "no-org-here/no-model@v1", *TINY,
           words=["--base no-org-here/no-model", "no such local folder"])  # fmt: skip


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ("rm -r . ; mkdir -p .", ["config.json is missing"]),
        ("rm config.json", ["config.json is missing"]),
        ("rm model.safetensors", ["no *.safetensors weights"]),
        ("mv model.safetensors pytorch_model.bin", ["pytorch_model.bin", "only safetensors"]),
        ("rm tokenizer.json", ["tokenizer.json is missing"]),
        ("echo '{' > config.json", ["config.json is not a JSON object"]),
        ("echo stage: x > config.yaml", ["has not finished", "resume it"]),
        ("mkdir model; echo stage: x > config.yaml; echo '{}' > result.json",
         ["config.json is missing"]),
    ],
)  # fmt: skip
def test_folder_that_is_no_model(refuse: Refuse, model: Path, spoil: str, words: list[str]) -> None:
    if spoil.startswith("rm -r"):
        shutil.rmtree(model)
        model.mkdir()
    else:
        os.system(f"cd '{model}' && {spoil}")
    refuse("mid-train", "--base", model, *TINY, words=[f"--base {model}", *words])


def test_broken_model_files(refuse: Refuse, model: Path) -> None:
    refuse("eval", "--model", model / "config.json", *TINY, words=["--model", "this is a file"])
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refuse("mid-train", "--base", model, *TINY, words=["--base", "model.safetensors"])


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_position_embeddings": "many"}, ["max_position_embeddings = 'many'", "whole number"]),
        ({"hidden_size": "32"}, ["hidden_size = '32'", "whole number"]),
        ({"hidden_size": True}, ["hidden_size = True", "whole number"]),
        ({"vocab_size": 1e12}, ["vocab_size = 1000000000000.0", "whole number"]),
        ({"vocab_size": 10**12}, ["vocab_size = 1000000000000 needs more weights"]),
        ({"num_hidden_layers": 10**9}, ["num_hidden_layers = 1000000000 needs more weights"]),
        ({"num_hidden_layers": -1}, ["num_hidden_layers = -1", "above 0"]),
        ({"model_type": "lama"}, ["model_type = 'lama'", "transformers"]),
        ({"_attn_implementation": "a/b"}, ["_attn_implementation = 'a/b'", "kernel", "code"]),
        ({"attn_implementation": {"": "a/b@v1"}}, ["'a/b@v1'", "kernel"]),
        ({"text_config": {"_experts_implementation": "a/b"}}, ["_experts_implementation", "a/b"]),
        ({"model_type": ["llama"]}, ["model_type = ['llama']", "transformers"]),
    ],
)
def test_config_of_a_model_that_cannot_be(
    model: Path, changes: dict[str, Any], words: list[str]
) -> None:
    edit_config(model, **changes)
    with pytest.raises(UserError) as error:
        find_checkpoint(str(model), "--base")
    said = str(error.value)
    assert f"--base {model}/config.json" in said and [w for w in words if w not in said] == []


def test_a_model_that_cannot_be_is_refused_by_the_command(refuse: Refuse, model: Path) -> None:
    edit_config(model, model_type="lama")
    refuse("mid-train", "--base", model, *TINY, words=[f"{model}/config.json", "'lama'"])


@pytest.mark.parametrize(
    "content",
    [b"[]", b"{}", b"3", b"{", b"\xff", b'{"model": 5, "added_tokens": []}',
     b'{"model": {"type": "BPE", "vocab": {"a": "x"}, "merges": []}, "added_tokens": []}',
     b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": {"a": 1}}'],
)  # fmt: skip
def test_a_tokenizer_that_is_none(model: Path, content: bytes) -> None:
    (model / "tokenizer.json").write_bytes(content)
    named = re.escape(str(model / "tokenizer.json"))
    with pytest.raises(UserError, match=rf"{named} is not a fast tokenizer: .+"):
        num_tokens(model)


def test_a_tokenizer_that_is_none_is_refused_by_the_command(refuse: Refuse, model: Path) -> None:
    (model / "tokenizer.json").write_text("[]")
    refuse("mid-train", "--base", model, *TINY, words=[f"{model}/tokenizer.json", "not a fast"])


@pytest.mark.parametrize(
    "args",
    [("mid-train", "--base"), ("eval", "--model"), ("flywheel", "--base"),
     ("pretrain-ckpt", "--base")],
)  # fmt: skip
def test_context_above_the_models(refuse: Refuse, tiny_model: Path, args: tuple[str, ...]) -> None:
    refuse(*args, tiny_model, *TINY, "sequence_length=256",
           words=["sequence_length = 256", "128 positions", str(tiny_model)])  # fmt: skip


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sft.max_length=256", "sft.max_length = 256 is above the 128 positions"),
        ("dpo.max_length=256", "Set dpo.max_length=128 or less"),
        ("rlvr.max_prompt_length=120", "Together they may be at most 128"),
    ],
)
def test_lengths_above_the_models(
    refuse: Refuse, tiny_model: Path, override: str, words: str
) -> None:
    refuse("post-train", "--base", tiny_model, *TINY, override, words=[words])
    refuse("flywheel", *TINY, override, words=[words, "the base"])


# --- tokenizers of base and reference


def swap_ids(rules: dict[str, Any]) -> None:
    vocab = rules["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]


def with_merges(*merges: tuple[str, str]) -> Callable[[dict[str, Any]], None]:
    def change(rules: dict[str, Any]) -> None:
        vocab = rules["model"]["vocab"]
        size = max(vocab.values()) + 1
        vocab |= {"ab": size, "bc": size + 1}
        rules["model"]["merges"] = list(merges)

    return change


AB_BC, BC_AB = with_merges(("a", "b"), ("b", "c")), with_merges(("b", "c"), ("a", "b"))


@pytest.mark.parametrize(
    ("base_change", "ref_change", "words"),
    [
        (None, swap_ids, ["token 'a'", "in the base", "in the reference"]),
        (AB_BC, BC_AB, ["merge 0"]),
        (AB_BC, None, ["token 'ab'", "no id"]),
        (None, lambda rules: rules.update(normalizer={"type": "Lowercase"}), ["normalizer"]),
        (None, lambda r: r.update(pre_tokenizer={"type": "Whitespace"}), ["pre-tokenizer"]),
    ],
    ids=["ids", "merges", "missing", "normalizer", "pre-tokenizer"],
)
def test_tokenizers_that_disagree(
    refuse: Refuse, tiny_model: Path, tmp_path: Path,
    base_change: Any, ref_change: Any, words: list[str],
) -> None:  # fmt: skip
    folders = []
    for name, change in (("base", base_change), ("ref", ref_change)):
        folder = Path(shutil.copytree(tiny_model, tmp_path / name))
        folders.append(edit_tokenizer(folder, change) if change else folder)
    base, ref = folders
    refuse("mid-train", "--base", base, "--ref", ref, *TINY, words=[str(base), str(ref), *words])


@pytest.mark.parametrize("adopted", [True, False])
def test_flywheel_looks_at_the_reference_before_it_starts(
    refuse: Refuse, tiny_model: Path, tmp_path: Path, adopted: bool
) -> None:
    ref = edit_tokenizer(Path(shutil.copytree(tiny_model, tmp_path / "ref")), swap_ids)
    base = ("--base", tiny_model) if adopted else ()
    refuse("flywheel", *base, "--ref", ref, *TINY, words=[str(ref), "token 'a'"])


def test_reference_against_a_tokenizer_that_is_yet_to_be_trained(
    refuse: Refuse, tiny_model: Path
) -> None:
    bpe = ("tokenizer.kind=bpe", "tokenizer.vocab_size=300", "tokenizer.train_characters=20_000")
    refuse("flywheel", "--ref", tiny_model, *TINY, *bpe,
           words=[str(tiny_model), "bpe tokenizer", "in the base and"])  # fmt: skip


def test_reference_may_have_further_ids(tiny_model: Path, tmp_path: Path) -> None:
    ref = Path(shutil.copytree(tiny_model, tmp_path / "ref"))

    def more(rules: dict[str, Any]) -> None:
        size = len(rules["model"]["vocab"])
        added = dict(rules["added_tokens"][-1], id=size, content="<|think|>")
        rules["added_tokens"].append(added)

    check_tokenizers(tiny_model, edit_tokenizer(ref, more))


# --- data


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["does not exist", "REMIT_DATA"]),
        ("", ["is empty"]),
        ("\n \n", ["no record"]),
        ('{"prompt": "1", "answer": "1"}\n\n{"prompt": "2", "ans\n', ["line 3", "JSON"]),
        ('{"prompt": "1", "answer": "1"}\n[1, 2]\n', ["line 2", "object"]),
        ('{"prompt": "1"}\n', ["line 1", "answer"]),
        ('{"prompt": "1", "answer": ""}\n', ["line 1", "gold answer is empty"]),
        ('{"prompt": "1", "answer": "1"}\n{"prompt": "2"}\n', ["line 2", "answer"]),
        ('{"prompt": "1", "answer": "1"}\n{"prompt": "2", "answer": ""}\n', ["line 2", "answer"]),
    ],
    ids=["missing", "empty", "blank", "torn", "list", "no-answer", "empty-answer",
         "later-no-answer", "later-empty-answer"],
)  # fmt: skip
def test_data_file(
    refuse: Refuse, write_recipe: Recipe, tiny_model: Path, tmp_path: Path,
    content: str | None, words: list[str],
) -> None:  # fmt: skip
    path = tmp_path / "mine.jsonl"
    if content is not None:
        path.write_text(content)
    recipe = write_recipe({"rlvr": {"sources": {"mine": {"kind": "jsonl", "path": str(path)}}}})
    # The flywheel looks at the data of every stage before the first starts.
    for command in ("rl-tune", "flywheel"):
        refuse(command, "--base", tiny_model, "--config", recipe,
               words=["rlvr.sources.mine", str(path), *words])  # fmt: skip


def test_unknown_world_stream(refuse: Refuse) -> None:
    refuse("pretrain-ckpt", *TINY, "pretrain.sources.world.stream=pretrian",
           words=["pretrain.sources.world", "'pretrian'", "Did you mean 'pretrain'"])  # fmt: skip


def test_split_by_a_field_that_records_lack(refuse: Refuse) -> None:
    refuse("flywheel", *TINY, "eval.tasks.world.split_by=famly",
           words=["eval.tasks.world", "no field 'famly'", "family"])  # fmt: skip


def test_no_source(refuse: Refuse) -> None:
    refuse("pretrain-ckpt", *TINY, "pretrain.sources.world.weight=0",
           words=["has no data", "pretrain.sources"])  # fmt: skip


@pytest.mark.parametrize("where", [{}, {"level": "easy"}], ids=["same", "subset"])
def test_rl_prompts_are_never_sft_questions(
    refuse: Refuse, write_recipe: Recipe, tmp_path: Path, where: dict[str, str]
) -> None:
    path = tmp_path / "mine.jsonl"
    records = [{"prompt": str(i), "response": "1", "answer": "1", "level": "easy"}
               for i in range(50)]  # fmt: skip
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    mine = {"kind": "jsonl", "path": str(path)}
    recipe = write_recipe({
        "sft": {"sources": {"mine": mine | {"hash_range": [0, 0.6]}}},
        "rlvr": {"sources": {"mine": mine | {"hash_range": [0.5, 1], "filter": where}}},
    })  # fmt: skip
    words = ["sft.sources.mine", "rlvr.sources.mine", str(path), "hash_range"]
    refuse("flywheel", "--config", recipe, words=words)
    refuse("plan", "--config", recipe, words=words)


def test_real_recipe_without_its_data(refuse: Refuse, tmp_path: Path) -> None:
    said = refuse("flywheel", "--config", "gsm8k-small", words=["gsm8k-small.yaml"])
    assert "Set REMIT_DATA to the folder of the data" in " ".join(said.split())
    assert "interpolation" not in said.lower() and "Environment variable" not in said
    empty = tmp_path / "empty"
    empty.mkdir()
    refuse("flywheel", "--config", "gsm8k-small", env={"REMIT_DATA": str(empty)},
           words=["pretrain.sources.books", str(empty), "REMIT_DATA"])  # fmt: skip


def test_an_evaluation_that_would_measure_nothing(
    refuse: Refuse, model: Path, tmp_path: Path
) -> None:
    quick = ("eval", "--model", model, *TINY, "--suite", "quick", "--run-dir", "run")
    pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")
    refuse(*quick, env={"REMIT_DATA": str(tmp_path / "gone")},
           words=[f"REMIT_DATA={tmp_path}/gone", "not a folder"])  # fmt: skip
    refuse(*quick, env={"REMIT_DATA": str(model)},
           words=["nothing else is measured", f"gsm8k: file {model}", "bbh: file"])  # fmt: skip
    suite = tmp_path / "off.yaml"
    suite.write_text("benchmarks: {gsm8k: {enabled: false}}")
    refuse("eval", "--model", model, *TINY, "--suite", suite, words=["nothing to measure"])


# --- launch


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--gpus", "999"), ["--gpus 999", "no GPU", "enough for"]),
        (("--gpus", "0"), ["--gpus 0", "at least 1"]),
        (("--gpus", "-2"), ["--gpus -2", "at least 1"]),
        (("launch.gpus=999",), ["--gpus 999"]),
        (("--hostfile", "nowhere"), ["--hostfile nowhere", "does not exist"]),
        (("launch.env={'A=B': c}",), ["launch.env: invalid variable name 'A=B'"]),
        (("launch.env={'': c}",), ["launch.env: invalid variable name ''"]),
        (('launch.env={A: "b\\0c"}',), ["launch.env.A", "NUL"]),
        (("launch.prologue=['true','false ||']",), ["launch.prologue: 'false ||'", "bash"]),
        (("stages.sft.launch.prologue=['} ; {']",), ["stages.sft.launch", "launch.prologue"]),
    ],
)
def test_ranks(refuse: Refuse, args: tuple[str, ...], words: list[str]) -> None:
    refuse("flywheel", *TINY, *args, words=words)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
@pytest.mark.parametrize("command", ["flywheel", "plan"])
def test_batch_that_does_not_divide(refuse: Refuse, command: str) -> None:
    refuse(command, *TINY, "--gpus", "2", "mid_train.global_batch_size=5",
           words=["mid_train.global_batch_size = 5", "2 ranks"])  # fmt: skip


@pytest.mark.parametrize("cxx", ["", "no-such-compiler"])
def test_no_compiler(refuse: Refuse, tmp_path: Path, cxx: str) -> None:
    refuse("flywheel", *TINY, env={"PATH": str(tmp_path), "CXX": cxx},
           words=["No C++ compiler", "g++", "CXX"])  # fmt: skip


# --- config and options


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("mid_train.epss=0.1",), ["'mid_train.epss'", "Did you mean 'mid_train.remit.eps'"]),
        (("eval.zero_stage=2",), ["'eval.zero_stage'"]),
        (("mid_train.remit.eps=much",), ["'mid_train.remit.eps': much is not a number"]),
        (("mid_train.tokens=1e4",), ["'mid_train.tokens': 10000.0 is not an integer"]),
        (("sft.enabled=maybe",), ["'sft.enabled': maybe is not true or false"]),
        (("compare.variants.a=remit",), ["'compare.variants.a' is a section of keys"]),
        (("compare.variants.a={set: x.y=1}",), ["compare.variants.a.set=[...]"]),
        (("compare.variants.a={st: [x.y=1]}",), ["'compare.variants.a.st'", "mean 'set'"]),
        (("compare.variants.a={arm:ntp}",), ["unknown key", "'compare.variants.a.arm:ntp'"]),
        (
            ("compare.variants.a={set:[x.y=1]}",),
            ["not valid YAML", "write a space after the colon between key and value: {set:"],
        ),
        (("seed",), ["'seed'", "key=value"]),
        (("--iterations", "-1"), ["--iterations -1"]),
        (("flywheel.baseline=false",), ["flywheel.baseline=false", "--ref"]),
        (("sft.enabled=false", "dpo.enabled=false", "rlvr.enabled=false"), ["sft.enabled"]),
        (("mid_train.objective=ntp",), ["mid_train.objective=ntp"]),
    ],
)
def test_config(refuse: Refuse, args: tuple[str, ...], words: list[str]) -> None:
    refuse("flywheel", *TINY, *args, words=words)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed=-1", "seed = -1 must be at least 0"),
        ("pretrain.learning_rate=.inf", "pretrain.learning_rate = inf must be a finite number"),
        ("pretrain.adam_beta1=1.5", "pretrain.adam_beta1 = 1.5 must be below 1"),
        ("model.num_attention_heads=0", "model.num_attention_heads = 0 must be at least 1"),
        ("model.num_attention_heads=5", "must be a multiple of model.num_attention_heads = 5"),
        ("rlvr.num_generations=1", "rlvr.num_generations = 1 must be at least 2"),
        ("rlvr.max_completion_length=0", "rlvr.max_completion_length = 0 must be at least 1"),
        ("dpo.beta=0", "dpo.beta = 0.0 must be above 0"),
        ("mid_train.sources.world.limit=-1", "mid_train.sources.world.limit = -1"),
        ("eval.tasks.world.max_new_tokens=0", "eval.tasks.world.max_new_tokens = 0"),
        ("eval.tasks.world.base_template=Answer", "must contain {{ prompt }}"),
        ("mid_train.tokens=100", "mid_train.tokens = 100 is less than one step"),
        ("rlvr.num_generations=3", "must be a multiple of rlvr.num_generations = 3"),
        ("model.hidden_size=33", "model.hidden_size = 33 must be a multiple"),
        ("sequence_length=16", "leaves no room for a prompt in sequence_length = 16"),
        ("mid_train.snapshots=20", "mid_train.snapshots = 20: a training of 20 steps"),
        ("mid_train.snapshots=20", "mid_train.snapshots = 20: a training of 20 steps"),
        ("pretrain.snapshots=99", "pretrain.snapshots = 99: a training of 20 steps"),
        ("rlvr.use_vllm=true", "needs the package vllm"),
        ("sft.max_length=4", "sft.max_length = 4 must be at least 8, or 0"),
        ("rlvr.max_prompt_length=7", "rlvr.max_prompt_length = 7 must be at least 8, or 0"),
        ("stage.name=a@b", "stage.name = 'a@b' names a folder"),
        ("stage.name=../up", "stage.name = '../up' names a folder"),
        ("seed=${nowhere}", "seed"),
    ],
)
def test_values_that_cannot_be(refuse: Refuse, override: str, words: str) -> None:
    said = refuse("flywheel", *TINY, override, words=[words])
    assert "world-tiny.yaml" not in said, "the file is not to blame"


def test_keys_of_stages_that_do_not_run_are_not_looked_at(
    remit: Callable[..., Any], tiny_model: Path, here: Path
) -> None:
    done = remit(
        "plan", *TINY, "--base", tiny_model, "pretrain.tokens=8", "--iterations", "0", cwd=here
    )
    assert done.returncode == 0, done.stderr


def test_a_model_with_fewer_rows_than_its_tokenizer_has_tokens(refuse: Refuse, model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"vocab_size": 20}))
    for args in (("pretrain-ckpt", "--base"), ("mid-train", "--base"), ("eval", "--model")):
        refuse(*args, model, *TINY, words=[str(model), "tokenizer has", "its model only 20"])


def test_config_files(refuse: Refuse, tmp_path: Path) -> None:
    refuse("plan", "--config", "world-tinny", words=["world-tinny", "Did you mean 'world-tiny'"])
    path = tmp_path / "mine.yaml"
    path.write_text("mid_train:\n  eps: [0.1\nseed: 1\n")
    refuse("plan", "--config", path, words=[str(path), "not valid YAML"])
    path.write_text("mid_train:\n  learning_rat: 0.1\n")
    refuse(
        "plan", "--config", path, words=[str(path), "'mid_train.learning_rat'", "'learning_rate'"]
    )
    path.write_bytes(b"name: caf\xe9\n")
    refuse("plan", "--config", path, words=[str(path), "cannot be read"])


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("mid_train.objective=remit",), ["mid_train.objective=remit", "--ref"]),
        (("--ref", "{model}", "mid_train.objective=ntp"), ["objective=ntp", "--ref"]),
    ],
)
def test_objective(
    refuse: Refuse, tiny_model: Path, args: tuple[str, ...], words: list[str]
) -> None:
    given = [arg.format(model=tiny_model) for arg in args]
    refuse("mid-train", "--base", tiny_model, *TINY, *given, words=words)


@pytest.mark.parametrize(
    ("args", "named"),
    [(("mid-train",), "--base"), (("eval",), "--model"), (("flywheel", "--gpus", "x"), "--gpus"),
     (("flywheel", "--iteration", "1"), "--iterations"), (("flywhel",), "flywheel")],
)  # fmt: skip
def test_options(remit: Callable[..., Any], here: Path, args: tuple[str, ...], named: str) -> None:
    done = remit(*args, cwd=here)
    assert done.returncode == 2 and named in done.stderr and done.stdout == ""
    assert "Traceback" not in done.stderr and list(here.iterdir()) == []


def test_as_json(remit: Callable[..., Any], here: Path) -> None:
    done = remit("flywheel", *TINY, "--gpus", "0", "--json", cwd=here)
    assert done.returncode == 2
    assert done.json["status"] == "wrong input" and "--gpus 0" in done.json["error"]
    assert done.stderr == f"error: {done.json['error']}\n"


# --- the run directory


def test_stage_made_with_another_config(refuse: Refuse, tmp_path: Path) -> None:
    run = tmp_path / "run"
    stage = RunDir(run).stage("base")
    stage.root.mkdir(parents=True)
    fields = identity_fields("pretrain", recipes.load("world-tiny", ["seed=5"]), {})
    write_yaml({"identity_fields": fields, "config": {}, "inputs": {}, "layout": 2}, stage.config)
    for command in ("pretrain-ckpt", "flywheel"):
        said = refuse(command, *TINY, "--run-dir", run, words=[str(stage.root), "seed: 5 -> 0"])
        assert "--run-dir" in said and "remove" in said
    assert not (run / "ledger.jsonl").exists()


def test_run_in_use(remit: Callable[..., Any], tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    with RunLock(run, "remit flywheel --of another"):
        done = remit("pretrain-ckpt", *TINY, "--run-dir", run.root, timeout=60)
        assert [p.name for p in run.root.iterdir() if p.name != "data"] == ["lock"]
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert re.search(rf"in use: host \S+, pid {os.getpid()}, command: remit flywheel --of another",
                     done.stderr)  # fmt: skip


# Nobody may make a folder in /proc, root neither.
@pytest.mark.parametrize("run_dir", ["{tmp}/taken", "{tmp}/taken/deeper/run", "/proc/remit-run"])
def test_run_dir_that_cannot_be_made(refuse: Refuse, tmp_path: Path, run_dir: str) -> None:
    (tmp_path / "taken").write_text("mine")
    path = run_dir.format(tmp=tmp_path)
    refuse("pretrain-ckpt", *TINY, "--run-dir", path, words=["--run-dir", path])
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.parametrize(
    "args",
    [
        ("flywheel", *TINY, "--run-dir"), ("plan", *TINY, "--run-dir"),
        ("launch", "--slurm", "flywheel", *TINY, "--run-dir"), ("launch", "--slurm", "--output"),
        ("doctor", "--run-dir"), ("analyze",), ("status",), ("report",),
        ("report", "x", "--output"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_an_empty_path_is_not_the_current_folder(
    remit: Callable[..., Any], here: Path, args: tuple[str, ...]
) -> None:
    done = remit(*args, "", cwd=here)
    assert done.returncode == 2 and "the path is empty" in done.stderr
    assert list(here.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_run_dir_without_permission(refuse: Refuse, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    refuse("pretrain-ckpt", *TINY, "--run-dir", closed / "run", words=[str(closed / "run")])
