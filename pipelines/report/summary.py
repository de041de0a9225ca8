"""Results of finished stages: columns of the score table, facts for `--json`, expectations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.evals.intervals import paired_difference
from pipelines.plan.kinds import kind_of
from pipelines.run_dir.paths import RunDir

Result = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """One evaluated model, a column of the score table: `title` is base, mid-0, post-0, ..."""

    title: str
    stage: str
    result: Result

    def asked(self) -> dict[str, tuple[int, str]]:
        """The number and the hash of each task's questions: equal for the same questions."""
        return {
            name: (task["questions"], task.get("questions_sha256", ""))
            for name, task in self.result["tasks"].items()
        }

    def bits(self) -> dict[str, list[int]]:
        """For each task, 1 per question answered correctly and 0 per other question."""
        return {name: list(map(int, task["bits"])) for name, task in self.result["tasks"].items()}


def column_title(stage: str) -> str:
    """`round-1/15-eval` is `mid-1`, `round-1/50-eval` is `post-1`, `base-eval` is `base`."""
    folder, _, name = stage.rpartition("/")
    number = folder.removeprefix("round-")
    parts = {"15-eval": f"mid-{number}", "50-eval": f"post-{number}"}
    return parts.get(name, name.removesuffix("-eval"))


def columns(results: dict[str, Result]) -> list[Column]:
    """The evaluated models among results by stage name, in the same order."""
    return [
        Column(column_title(name), name, result)
        for name, result in results.items()
        if result["kind"] == "evaluate"
    ]


def not_asked(columns: Sequence[Column]) -> dict[str, str]:
    """Benchmarks that could not be evaluated, with the reason."""
    return {k: why for c in columns for k, why in c.result.get("not_asked", {}).items()}


def score_notes(columns: Sequence[Column]) -> list[str]:
    """Caveats on the averages of some models, one sentence each."""
    notes = []
    asked: dict[tuple[tuple[str, tuple[int, str]], ...], list[str]] = {}
    for column in columns:
        if tasks := column.asked():
            asked.setdefault(tuple(sorted(tasks.items())), []).append(column.title)
    if len(asked) > 1:
        sets = (
            f"{', '.join(titles)}: {sum(count for _, (count, _) in key):,} questions of "
            f"{len(key)} {'task' if len(key) == 1 else 'tasks'}"
            for key, titles in asked.items()
        )
        notes.append(
            f"The averages are over different questions ({'; '.join(sets)}): compare task by task."
        )
    tasks_of = [task for column in columns for task in column.result["tasks"].items()]
    left_out = {name: task["left_out"] for name, task in tasks_of if task.get("left_out")}
    if left_out:
        counts = ", ".join(f"{count:,} of {name}" for name, count in left_out.items())
        notes.append(f"Excluded, since they occur in training text: {counts}.")
    return notes


def read_results(run: RunDir, names: list[str]) -> dict[str, Result]:
    """The results of the complete stages among `names`."""
    return {name: run.stage(name).read_result() for name in names if run.stage(name).is_complete()}


def as_json(run: RunDir, results: dict[str, Result]) -> dict[str, Any]:
    """The JSON object of a finished command: scores by model, facts and folders by stage."""
    scores = {
        c.title: {
            "average": c.result.get("average"),
            "average_half_interval": c.result.get("average_half_interval"),
            "tasks": _without_bits(c.result["tasks"]),
            "bits_per_byte": c.result.get("bits_per_byte", {}),
            "not_asked": c.result.get("not_asked", {}),
        }
        for c in columns(results)
    }
    stages = {
        name: {
            "folder": str(run.stage(name).root),
            **({"model": str(run.stage(name).model)} if "model_sha256" in result else {}),
            "seconds": result["seconds"],
            **{key: result[key] for key in kind_of(result["kind"]).facts if key in result},
        }
        for name, result in results.items()
    }
    return {"run_dir": str(run.root), "scores": scores, "stages": stages}


def _without_bits(tasks: dict[str, Result]) -> dict[str, Result]:
    return {name: {k: v for k, v in task.items() if k != "bits"} for name, task in tasks.items()}


