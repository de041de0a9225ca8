"""What an evaluation has done is kept, told and drawn: in process, with answers from the key."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")

from pipelines.errors import UserError
from pipelines.evals.benchmarks import task_manager
from pipelines.evals.cache import cache_path, cached
from pipelines.evals.progress import EvalProgress
from pipelines.recipe import load as config
from pipelines.recipe.schema import BenchmarkConfig
from pipelines.run_dir.paths import StageDir
from pipelines.run_dir.progress import read_progress
from pipelines.stages.benchmark_scores import with_sampled
from tests.evals.gold_answers import Gold

LEAVES = ("own_first", "own_second")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Tasks of the harness with a group of two of our own."""
    folder = tmp_path_factory.mktemp("own")
    lines = [json.dumps({"question": f"{i}?", "answer": str(i)}) for i in range(5)]
    (folder / "sums.jsonl").write_text("\n".join(lines))
    for name in LEAVES:
        (folder / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: "
            f"{folder / 'sums.jsonl'}}}}}\ntest_split: test\noutput_type: generate_until\n"
            "doc_to_text: '{{question}}'\ndoc_to_target: '{{answer}}'\n"
            "filter_list: [{name: number, filter: [{function: take_first}]}]\n"
            "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
        )
    (folder / "both.yaml").write_text(f"group: own_both\ntask: [{', '.join(LEAVES)}]\n")
    settings = config.load("world", [f"eval.task_folder={folder}"]).eval
    with pytest.MonkeyPatch.context() as patch:
        import datasets

        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        yield task_manager(settings, str(folder), folder / "tasks")


BOTH = BenchmarkConfig(task="own_both", metric="exact_match,number")


class Answers(Gold):
    """The right answer; counts what it is asked, and fails where it is told to."""

    def __init__(self, fails_at: str = "") -> None:
        super().__init__()
        self.fails_at = fails_at
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def _completion(self, request: Any) -> str:
        self.asked.append((request.task_name, request.args[1]))
        if request.task_name == self.fails_at:
            raise KeyboardInterrupt
        if request.args[1]["do_sample"] and request.doc_id == 0:
            return random.choice("ab")
        return str(request.doc["answer"])


def test_a_group_goes_on_with_its_next_task(own: Any, tmp_path: Path) -> None:
    from pipelines.evals import harness

    whole = harness.ask(Answers(), "both", BOTH, own, chat=False)
    assert (whole["bits"], list(whole["families"])) == ("1" * 10, list(LEAVES))
    stopped, resumed = Answers(fails_at="own_second"), Answers()
    with pytest.raises(KeyboardInterrupt):
        harness.ask(stopped, "both", BOTH, own, chat=False, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["own_first.json"]
    again = harness.ask(resumed, "both", BOTH, own, chat=False, folder=tmp_path)
    assert {task for task, _ in resumed.asked} == {"own_second"}
    assert json.dumps(again) == json.dumps(whole)


def test_answers_are_drawn(own: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.evals import harness

    benchmark = BenchmarkConfig(
        task="own_both", metric="exact_match,number", samples=4, sampled_questions=2,
        temperature=0.5, top_p=0.9, max_new_tokens=7,
    )  # fmt: skip
    drawn = iter("aabb" * 2)
    monkeypatch.setattr(random, "choice", lambda _: next(drawn))
    model = Answers()
    raw = harness.ask(model, "both", benchmark, own, chat=False)
    (one, two, *rest) = raw["samples"][:5]
    assert one == [0, pytest.approx(math.log(2))] and two == [4, 0.0] and rest == [None] * 3
    asked = [kwargs for _, kwargs in model.asked]
    assert [kwargs["do_sample"] for kwargs in asked].count(True) == 2 * 4 * 2
    last = asked[-1]
    assert (last["temperature"], last["top_p"], last["max_gen_toks"]) == (0.5, 0.9, 7)
    score = with_sampled(raw, benchmark)
    assert "samples" not in score and score["sampled_questions"] == 4 and score["bits"] == "1" * 10
    assert score["sampled"]["mean@4"]["mean"] == 0.5 == score["sampled"]["pass@4"]["mean"]
    assert score["sampled"]["entropy"]["mean"] == pytest.approx(math.log(2) / 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "arc_challenge", "metric": "acc", "samples": 2}, "samples = 2: arc_challenge"),
        ({"metric": "exact_match,last"}, "Choose from exact_match,number"),
        ({"version": "9"}, "in version"),
    ],
)
def test_settings_are_compared_before_a_question_is_asked(
    own: Any, changes: dict[str, Any], message: str
) -> None:
    from pipelines.evals import harness

    class Chooses:
        VERSION, OUTPUT_TYPE = 1.0, "multiple_choice"
        _filters = (type("Filter", (), {"name": "none"}),)

        def aggregation(self) -> dict[str, Any]:
            return {"acc": None}

    benchmark = BenchmarkConfig(**{"task": "own_first", "metric": "exact_match,number"} | changes)
    loaded = {"arc_challenge": Chooses()}
    if benchmark.task == "own_first":
        loaded = own.load(["own_first"])["tasks"]
    with pytest.raises(UserError, match=message):
        harness.check_fits("mine", benchmark, loaded)


