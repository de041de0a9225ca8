"""The streams of the built-in world, one for each stage of training."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from pipelines.world.rng import Dice

from . import prose
from .families import FAMILIES, near_miss, problem

STREAMS = (
    "pretrain", "mid_train", "sft", "dpo", "rlvr", "eval", "heldout_pretrain", "heldout_mid_train",
)  # fmt: skip
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


def _questions(stream: str, dice: Dice) -> Iterator[dict[str, str]]:
    """Endless questions, with what the stage of `stream` trains on."""
    while True:
        item = problem(dice, dice.pick(FAMILIES), "rlvr" if stream == "rlvr" else "tuning")
        if stream == "sft":
            answers = {"response": item.response}
        elif stream == "dpo":
            answers = {"chosen": item.response, "rejected": near_miss(dice, item)}
        else:
            answers = {"answer": item.answer}
        yield {"prompt": item.prompt, **answers, "family": item.family}


def _eval() -> Iterator[dict[str, str]]:
    """The evaluation set: `EVAL_PER_FAMILY` distinct questions of each family, alternating.

    It does not depend on the caller's seed, so every run has the same questions. Families
    alternate, so that the first questions are a representative sample.
    """
    exams = [_family_exam(family) for family in FAMILIES]
    return chain.from_iterable(zip(*exams, strict=True))


def _family_exam(family: str) -> Iterator[dict[str, str]]:
    dice = Dice.named(f"world {WORLD_VERSION} eval {family}")
    seen: set[str] = set()
    while len(seen) < EVAL_PER_FAMILY:
        item = problem(dice, family, "eval")
        if item.prompt not in seen:
            seen.add(item.prompt)
            answers = {"answer": item.answer, "response": item.response}
            yield {"prompt": item.prompt, **answers, "family": family}


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
    return _questions(stream, dice)