def analysis_facts(result: Result) -> dict[str, Any]:
    """The result of an analysis, without its text excerpts."""
    return {
        "dynamics_reference": result["dynamics_reference"],
        "dynamics": result["dynamics"],
        "rounds": [{k: v for k, v in r.items() if k != "sequences"} for r in result["rounds"]],
        "movement": result["movement"],
        "accuracy": [e | {"tasks": _without_bits(e["tasks"])} for e in result["accuracy"]],
        "missing": result["missing"],
    }


@dataclass(frozen=True)
class Expectation:
    """One expected behaviour of the built-in world, and whether this run showed it."""

    text: str
    met: bool
    measured: str


def expectations(
    results: dict[str, Result], constant_answer_accuracy: dict[str, float]
) -> list[Expectation]:
    """The expected behaviours of a default run. That ReMiT beats NTP is not one of them.

    Args:
        constant_answer_accuracy: accuracy of the best constant answer, per family.
    """
    models = {c.title: c for c in columns(results)}
    wanted = [models.get(title) for title in ("base", "mid-0", "post-0")]
    if any(column is None or "average" not in column.result for column in wanted):
        return _step_expectations(results)
    base, mid, post = (models[title].result for title in ("base", "mid-0", "post-0"))
    gain, half = paired_difference(models["mid-0"].bits(), models["post-0"].bits())
    highest, best = max(mid["tasks"].items(), key=lambda item: item[1]["accuracy"])
    above = sum(
        score["interval"][0] > constant_answer_accuracy[family]
        for family, score in post["tasks"].items()
    )
    return [
        Expectation(
            "mid-0 average between 10% and 60%, above the base",
            0.10 <= mid["average"] <= 0.60 and mid["average"] > base["average"],
            f"base {base['average']:.1%}, mid-0 {mid['average']:.1%}",
        ),
        Expectation(
            "post-0 above mid-0, 95% interval of the difference above 0", gain - half > 0,
            f"post-0 {post['average']:.1%}, difference {gain:+.1%} +- {half:.1%}",
        ),
        Expectation(
            "no family above 95% at mid-0", best["accuracy"] <= 0.95,
            f"highest {highest} {best['accuracy']:.1%}",
        ),
        Expectation(
            "post-0 above the best constant answer in at least eight of ten families", above >= 8,
            f"{above} of {len(post['tasks'])}",
        ),
        *_step_expectations(results),
    ]  # fmt: skip


# Expectations of single steps: kind, text, whether a result meets it, how it is shown.
STEPS: tuple[tuple[str, str, Callable[[Result], bool], str], ...] = (
    (
        "dpo", "DPO: held-out pair accuracy above 0.5",
        lambda r: r["heldout_pair_accuracy"] > 0.5, "{heldout_pair_accuracy:.2f}",
    ),
    (
        "rlvr", "RLVR: mean reward of the last quarter above that of the first",
        lambda r: r["reward_last_quarter"] > r["reward_first_quarter"],
        "{reward_first_quarter:.2f} to {reward_last_quarter:.2f}",
    ),
    (
        "rlvr", "RLVR: share of zero-variance groups below 0.8",
        lambda r: r["zero_variance_groups"] < 0.8, "{zero_variance_groups:.2f}",
    ),
    (
        "mid_train", "ReMiT: standard deviation of the token weights above 0.01",
        lambda r: r["weight_std"] > 0.01, "{weight_std:.3f}",
    ),
)  # fmt: skip


def _step_expectations(results: dict[str, Result]) -> list[Expectation]:
    """The expectations of single steps over all rounds, for the steps that the plan has."""
    found = []
    for kind, text, holds, shown in STEPS:
        rounds = {
            name.split("/")[0]: r for name, r in results.items()
            if r["kind"] == kind and (kind != "mid_train" or r["objective"] == "remit")
        }  # fmt: skip
        if rounds:
            measured = ", ".join(f"{name} {shown.format(**r)}" for name, r in rounds.items())
            found.append(Expectation(text, all(map(holds, rounds.values())), measured))
    return found