def test_without_known_answers_there_is_no_entropy() -> None:
    score = {"accuracy": 1.0, "questions": 1, "samples": [[1, None]]}
    found = with_sampled(score, BenchmarkConfig(samples=2))
    assert list(found["sampled"]) == ["mean@2", "pass@1", "pass@2"]


def test_what_is_kept_is_not_made_again(tmp_path: Path) -> None:
    path = cache_path(tmp_path / "parts", "a/b")
    assert cached(path, lambda: {"x": (1, 0.1)}, writes=False) == {"x": [1, 0.1]}
    assert not path.exists()
    cached(path, lambda: {"x": (1, 0.1)}, writes=True)
    assert path.parent == tmp_path / "parts"
    assert cached(path, lambda: pytest.fail("made again"), writes=True) == {"x": [1, 0.1]}


def test_progress_of_an_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("time.time", lambda: now[0])
    stage_dir = StageDir(tmp_path)
    progress = EvalProgress(stage_dir.metrics, 100)
    progress.skip(20)
    progress.begin("sums", 40)
    now[0] += 1.0
    progress.reached(0.1)  # too soon for a line
    now[0] += 9.0
    progress.reached(0.5)
    found = read_progress(stage_dir)
    assert found is not None and (found.step, found.max_steps, found.task) == (40, 100, "sums")
    # 20 answers in ten seconds, 60 to go.
    assert str(found) == "sums, answer 40 of 100, 30s left"
    progress.begin("words", 40)
    progress.end()
    found = read_progress(stage_dir)
    assert found is not None and (found.step, found.task) == (100, "words")


def test_cli_keeps_tasks_and_text_and_shows_progress(
    remit: Any, tiny_model: Path, tmp_path: Path
) -> None:
    args = (
        "eval", "--model", tiny_model, "--config", "world-tiny", "--run-dir", tmp_path,
        "eval.tasks.world.limit=20", "eval.tasks.world.samples=0", "eval.bits_per_byte_tokens=200",
    )  # fmt: skip
    remit(*args, check=True)
    stage_dir = StageDir(tmp_path / "eval")
    first = stage_dir.read_result()
    assert "heldout_blocks" in first and "blocks" not in first["bits_per_byte"]["pretrain"]
    lines = [json.loads(line) for line in stage_dir.metrics.read_text().splitlines()]
    assert [line["task"] for line in lines][:2] == ["world", "bits per byte of pretrain"]
    assert lines[-1]["step"] == lines[-1]["max_steps"] == 20 + len(first["bits_per_byte"])
    # As if it had been killed after the first text: what is kept is taken, the rest is measured.
    stage_dir.result.unlink()
    kept_task = stage_dir.root / "tasks" / "world.json"
    task = json.loads(kept_task.read_text())
    name = next(iter(task))
    task[name]["accuracy"] = 0.625
    kept_task.write_text(json.dumps(task))
    (stage_dir.root / "bits_per_byte" / "mid_train.json").unlink()
    remit(*args, check=True)
    second = stage_dir.read_result()
    assert second["tasks"][name]["accuracy"] == 0.625
    assert second["bits_per_byte"] == first["bits_per_byte"]
    again = [json.loads(line) for line in stage_dir.metrics.read_text().splitlines()][len(lines) :]
    assert {line["task"] for line in again} == {"bits per byte of mid_train"}
