"""A row of a comparison: what its tables need of one model, as a line of JSON, without weights."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.errors import UserError

# Sums of the same numbers in another order differ by less.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Row:
    """One evaluated model of a comparison.

    Attributes:
        point: `mid` (after mid-training), `sft`, `dpo`, `post` (after all of post-training), or the
            part of the mid-training that was done, such as `1/4`.
        against: the arm that the tables subtract from this one.
        study: hashes of what it depends on, see `Study.parts`; equal for other seeds.
        tasks: by task the accuracy, the number of questions, and one bit for each of them.
        drawn: of answers that were drawn, by measure (pass@8, entropy) the mean over tasks.
        training: of the arm's stages up to this row, see `study.training_measures`.
        shared: hashes of what all arms of its comparison share, see `study.Study.shared`. Like
            `training`, empty in rows that were written without it.
        tokens, steps: of the mid-training.
        passes: the most that a source was begun for them; MiniPLM draws a pool of twice the tokens.
        flops, seconds: of the arm's stages up to this row; all of the mid-training for its points.
    """

    arm: str
    seed: int
    point: str
    against: str
    identity: str
    study: dict[str, str]
    average: float
    tasks: dict[str, dict[str, Any]]
    bits_per_byte: dict[str, float]
    drawn: dict[str, float]
    tokens: int
    steps: int
    passes: int
    flops: float
    seconds: float
    training: dict[str, float] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)


def parsed(path: Path, named: str) -> list[Row]:
    """The rows of a file, which a message calls `named`.

    Raises:
        UserError: a line that is no row.
    """
    lines = path.read_text("utf-8", errors="replace").splitlines()
    return [_parse(line, f"{named}, line {number}") for number, line in enumerate(lines, 1)]


def _parse(line: str, where: str) -> Row:
    names = [each.name for each in dataclasses.fields(Row)]
    optional = {"training", "shared"}
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: no JSON ({error}).") from error
    if not isinstance(values, dict) or values.keys() | optional != set(names):
        raise UserError(f"{where}: no row of remit compare, whose keys are {', '.join(names)}.")
    for key, fits, wanted in _FIELDS:
        if key in values and not fits(values[key]):
            raise UserError(f"{where}: {key} is not {wanted}.")
    for task, score in values["tasks"].items():
        _check_score(score, f"{where}: tasks.{task}")
    accuracies = [score["accuracy"] for score in values["tasks"].values()]
    if not math.isclose(values["average"], sum(accuracies) / len(accuracies), abs_tol=ROUNDING):
        raise UserError(f"{where}: average is not the mean of the accuracies of its tasks.")
    return Row(**values)


def _is_number(value: Any) -> bool:
    # A whole number too large for a float is none.
    return _is_count(value) or (isinstance(value, float) and 0 <= value < math.inf)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_point(value: Any) -> bool:
    return isinstance(value, str) and bool(
        re.fullmatch(r"mid|sft|dpo|post|[1-9]\d{0,8}/[1-9]\d{0,8}", value)
    )


def _holds(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(fits, value.values()))


def _holds_some(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: bool(value) and _holds(fits)(value)


_COUNT, _NUMBER = "a whole number from 0", "a finite number from 0"
# Key, whether a value fits, what it should be.
_FIELDS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("arm", _is_text, "a text"),
    ("seed", _is_count, _COUNT),
    ("point", _is_point, "mid, sft, dpo, post or a part such as 1/4"),
    ("against", _is_text, "a text"),
    ("identity", _is_text, "a text"),
    ("study", _holds(_is_text), "an object of texts"),
    ("average", _is_number, _NUMBER),
    (
        "tasks",
        _holds_some(lambda score: isinstance(score, dict)),
        "an object of scores by task, one or more",
    ),
    ("bits_per_byte", _holds(_is_number), "an object of finite numbers from 0"),
    ("drawn", _holds(_is_number), "an object of finite numbers from 0"),
    ("training", _holds(_is_number), "an object of finite numbers from 0"),
    ("shared", _holds(_is_text), "an object of texts"),
    ("tokens", _is_count, _COUNT),
    ("steps", _is_count, _COUNT),
    ("passes", _is_count, _COUNT),
    ("flops", _is_number, _NUMBER),
    ("seconds", _is_number, _NUMBER),
)


def _check_score(score: dict[str, Any], where: str) -> None:
    names = ("accuracy", "questions", "bits")
    if score.keys() != set(names):
        raise UserError(f"{where}: a score has the keys {', '.join(names)}.")
    if not _is_number(score["accuracy"]):
        raise UserError(f"{where}.accuracy is not {_NUMBER}.")
    if not _is_count(score["questions"]):
        raise UserError(f"{where}.questions is not {_COUNT}.")
    bits = score["bits"]
    if not isinstance(bits, str) or set(bits) - {"0", "1"} or len(bits) != score["questions"]:
        raise UserError(f"{where}.bits is not a text of one 0 or 1 for each question.")
    right = bits.count("1") / max(1, len(bits))
    if not math.isclose(score["accuracy"], right, abs_tol=ROUNDING):
        raise UserError(f"{where}.accuracy is not the share of 1 in its bits.")
