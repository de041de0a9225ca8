"""A row of a comparison: the measurements of one evaluated model, stored as a line of JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.comparison.arm_stages import Place
from pipelines.errors import UserError

# Tolerance for sums of the same numbers in another order.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Row:
    """One evaluated model of a comparison; `tokens` and `steps` are those of its mid-training."""

    arm: str
    seed: int
    point: str  # mid, sft, dpo, post, or the share of the mid-training that was done, such as 1/4
    against: str  # the baseline, an arm that the tables subtract from this one
    identity: str
    study: dict[str, str]  # hashes of what it depends on, see `Study.parts`; equal for all seeds
    average: float
    tasks: dict[str, dict[str, Any]]  # accuracy, number of questions, one bit per question
    bits_per_byte: dict[str, float]
    sampled: dict[str, float]  # by measure of the samples (pass@8, entropy), the mean over tasks
    tokens: int
    steps: int
    passes: int  # over the source that was read most often; MiniPLM reads twice the tokens
    flops: float  # of the arm's stages up to this row, with the whole mid-training
    seconds: float  # of the same stages
    # Rows of early versions lack these: see `study.training_measures` and `Study.shared`.
    training: dict[str, float] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)

    @property
    def place(self) -> Place:
        return self.arm, self.seed, self.point


def parsed(path: Path, named: str) -> list[Row]:
    """The rows of a file, called `named` in error messages.

    Raises:
        UserError: a line is not a valid row.
    """
    lines = path.read_text("utf-8", errors="replace").splitlines()
    return [_parse(line, f"{named}, line {number}") for number, line in enumerate(lines, 1)]


def _parse(line: str, where: str) -> Row:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: invalid JSON ({error}).") from error
    if not isinstance(values, dict) or values.keys() | {"training", "shared"} != _FIELDS.keys():
        raise UserError(
            f"{where}: not a row of remit compare. A row has the keys {', '.join(_FIELDS)}."
        )
    _check_values(values, _FIELDS, f"{where}: ")
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
    pattern = r"mid|sft|dpo|post|[1-9]\d{0,8}/[1-9]\d{0,8}"
    return isinstance(value, str) and bool(re.fullmatch(pattern, value))


def _holds(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(fits, value.values()))


def _is_tasks(value: Any) -> bool:
    return bool(value) and _holds(lambda score: isinstance(score, dict))(value)


# The check of a value, and the description of valid values.
_Kind = tuple[Callable[[Any], bool], str]
_TEXT: _Kind = (_is_text, "a text")
_COUNT: _Kind = (_is_count, "an integer, 0 or more")
_NUMBER: _Kind = (_is_number, "a finite number, 0 or more")
_TEXTS: _Kind = (_holds(_is_text), "an object with text values")
_NUMBERS: _Kind = (_holds(_is_number), "an object whose values are finite numbers, 0 or more")
_FIELDS: dict[str, _Kind] = {
    "arm": _TEXT, "seed": _COUNT,
    "point": (_is_point, "mid, sft, dpo, post or a share such as 1/4"),
    "against": _TEXT, "identity": _TEXT, "study": _TEXTS, "average": _NUMBER,
    "tasks": (_is_tasks, "an object with at least one task and its score"),
    "bits_per_byte": _NUMBERS, "sampled": _NUMBERS, "tokens": _COUNT, "steps": _COUNT,
    "passes": _COUNT, "flops": _NUMBER, "seconds": _NUMBER, "training": _NUMBERS,
    "shared": _TEXTS,
}  # fmt: skip
_SCORE = {"accuracy": _NUMBER, "questions": _COUNT, "bits": _TEXT}


def _check_values(values: dict[str, Any], kinds: dict[str, _Kind], before: str) -> None:
    for key, (fits, wanted) in kinds.items():
        if key in values and not fits(values[key]):
            raise UserError(f"{before}{key} must be {wanted}.")


def _check_score(score: dict[str, Any], where: str) -> None:
    if score.keys() != _SCORE.keys():
        raise UserError(f"{where}: it must have exactly the keys {', '.join(_SCORE)}.")
    _check_values(score, _SCORE, f"{where}.")
    bits = score["bits"]
    if set(bits) - {"0", "1"} or len(bits) != score["questions"]:
        raise UserError(f"{where}.bits must be a text with one 0 or 1 per question.")
    right = bits.count("1") / max(1, len(bits))
    if not math.isclose(score["accuracy"], right, abs_tol=ROUNDING):
        raise UserError(f"{where}.accuracy must be the share of 1s in its bits.")
