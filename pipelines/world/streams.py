"""The streams of the built-in world, one for each stage of training."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.world.rng import Dice

from . import prose
from .families import FAMILIES, near_miss, problem

STREAMS = (
    "pretrain",
    "mid_train",
    "sft",
    "dpo",
    "rlvr",
    "eval",
    "heldout_pretrain",
    "heldout_mid_train",
)
WORLD_VERSION = 1  # increased by hand when the content of any stream changes
EVAL_PER_FAMILY = 200
ALPHABET = "\n ()+.0123456789<=>[]abcdefghijklmnopqrstuvwxyz"

# Probability that a document is a problem; problems are then about 10% and 60% of all characters.
PROBLEM_RATE = {"pretrain": 0.18, "mid_train": 0.73}


def _text(kind: str, holder: str, dice: Dice) -> Iterator[dict[str, str]]:
    """Endless documents of the text stream `kind`, with problems of `holder`."""
    rate = PROBLEM_RATE[kind]
    name, paragraph = ("noise", prose.noisy) if kind == "pretrain" else ("prose", prose.clean)
    while True:
        if dice.random() < rate:
            item = problem(dice, dice.pick(FAMILIES), holder)
            text = f"{item.prompt}\n{item.response}"
            yield {"text": text, "domain": "problem", "family": item.family}
        else:
            yield {"text": paragraph(dice), "domain": name, "family": ""}


def _sft(dice: Dice) -> Iterator[dict[str, str]]:
    """Endless questions with worked solutions."""
    while True:
        item = problem(dice, dice.pick(FAMILIES), "tuning")
        yield {"prompt": item.prompt, "response": item.response, "family": item.family}


def _dpo(dice: Dice) -> Iterator[dict[str, str]]:
    """Endless questions with a right and a wrong worked solution."""
    while True:
        item = problem(dice, dice.pick(FAMILIES), "tuning")
        yield {
            "prompt": item.prompt,
            "chosen": item.response,
            "rejected": near_miss(dice, item),
            "family": item.family,
        }


def _rlvr(dice: Dice) -> Iterator[dict[str, str]]:
    """Endless questions with only the answer."""
    while True:
        item = problem(dice, dice.pick(FAMILIES), "rlvr")
        yield {"prompt": item.prompt, "answer": item.answer, "family": item.family}


def _eval() -> Iterator[dict[str, str]]:
    """The evaluation set: `EVAL_PER_FAMILY` distinct questions of each family, alternating."""
    # It does not depend on the caller's seed, so every run has the same questions. Families
    # alternate, so that the first questions are a representative sample.
    exams = [_family_exam(family) for family in FAMILIES]
    for questions in zip(*exams, strict=True):
        yield from questions


def _family_exam(family: str) -> Iterator[dict[str, str]]:
    dice = Dice.named(f"world {WORLD_VERSION} eval {family}")
    seen: dict[str, None] = {}
    while len(seen) < EVAL_PER_FAMILY:
        item = problem(dice, family, "eval")
        if item.prompt in seen:
            continue
        seen[item.prompt] = None
        yield {
            "prompt": item.prompt,
            "answer": item.answer,
            "response": item.response,
            "family": family,
        }


def records(stream: str, seed: int) -> Iterator[dict[str, str]]:
    """Yield the records of `stream` (one of `STREAMS`); they depend only on `seed`.

    `pretrain`, `mid_train` and `heldout_*` yield `text`, `domain` (`noise`, `prose` or
    `problem`) and `family` ("" outside problems); `sft` yields `prompt`, `response`, `family`;
    `dpo` yields `prompt`, `chosen`, `rejected`, `family`; `rlvr` yields `prompt`, `answer`,
    `family`. These streams are endless. `eval` is finite, is the same for every seed, and yields
    `prompt`, `answer`, `response`, `family`.
    """
    if stream not in STREAMS:
        raise ValueError(f"the world has no stream {stream!r}; it has {', '.join(STREAMS)}")
    dice = Dice.named(f"world {WORLD_VERSION} {stream} {seed}")
    if stream == "eval":
        return _eval()
    if stream.startswith("heldout_"):
        return _text(stream.removeprefix("heldout_"), "heldout", dice)
    if stream in PROBLEM_RATE:
        return _text(stream, "text", dice)
    return {"sft": _sft, "dpo": _dpo, "rlvr": _rlvr}[stream](dice)
