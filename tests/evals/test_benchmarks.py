"""Benchmarks: ground truth, local files, and a real model through the CLI."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")

from pipelines.errors import UserError
from pipelines.evals import harness_models
from pipelines.evals.benchmarks import files_sha256
from pipelines.recipe import load as config
from tests.evals.gold_answers import Benchmarks, Gold, Nothing, paper10

TEN = ("gsm8k", "math", "gpqa", "bbh", "ifeval", "humaneval", "mbpp", "truthfulqa",
       "arc_challenge", "mmlu_pro")  # fmt: skip


@pytest.fixture(autouse=True)
def local_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_gold_and_empty_answers_on_real_data(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NLTK_DATA", str(data_root / "nltk_data"))
    loaded = paper10(data_root, 4)
    assert tuple(loaded.eval.benchmarks) == TEN
    found = Benchmarks(loaded, tmp_path)
    assert set(found.asked) == set(TEN) - set(found.left_out) and len(found.asked) >= 6
    gold = {name: found.score(Gold(), name) for name in found.asked}
    empty = {name: found.score(Nothing(), name) for name in found.asked}
    for name, score in gold.items():
        if name != "ifeval":  # it has rules, and no answers of its own
            assert score["accuracy"] == 1.0, name
            assert score["bits"] == "1" * score["questions"]
        if name not in ("truthfulqa", "arc_challenge", "gpqa"):
            assert empty[name]["accuracy"] == 0.0, name
    assert gold["bbh"]["questions"] == 4 * 27 == 4 * len(gold["bbh"]["families"])
    assert gold["gsm8k"]["settings"] | {"data": ""} == {
        "task": "gsm8k", "harness": "0.4.13", "version": "3.0", "shots": 5, "chat": False,
        "metric": "exact_match,flexible-extract", "data": "",
        "generation": {"until": ["Question:", "</s>", "<|im_end|>"], "do_sample": False,
                       "temperature": 0.0, "max_gen_toks": 1024},
        "prompt_sha256": empty["gsm8k"]["settings"]["prompt_sha256"],
    }  # fmt: skip


# Records in the format of sets that are not here: MATH, and GPQA.
SUMS = [
    {"problem": f"What is ${i}+1$?", "level": "Level 1", "type": "Algebra",
     "solution": f"It is $\\boxed{{{i + 1}}}$."}
    for i in range(6)
]  # fmt: skip
LETTERS = [
    {"Question": f"Which is word {i}?", "Correct Answer": f"right {i}",
     **{f"Incorrect Answer {j}": f"wrong {i} {j}" for j in (1, 2, 3)}}
    for i in range(8)
]  # fmt: skip


def test_math_and_gpqa_in_their_format(tmp_path: Path) -> None:
    for subject in (
        "algebra", "counting_and_probability", "geometry", "intermediate_algebra",
        "number_theory", "prealgebra", "precalculus",
    ):  # fmt: skip
        for split in ("train", "test"):
            write_lines(tmp_path / "math" / subject / f"{split}.jsonl", SUMS)
    (tmp_path / "gpqa").mkdir()
    rows = [list(LETTERS[0]), *(list(record.values()) for record in LETTERS)]
    (tmp_path / "gpqa" / "gpqa_main.csv").write_text("\n".join(map(",".join, rows)))
    loaded = paper10(tmp_path, 0)
    found = Benchmarks(loaded, tmp_path / "tasks")
    assert set(found.asked) == {"math", "gpqa"}
    gold = {name: found.score(Gold(), name) for name in found.asked}
    assert {name: (s["accuracy"], s["questions"]) for name, s in gold.items()} == {
        "math": (1.0, 7 * len(SUMS)),
        "gpqa": (1.0, len(LETTERS)),
    }
    assert found.score(Nothing(), "math")["accuracy"] == 0.0
    assert found.score(Nothing(), "gpqa")["accuracy"] < 1.0


def write_questions(folder: Path, count: int = 12) -> None:
    lines = [
        {"question": f"What is {i} and {i}?", "answer": f"It is {2 * i}.\n#### {2 * i}"}
        for i in range(count)
    ]
    write_lines(folder / "gsm8k" / "train.jsonl", lines)
    write_lines(folder / "gsm8k" / "test.jsonl", lines)


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Benchmarks:
    """gsm8k on twelve questions of our own."""
    folder = tmp_path_factory.mktemp("sums")
    write_questions(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        found = Benchmarks(paper10(folder, 0), folder / "tasks")
    assert set(found.asked) == {"gsm8k"}
    return found


def test_a_wrong_answer_is_one_bit(sums: Benchmarks) -> None:
    class OneWrong(Gold):
        def _completion(self, request: Any) -> str:
            return "#### 1" if request.doc_id == 3 else super()._completion(request)

    found = sums.score(OneWrong(), "gsm8k")
    assert found["bits"] == "111011111111"
    assert found["accuracy"] == pytest.approx(11 / 12)
    assert found["interval"][0] < 11 / 12 < found["interval"][1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "2.0"}, "has gsm8k in version 3.0, not 2.0"),
        ({"metric": "exact_match,last"}, "no metric exact_match,last. Choose from exact_match,fl"),
        ({"task": "gsm8kk"}, "has no task gsm8kk"),
        ({"task": "mbpp"}, "mbpp runs generated code. Set eval.benchmarks.gsm8k.runs_code=true"),
        (
            {"task": "humaneval_plus", "runs_code": True},
            "The sandbox supports only humaneval and mbpp",
        ),
    ],
)
def test_a_setting_that_does_not_fit_is_refused(
    changes: dict[str, str], message: str, sums: Benchmarks
) -> None:
    with pytest.raises(UserError, match=r"eval\.benchmarks\.gsm8k: ") as raised:
        sums.score(Gold(), "gsm8k", **changes)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("sums", "{test: 'a/{wrong}.jsonl'}", "its only placeholder is {name}"),
        ("sums", "{test: a.txt}", "must end in .jsonl"),
        ("a/b", "{test: a.json}", "names a file and a row"),
        ("world", "{test: a.json}", "a name that eval.tasks does not use"),
    ],
)
def test_names_and_files_are_checked(name: str, files: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        config.load("world", [f"eval.benchmarks={{{name}: {{files: {files}}}}}"])
    assert message in str(raised.value)


def test_other_files_are_another_evaluation(tmp_path: Path) -> None:
    write_questions(tmp_path, 3)
    benchmark = paper10(tmp_path, 0).eval.benchmarks["gsm8k"]
    before = files_sha256(benchmark, str(tmp_path))
    write_questions(tmp_path, 4)
    assert before and files_sha256(benchmark, str(tmp_path)) != before
    assert files_sha256(benchmark, str(tmp_path / "elsewhere")) == ""


def test_a_suite_takes_the_place_of_what_a_recipe_measures(tmp_path: Path) -> None:
    assert set(config.load("world").eval.tasks) == {"world"}
    quick = config.load("world", ["eval.suite=quick", "eval.benchmarks.gsm8k.limit=3"]).eval
    assert not quick.tasks and not quick.bits_per_byte
    assert quick.benchmarks["gsm8k"].limit == 3
    added = config.load("olmo2-1b").eval
    assert tuple(added.benchmarks) == TEN and "wikitext" in added.bits_per_byte
    own = tmp_path / "own.yaml"
    for text, words in (
        ("batch_size: 3", "unknown key 'batch_size' in a suite"),
        ("- gsm8k", "a suite must be a mapping"),
        ("{}", "the suite is empty"),
        ("tasks: {a: {limit: -1}}", f"^{own}: eval.tasks.a.limit = -1 must be"),
    ):
        own.write_text(f"{text}\n")
        with pytest.raises(UserError, match=words):
            config.load("world", [f"eval.suite={own}"])
    with pytest.raises(UserError, match="Did you mean 'paper10'"):
        config.load("world", ["eval.suite=paper"])


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that takes prompts of the benchmarks: random weights, byte-level tokens."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = {c: i for i, c in enumerate(["<eos>", *pre_tokenizers.ByteLevel.alphabet()])}
    backend = Tokenizer(models.BPE(vocab=letters, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(letters), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=512,
        bos_token_id=None, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("reader")
    LlamaForCausalLM(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


ASKED = (
    "eval.benchmarks.gsm8k.max_new_tokens=6", "eval.benchmarks.gsm8k.shots=2",
    "eval.benchmarks.gsm8k.limit=0", "eval.batch_size=8",
    "eval.benchmarks.truthfulqa.limit=0", "eval.bits_per_byte_tokens=500",
)  # fmt: skip


def test_cli_asks_what_is_there_and_names_the_rest(
    remit: Any, reader: Path, tmp_path: Path
) -> None:
    write_questions(tmp_path / "data")
    choices = {"choices": ["yes", "no", "perhaps"], "labels": [1, 0, 0]}
    write_lines(
        tmp_path / "data" / "lmeval_data" / "truthfulqa_mc" / "validation.jsonl",
        [{"question": f"Is {i} a number?", "mc1_targets": choices} for i in range(9)],
    )
    env = {"REMIT_DATA": str(tmp_path / "data")}
    found = {}
    for ranks in ("1", "2"):
        done = remit(
            "eval", "--config", "world-tiny", "--model", reader, "--suite", "quick",
            "--run-dir", tmp_path / f"run{ranks}", "--gpus", ranks, *ASKED, "--json", env=env,
            check=True,
        )  # fmt: skip
        found[ranks] = json.loads((tmp_path / f"run{ranks}" / "eval" / "result.json").read_text())
        assert set(done.json["scores"]["eval"]["not_asked"]) == {
            "bbh", "mbpp", "arc_challenge", "mmlu_pro",
        }  # fmt: skip
    one, two = found["1"]["tasks"], found["2"]["tasks"]
    assert one["gsm8k"]["questions"] == 12 and one["truthfulqa"]["questions"] == 9
    assert one == two
    assert found["1"]["average"] == pytest.approx(
        (one["gsm8k"]["accuracy"] + one["truthfulqa"]["accuracy"]) / 2
    )


def test_cli_leaves_out_what_stands_in_training_text(
    remit: Any, reader: Path, write_recipe: Any, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    lines = [
        {
            "question": f"{n} has {i} apples, {n} buys two more of them, and {n} eats one. How "
            f"many does {n} have when {n} goes home?",
            "answer": f"{i + 1}\n#### {i + 1}",
        }
        for i, n in enumerate(("Ann", "Bob", "Cyd", "Dan"))
    ]
    write_lines(data / "gsm8k" / "train.jsonl", lines)
    write_lines(data / "gsm8k" / "test.jsonl", lines)
    read = [{"text": f"Sums. {lines[2]['question'].upper()}"}, {"text": "Something else."}]
    write_lines(data / "text.jsonl", read)
    recipe = write_recipe({"mid_train": {"sources": {"leak": {"path": "text.jsonl"}}}})
    args = ("--config", recipe, "--run-dir", tmp_path / "run", "eval.suite=quick",
            f"data_root={data}", "eval.contamination=leave_out", "eval.benchmarks.gsm8k.shots=0",
            "eval.benchmarks.gsm8k.max_new_tokens=4", "eval.bits_per_byte_tokens=500")  # fmt: skip
    remit("eval", "--model", reader, *args, check=True)
    check = json.loads((tmp_path / "run" / "contamination" / "result.json").read_text())
    assert check["evals"]["gsm8k"]["bits"] == "0010"
    assert check["evals"]["gsm8k"]["sources"]["mid_train.sources.leak"]["ngram"] == 1
    assert set(check["not_checked"]) == {
        "bbh", "mbpp", "truthfulqa", "arc_challenge", "mmlu_pro",
    }  # fmt: skip
    task = json.loads((tmp_path / "run" / "eval" / "result.json").read_text())["tasks"]["gsm8k"]
    assert (task["questions"], task["left_out"], len(task["bits"])) == (3, 1, 3)


def test_cli_goes_on_with_the_next_benchmark_after_a_kill(
    remit: Any, stage_env: dict[str, str], reader: Path, tmp_path: Path
) -> None:
    write_questions(tmp_path / "data", 80)
    suite = tmp_path / "two.yaml"
    suite.write_text(
        "benchmarks:\n"
        + "".join(
            f"  {name}: {{task: gsm8k, metric: 'exact_match,flexible-extract', shots: 0, limit: "
            f"{limit}, max_new_tokens: 60, files: {{train: gsm8k/train.jsonl, "
            "test: gsm8k/test.jsonl}}\n"
            for name, limit in (("first", 2), ("second", 80))
        )
    )
    args = (
        "eval", "--config", "world-tiny", "--model", reader, "--suite", suite,
        "--run-dir", tmp_path / "run",
        "eval.batch_size=1", "eval.bits_per_byte_tokens=500", f"data_root={tmp_path / 'data'}",
    )  # fmt: skip
    kept = tmp_path / "run" / "eval" / "benchmarks" / "first.json"
    process = subprocess.Popen(
        [sys.executable, "-m", "remit_cli", *map(str, args)], env=stage_env,
        start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not kept.is_file() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert kept.is_file() and not kept.with_name("second.json").exists()
    made = kept.stat().st_mtime_ns
    short = "eval.batch_size=64"
    remit(*args, short, check=True)
    assert kept.stat().st_mtime_ns == made
    result = json.loads((tmp_path / "run" / "eval" / "result.json").read_text())
    assert {name: t["questions"] for name, t in result["tasks"].items()} == {
        "first": 2, "second": 80,
    }  # fmt: skip


def test_cli_refuses_an_answer_longer_than_the_model(
    remit: Any, reader: Path, tmp_path: Path
) -> None:
    write_questions(tmp_path / "data")
    done = remit(
        "eval", "--model", reader, "--suite", "quick", "--run-dir", tmp_path / "run",
        "eval.benchmarks.gsm8k.max_new_tokens=512", f"data_root={tmp_path / 'data'}",
    )  # fmt: skip
    assert done.returncode == 2
    assert "max_new_tokens = 512 leaves no room" in done.stderr


def test_nothing_fits_in_memory_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    class Small(harness_models.SharedRequests):
        batch_size_per_gpu = 16
        seen: list[int] = []  # noqa: RUF012

    def answer(requests: Any) -> list[int]:
        Small.seen.append(small.batch_size_per_gpu)
        if small.batch_size_per_gpu > 4:
            raise torch.OutOfMemoryError
        return [2 * r for r in requests]

    small = Small()
    assert small._shared(answer, [1, 2, 3]) == [2, 4, 6]
    assert Small.seen == [16, 8, 4]


def test_task_files_of_ones_own(tmp_path: Path) -> None:
    write_questions(tmp_path)
    (tmp_path / "own.yaml").write_text(
        "task: own_sums\ndataset_path: json\ndataset_kwargs: {data_files: {test: "
        f"{tmp_path / 'gsm8k' / 'test.jsonl'}}}}}\ntest_split: test\noutput_type: generate_until\n"
        "doc_to_text: '{{question}}'\ndoc_to_target: '{{answer}}'\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    )
    loaded = config.load(
        "world",
        ["eval.benchmarks.sums={task: own_sums, metric: exact_match}",
         f"eval.task_folder={tmp_path}"],
    )  # fmt: skip

    class Answers(Gold):
        def _completion(self, request: Any) -> str:
            return str(request.doc["answer"])

    found = Benchmarks(loaded, tmp_path / "tasks").score(Answers(), "sums")
    assert found["accuracy"] == 1.0 and not math.isnan(found["interval"][0])


def test_what_a_model_says_of_generation_changes_no_answer_of_a_benchmark(tiny_model: Path) -> None:
    from lm_eval.api.instance import Instance
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def answers(**steered: Any) -> tuple[list[str], Any]:
        model = AutoModelForCausalLM.from_pretrained(tiny_model)
        model.generation_config.update(**steered)
        asked = harness_models.TransformersModel(
            pretrained=model, tokenizer=AutoTokenizer.from_pretrained(tiny_model), batch_size=1
        )
        settings = {"until": ["never"], "do_sample": False, "max_gen_toks": 8}
        request = Instance("generate_until", {}, ("add 3", settings), 0)
        return asked.generate_until([request], disable_tqdm=True), model.generation_config

    plain, _ = answers()
    steered, left = answers(suppress_tokens=list(range(5, 30)), eos_token_id=[1, 3])
    assert steered == plain != [""]
    # What ends an answer belongs to the model's chat format.
    assert left.eos_token_id == [1, 3]
