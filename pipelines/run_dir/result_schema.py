"""Validate the result of a stage: the keys that its readers need, and their types."""

from __future__ import annotations

from typing import Any

# Required keys of a result of each kind, with the types of their values.
NUMBER = (int, float)
SHAPES: dict[str, dict[str, Any]] = {
    "evaluate": {"tasks": dict, "bits_per_byte": dict},
    "contamination": {"evals": dict, "ngram": NUMBER},
    "analyze": {"rounds": list, "dynamics": list, "movement": list},
    "dpo": {"heldout_pair_accuracy": NUMBER},
    "rlvr": {
        "reward_first_quarter": NUMBER, "reward_last_quarter": NUMBER,
        "zero_variance_groups": NUMBER,
    },
}  # fmt: skip
TASK = {"accuracy": NUMBER, "interval": list, "questions": int, "bits": str}
AVERAGE = {"average": NUMBER, "average_half_interval": NUMBER}
CHECKED = {"questions": int, "contaminated": int, "exact": int, "sources": dict}


def problem_in(result: dict[str, Any]) -> str:
    """What is wrong with a result, as text; empty if it is valid."""
    kind = result["kind"]
    found = _lacks(result, SHAPES.get(str(kind), {}))
    if not found and kind == "contamination":
        return _first_problem("evals", result["evals"], CHECKED)
    if found or kind != "evaluate":
        return found
    found = (
        _first_problem("tasks", result["tasks"], TASK)
        or _first_problem("bits_per_byte", result["bits_per_byte"], {"bits_per_byte": NUMBER})
        or _lacks(result, AVERAGE if result["tasks"] else {})
    )
    if found:
        return found
    for name, task in result["tasks"].items():
        bits, questions = task["bits"], task["questions"]
        if len(bits) != questions or set(bits) - {"0", "1"}:
            return f"tasks.{name} has {questions} questions and {len(bits)} bits"
        if len(task["interval"]) != 2:
            return f"the interval of tasks.{name} does not have two ends"
    return ""


def _first_problem(section: str, entries: dict[str, Any], shape: dict[str, Any]) -> str:
    for name, entry in entries.items():
        if not isinstance(entry, dict):
            return f"{section}.{name} is not an object"
        if found := _lacks(entry, shape):
            return f"{section}.{name}: {found}"
    return ""


def _lacks(values: dict[str, Any], shape: dict[str, Any]) -> str:
    for key, wanted in shape.items():
        if key not in values:
            return f"it has no {key}"
        if not isinstance(values[key], wanted) or isinstance(values[key], bool):
            return f"its {key} is a {type(values[key]).__name__}"
    return ""
