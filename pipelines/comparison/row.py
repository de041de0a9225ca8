"""A row of a comparison: the measurements of one evaluated model, stored as a line of JSON."""

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

# Tolerance for sums of the same numbers in another order.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Row:
    """One evaluated model of a comparison.

    Attributes:
        point: `mid` (after mid-training), `sft`, `dpo`, `post` (after all of post-training), or the
            share of the mid-training that was done, such as `1/4`.
        against: the baseline, an arm that the tables subtract from this one.
        study: hashes of what it depends on, see `Study.parts`; equal for all seeds.
        tasks: for each task the accuracy, the number of questions, and one bit per question.
        sampled: for each measure of the samples (pass@8, entropy) the mean over tasks.
        training: measures of the arm's training up to this row, see `study.training_measures`.
        shared: hashes of what all arms of its comparison share, see `study.Study.shared`. Empty,
            like `training`, in rows of a version that did not record it.
        tokens, steps: tokens and steps of the mid-training.
        passes: passes over the source that was read most often; MiniPLM reads twice the tokens.
        flops, seconds: cost of the arm's stages up to this row; at a point during mid-training, the
            cost of the whole mid-training.
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
    sampled: dict[str, float]
    tokens: int
    steps: int
    passes: int
    flops: float
    seconds: float
    training: dict[str, float] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)


def parsed(path: Path, named: str) -> list[Row]:
    """The rows of a file, called `named` in error messages.

    Raises:
        UserError: a line is not a valid row.
    """
    lines = path.read_text("utf-8", errors="replace").splitlines()
    return [_parse(line, f"{named}, line {number}") for number, line in enumerate(lines, 1)]


def _parse(line: str, where: str) -> Row:
    names = [each.name for each in dataclasses.fields(Row)]
    optional = {"training", "shared"}
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: invalid JSON ({error}).") from error
    if not isinstance(values, dict) or values.keys() | optional != set(names):
        raise UserError(
            f"{where}: not a row of remit compare. A row has the keys {', '.join(names)}."
        )
    for key, fits, wanted in _FIELDS:
        if key in values and not fits(values[key]):
            raise UserError(f"{where}: {key} must be {wanted}.")
    for task, score in values["tasks"].items():
        _check_score(score, f"{where}: tasks.{task}")
    accuracies = [score["accuracy"] for score in values["tasks"].values()]
    if not math.isclose(values["average"], sum(accuracies) / len(accuracies), abs_tol=ROUNDING):
        raise UserError(f"{where}: average must be the mean of the accuracies of its tasks.")
    return Row(**values)


def _is_number(value: Any) -> bool:
    # An integer too large for a float does not count.
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


_COUNT, _NUMBER = "an integer, 0 or more", "a finite number, 0 or more"
# Key, check of the value, description of valid values.
_FIELDS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("arm", _is_text, "a text"),
    ("seed", _is_count, _COUNT),
    ("point", _is_point, "mid, sft, dpo, post or a share such as 1/4"),
    ("against", _is_text, "a text"),
    ("identity", _is_text, "a text"),
    ("study", _holds(_is_text), "an object with text values"),
    ("average", _is_number, _NUMBER),
    (
        "tasks",
        _holds_some(lambda score: isinstance(score, dict)),
        "an object with at least one task and its score",
    ),
    ("bits_per_byte", _holds(_is_number), "an object whose values are finite numbers, 0 or more"),
    ("sampled", _holds(_is_number), "an object whose values are finite numbers, 0 or more"),
    ("training", _holds(_is_number), "an object whose values are finite numbers, 0 or more"),
    ("shared", _holds(_is_text), "an object with text values"),
    ("tokens", _is_count, _COUNT),
    ("steps", _is_count, _COUNT),
    ("passes", _is_count, _COUNT),
    ("flops", _is_number, _NUMBER),
    ("seconds", _is_number, _NUMBER),
)


def _check_score(score: dict[str, Any], where: str) -> None:
    names = ("accuracy", "questions", "bits")
    if score.keys() != set(names):
        raise UserError(f"{where}: it must have exactly the keys {', '.join(names)}.")
    if not _is_number(score["accuracy"]):
        raise UserError(f"{where}.accuracy must be {_NUMBER}.")
    if not _is_count(score["questions"]):
        raise UserError(f"{where}.questions must be {_COUNT}.")
    bits = score["bits"]
    if not isinstance(bits, str) or set(bits) - {"0", "1"} or len(bits) != score["questions"]:
        raise UserError(f"{where}.bits must be a text with one 0 or 1 per question.")
    right = bits.count("1") / max(1, len(bits))
    if not math.isclose(score["accuracy"], right, abs_tol=ROUNDING):
        raise UserError(f"{where}.accuracy must be the share of 1s in its bits.")
