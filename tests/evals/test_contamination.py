"""Contamination: by value, against a naive loop, and as a stage that can leave questions out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import UserError
from pipelines.evals.contamination import Passage, Question, check, exact_form, plain

WORDS = [
    *("one", "two", "three", "four", "five", "six", "seven"),
    *("eight", "nine", "ten", "eleven", "twelve", "thirteen"),
]
SENTENCE = " ".join(WORDS)


def passage(text: str, *parts: str, where: str = "line 1") -> Passage:
    return Passage(text, lambda: where, parts)


def found(
    question: Question, *texts: str | Passage, n: int = 13
) -> tuple[int, int, list[dict[str, str]]]:
    """How often one question is found as n-gram and as exact match, and the examples."""
    passages = [passage(text) if isinstance(text, str) else text for text in texts]
    result = check({"task": [question]}, {"books": passages}, n=n)["task"]
    source = result["sources"]["books"]
    assert result["contaminated"] == int(bool(source["ngram"] or source["exact"]))
    return source["ngram"], source["exact"], source["examples"]


@pytest.mark.parametrize("before", range(25))
def test_thirteen_words_are_found_wherever_they_stand(before: int) -> None:
    question = Question("q", f"Say: {SENTENCE} and more?")
    text = "other " * before + SENTENCE + " words after"
    ngram, exact, examples = found(question, "nothing here", text)
    assert (ngram, exact) == (1, 0)
    assert examples == [
        {"id": "q", "question": question.prompt, "sha256": question.sha256, "ngram": SENTENCE,
         "where": "line 1"}
    ]  # fmt: skip


def test_twelve_words_are_not_enough() -> None:
    question = Question("q", f"Say: {SENTENCE} and more?")
    assert found(question, f"other {' '.join(WORDS[1:])} other")[0] == 0
    assert found(question, f"other {' '.join(WORDS[1:])} other", n=12)[0] == 1


def test_case_punctuation_and_white_space_do_not_count() -> None:
    question = Question("q", SENTENCE + " and more")
    assert found(question, "x ONE, (two)\tthree\u00a0\u201cfour\u201d--\n" + "! ".join(WORDS[4:]))[
        0
    ]
    assert (
        plain("It's 3.5\u2014\u201cOK\u201d,\r\nyes_no \u00dcber!") == "its 35ok \nyesno \u00fcber"
    )


def test_question_and_answer_are_one_text() -> None:
    question = Question("q", " ".join(WORDS[:8]) + "?", " ".join(WORDS[8:]))
    assert found(question, f"so {SENTENCE} it is")[:2] == (1, 0)


def test_a_short_question_is_found_whole_only() -> None:
    question = Question("q", "What is 3 + 4?", "7")
    for text in ("what is 3 + 4", "A line\n  What  is 3 + 4:\nand more", "What is 3 + 4? 7"):
        assert found(question, text)[:2] == (0, 1), text
    assert found(question, passage("Q: What is 3 + 4? A: 7", "What is 3 + 4?"))[:2] == (0, 1)
    for text in ("I ask: what is 3 + 4?", "What is 3 - 4?", "What is 34?", "", "What is 3 + 4? 8"):
        assert found(question, text)[:2] == (0, 0), text


def test_a_question_of_several_lines_is_found_whole() -> None:
    assert found(Question("q", "Choose.\nA. yes\nB. no"), "choose\na. yes b. no!")[1] == 1


def test_signs_alone_match_nothing_and_are_counted() -> None:
    result = check({"task": [Question("q", "?!")]}, {"books": [passage("...\n?!\n")]})["task"]
    assert (result["contaminated"], result["not_compared"]) == (0, 1)


def test_counts_and_bits_over_sources() -> None:
    questions = [
        Question("0", SENTENCE + " and more"),
        Question("1", "short one"),
        Question("2", "not there"),
        Question("3", "short two"),
    ]
    sources = {
        "books": [passage(f"a {SENTENCE}"), passage(f"b {SENTENCE}"), passage("Short one.")],
        "web": [passage("short one", where="page 7"), passage("short two")],
        "code": [passage("none of it")],
    }
    result = check({"task": questions, "other": [Question("x", "short two")]}, sources)
    task = result["task"]
    assert (task["questions"], task["contaminated"], task["exact"]) == (4, 3, 2)
    assert task["bits"] == "1101"
    counts = {name: (s["ngram"], s["exact"]) for name, s in task["sources"].items()}
    assert counts == {"books": (1, 1), "web": (0, 2), "code": (0, 0)}
    # Exact matches come first.
    assert [e["id"] for e in task["sources"]["books"]["examples"]] == ["1", "0"]
    assert task["sources"]["web"]["examples"][0]["where"] == "page 7"
    assert (task["ngrams"], task["ngrams_found"]) == (3, 1)
    assert result["other"]["contaminated"] == 1


def test_five_examples_and_none_of_an_unpublished_set_in_words() -> None:
    questions = [Question(str(i), f"question number {i}") for i in range(8)]
    sources = {"books": [passage("\n".join(q.prompt for q in questions))]}
    task = check({"task": questions}, sources, unpublished=["task"])["task"]
    assert (task["publish"], task["contaminated"]) == (False, 8)
    assert task["sources"]["books"]["examples"] == [
        {"id": q.id, "question": "", "sha256": q.sha256, "ngram": "", "where": ""}
        for q in questions[:5]
    ]


def test_sources_pass_by_once_and_are_not_kept() -> None:
    import tracemalloc

    def endless_text() -> Iterator[Passage]:
        for number in range(2_000):
            yield passage(f"{number} " + f"some text {number} that nobody asks for " * 100)

    sources = {"books": endless_text()}
    tracemalloc.start()
    check({"task": [Question("q", SENTENCE)]}, sources)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert next(sources["books"], None) is None
    assert peak < 1_000_000, "8 MB of text went by"


LETTERS = st.lists(st.sampled_from(["a", "b", "B", "c,", "\u201cd\u201d"]), max_size=20).map(
    " ".join
)


@settings(max_examples=300, deadline=None)
@given(st.lists(LETTERS, max_size=4), st.lists(LETTERS, max_size=4), st.integers(1, 6))
def test_equals_a_naive_loop(prompts: list[str], texts: list[str], n: int) -> None:
    def words(text: str) -> list[str]:
        return ["".join(c for c in word if c.isalnum()) for word in text.lower().split()]

    def grams(text: str) -> set[tuple[str, ...]]:
        split = words(text)
        return {tuple(split[i : i + n]) for i in range(len(split) - n + 1)}

    questions = [Question(str(i), prompt) for i, prompt in enumerate(prompts)]
    result = check({"task": questions}, {"books": map(passage, texts)}, n=n)["task"]
    ngram = [any(grams(p) & grams(t) for t in texts) for p in prompts]
    exact = [any(p and exact_form(p) == exact_form(t) for t in texts) for p in prompts]
    assert result["sources"]["books"]["ngram"] == sum(ngram)
    assert result["sources"]["books"]["exact"] == result["exact"] == sum(exact)
    assert result["bits"] == "".join(str(int(a or b)) for a, b in zip(ngram, exact, strict=True))


def test_what_is_left_out_of_a_score() -> None:
    from pipelines.stages.task_scores import clean

    assert clean("task", ["a", "b", "c", "d", "e"], "10010") == ["b", "c", "e"]
    with pytest.raises(UserError, match="every question of task"):
        clean("task", [1, 0], "11")


def write_lines(path: Path, *records: dict[str, str]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def planted(tmp_path: Path, write_recipe: Callable[[dict[str, Any]], Path]) -> Path:
    """A recipe with four questions, of which SFT holds the second and mid-training the fourth."""
    asked = ["add 3 4 mod 5", "sort 312", f"count {SENTENCE}", f"say {SENTENCE} and more"]
    write_lines(tmp_path / "exam.jsonl", *({"prompt": p, "answer": "2"} for p in asked))
    write_lines(
        tmp_path / "text.jsonl",
        *({"text": f"a story of cats number {i}"} for i in range(40)),
        {"text": f"once {' '.join(WORDS[4:])} and more and no end"},
    )
    write_lines(
        tmp_path / "chat.jsonl", {"prompt": "Sort 312", "response": "1 2 3 so 123"},
        {"prompt": "add 4 3 mod 5", "response": "2"},
    )  # fmt: skip
    return write_recipe({
        "data_root": str(tmp_path),
        "mid_train": {"sources": {"files": {"path": "text.jsonl"}}},
        "sft": {"sources": {"files": {"path": "chat.jsonl"}}},
        "eval": {
            "contamination_ngram": 11,
            "tasks": {"world": {"enabled": False}, "exam": {"source": {"path": "exam.jsonl"}}},
        },
    })  # fmt: skip


def test_the_stage_through_the_files(planted: Path, remit: Any, tmp_path: Path) -> None:
    args = ("contamination", "--config", planted, "--run-dir", tmp_path / "run", "--json")
    done = remit(*args, check=True)
    result = json.loads((tmp_path / "run/contamination/result.json").read_text())
    exam = result["evals"]["exam"]
    assert (sorted(exam["bits"]), exam["contaminated"], exam["exact"]) == ([*"0011"], 2, 1)
    (example,) = exam["sources"]["sft.sources.files"]["examples"]
    assert example["question"] == "sort 312" and example["where"] == "chat.jsonl, line 1"
    assert exam["bits"][int(example["id"].removeprefix("exam/"))] == "1"
    (example,) = exam["sources"]["mid_train.sources.files"]["examples"]
    assert example["question"] == f"say {SENTENCE} and more"
    assert example["ngram"] == " ".join([*WORDS[4:], "and", "more"])
    assert example["where"] == "text.jsonl, line 41"
    assert exam["sources"]["pretrain.sources.world"] == {"ngram": 0, "exact": 0, "examples": []}
    assert result["sources"]["mid_train.sources.files"]["passages"] == 41
    texts = {name for name, value in result["evals"].items() if value["kind"] == "text"}
    assert texts == {"bits_per_byte.pretrain", "bits_per_byte.mid_train"}
    assert "2 of 4 questions found in training text" in done.stderr
    assert "is complete, skipped" in remit(*args, check=True).stderr
    refused = remit(*args, "eval.contamination_ngram=13")
    assert refused.returncode == 2 and "eval.contamination_ngram: 11 -> 13" in refused.stderr


def test_eval_leaves_contaminated_questions_out(
    planted: Path, remit: Any, tiny_model: Path, tmp_path: Path
) -> None:
    done = remit("eval", "--config", planted, "--model", tiny_model, "--run-dir", tmp_path / "run",
                 "--json", "eval.contamination=leave_out", check=True)  # fmt: skip
    (score,) = done.json["scores"].values()
    assert (score["tasks"]["exam"]["questions"], score["tasks"]["exam"]["left_out"]) == (2, 2)
    assert list(done.json["stages"]) == ["contamination", "eval"]


def test_gsm8k_shares_stock_phrases_with_its_training_set(
    data_root: Path, remit: Any, tmp_path: Path
) -> None:
    """Three of 1319 questions, by phrases such as `bought stamps at the post office ...`."""
    off = ["sft.enabled=false", "dpo.enabled=false", "rlvr.enabled=false"]
    off += [f"mid_train.sources.{name}.weight=0" for name in ("openstax", "books", "code")]
    off += ["eval.bits_per_byte={}", "eval.tasks.gsm8k.limit=0", "base=given"]
    remit("contamination", "--config", "gsm8k-small", "--run-dir", tmp_path, *off, check=True,
          env={"REMIT_DATA": str(data_root)})  # fmt: skip
    evals = json.loads((tmp_path / "contamination/result.json").read_text())["evals"]
    gsm8k = evals["gsm8k"]
    assert (gsm8k["questions"], gsm8k["contaminated"], gsm8k["exact"]) == (1319, 3, 0)
    examples = gsm8k["sources"]["mid_train.sources.gsm8k"]["examples"]
    assert "bought stamps at the post office some of the stamps had a snowflake" in {
        example["ngram"] for example in examples
    }


def test_sources_that_may_not_be_shown() -> None:
    from pipelines.evals.questions import unpublished
    from pipelines.recipe.load import load

    assert unpublished(load("world-tiny")) == set()
    hidden = ["eval.bits_per_byte.pretrain.publish=false", "eval.tasks.world.source.publish=false"]
    found = unpublished(load("world-tiny", hidden))
    assert "bits_per_byte.pretrain" in found and "bits_per_byte.mid_train" not in found
    assert len(found) == 1 + 10  # the families of the world
