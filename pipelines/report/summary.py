"""Results of finished stages: columns of the score table, facts for `--json`, expectations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.evals.intervals import paired_difference
from pipelines.plan.kinds import kind_of
from pipelines.run_dir.paths import RunDir


@dataclass(frozen=True)
class Column:
    """One evaluated model, a column of the score table.

    Attributes:
        title: base, mid-0, post-0, ...
        result: result of the evaluation stage.
    """

    title: str
    stage: str
    result: dict[str, Any]

    def accuracy(self, task: str) -> float:
        return float(self.result["tasks"][task]["accuracy"])

    def asked(self) -> dict[str, tuple[int, str]]:
        """The number and the hash of each task's questions: equal for the same questions."""
        return {
            name: (task["questions"], task.get("questions_sha256", ""))
            for name, task in self.result["tasks"].items()
        }

    def bits(self) -> dict[str, list[int]]:
        """For each task, 1 per question answered correctly and 0 per other question."""
        return {
            name: [int(bit) for bit in task["bits"]] for name, task in self.result["tasks"].items()
        }


def column_title(stage: str) -> str:
    """`round-1/15-eval` is `mid-1`, `round-1/50-eval` is `post-1`, `base-eval` is `base`."""
    folder, _, name = stage.rpartition("/")
    number = folder.removeprefix("round-")
    return {"15-eval": f"mid-{number}", "50-eval": f"post-{number}"}.get(
        name, name.removesuffix("-eval")
    )


def columns(results: dict[str, dict[str, Any]]) -> list[Column]:
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
    left_out = {
        name: task["left_out"]
        for column in columns
        for name, task in column.result["tasks"].items()
        if task.get("left_out")
    }
    if left_out:
        counts = ", ".join(f"{count:,} of {name}" for name, count in left_out.items())
        notes.append(f"Excluded, since they occur in training text: {counts}.")
    return notes


def stage_facts(results: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The facts of each stage that `--json` and the report show, by stage name."""
    return {
        name: {key: result[key] for key in kind_of(result["kind"]).facts if key in result}
        for name, result in results.items()
        if kind_of(result["kind"]).facts
    }


def read_results(run: RunDir, names: list[str]) -> dict[str, dict[str, Any]]:
    """The results of the complete stages among `names`."""
    return {name: run.stage(name).read_result() for name in names if run.stage(name).is_complete()}


def as_json(run: RunDir, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The JSON object of a finished command: scores by model, facts and folders by stage."""
    scores = {
        c.title: {
            "average": c.result.get("average"),
            "average_half_interval": c.result.get("average_half_interval"),
            "tasks": {task: _without_bits(score) for task, score in c.result["tasks"].items()},
            "bits_per_byte": c.result.get("bits_per_byte", {}),
            "not_asked": c.result.get("not_asked", {}),
        }
        for c in columns(results)
    }
    return {
        "run_dir": str(run.root),
        "scores": scores,
        "stages": {
            name: {
                "folder": str(run.stage(name).root),
                **({"model": str(run.stage(name).model)} if "model_sha256" in result else {}),
                "seconds": result["seconds"],
                **stage_facts({name: result}).get(name, {}),
            }
            for name, result in results.items()
        },
    }


def _without_bits(score: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in score.items() if k != "bits"}


def analysis_facts(result: dict[str, Any]) -> dict[str, Any]:
    """The result of an analysis, without its text excerpts."""
    rounds = [{k: v for k, v in r.items() if k != "sequences"} for r in result["rounds"]]
    return {
        "dynamics_reference": result["dynamics_reference"],
        "dynamics": result["dynamics"],
        "rounds": rounds,
        "movement": result["movement"],
        "accuracy": [
            {k: v for k, v in entry.items() if k != "tasks"}
            | {"tasks": {name: _without_bits(task) for name, task in entry["tasks"].items()}}
            for entry in result["accuracy"]
        ],
        "missing": result["missing"],
    }


@dataclass(frozen=True)
class Expectation:
    """One expected behaviour of the built-in world, and whether this run showed it."""

    text: str
    met: bool
    measured: str


def expectations(
    results: dict[str, dict[str, Any]], constant_answer_accuracy: dict[str, float]
) -> list[Expectation]:
    """The expected behaviours of a default run. That ReMiT beats NTP is not one of them.

    Args:
        constant_answer_accuracy: accuracy of the best constant answer, per family.
    """
    models = {c.title: c for c in columns(results)}
    wanted = [models.get(title) for title in ("base", "mid-0", "post-0")]
    if any(column is None or "average" not in column.result for column in wanted):
        return _step_expectations(results)
    base, mid, post = models["base"], models["mid-0"], models["post-0"]
    mid_average, post_average = mid.result["average"], post.result["average"]
    gain, half = paired_difference(mid.bits(), post.bits())
    highest = max(mid.result["tasks"].items(), key=lambda item: item[1]["accuracy"])
    above = [
        family
        for family, score in post.result["tasks"].items()
        if score["interval"][0] > constant_answer_accuracy[family]
    ]
    found = [
        Expectation(
            "mid-0 average between 10% and 60%, above the base",
            0.10 <= mid_average <= 0.60 and mid_average > base.result["average"],
            f"base {base.result['average']:.1%}, mid-0 {mid_average:.1%}",
        ),
        Expectation(
            "post-0 above mid-0, 95% interval of the difference above 0",
            gain - half > 0,
            f"post-0 {post_average:.1%}, difference {gain:+.1%} +- {half:.1%}",
        ),
        Expectation(
            "no family above 95% at mid-0",
            highest[1]["accuracy"] <= 0.95,
            f"highest {highest[0]} {highest[1]['accuracy']:.1%}",
        ),
        Expectation(
            "post-0 above the best constant answer in at least eight of ten families",
            len(above) >= 8,
            f"{len(above)} of {len(post.result['tasks'])}",
        ),
    ]
    return found + _step_expectations(results)


def _step_expectations(results: dict[str, dict[str, Any]]) -> list[Expectation]:
    """The expectations of single steps over all rounds, for the steps that the plan has."""

    def of(kind: str) -> dict[str, dict[str, Any]]:
        return {n.split("/")[0]: r for n, r in results.items() if r["kind"] == kind}

    remit = {n: r for n, r in of("mid_train").items() if r["objective"] == "remit"}
    dpo, rlvr = of("dpo"), of("rlvr")
    found = [
        _in_every_round(
            "DPO: held-out pair accuracy above 0.5", dpo,
            lambda r: r["heldout_pair_accuracy"] > 0.5,
            lambda r: f"{r['heldout_pair_accuracy']:.2f}",
        ),
        _in_every_round(
            "RLVR: mean reward of the last quarter above that of the first", rlvr,
            lambda r: r["reward_last_quarter"] > r["reward_first_quarter"],
            lambda r: f"{r['reward_first_quarter']:.2f} to {r['reward_last_quarter']:.2f}",
        ),
        _in_every_round(
            "RLVR: share of zero-variance groups below 0.8", rlvr,
            lambda r: r["zero_variance_groups"] < 0.8,
            lambda r: f"{r['zero_variance_groups']:.2f}",
        ),
        _in_every_round(
            "ReMiT: standard deviation of the token weights above 0.01", remit,
            lambda r: r["weight_std"] > 0.01,
            lambda r: f"{r['weight_std']:.3f}",
        ),
    ]  # fmt: skip
    return [expectation for expectation in found if expectation is not None]


def _in_every_round(
    text: str,
    rounds: dict[str, dict[str, Any]],
    holds: Callable[[dict[str, Any]], bool],
    shown: Callable[[dict[str, Any]], str],
) -> Expectation | None:
    if not rounds:
        return None
    measured = ", ".join(f"{name} {shown(result)}" for name, result in rounds.items())
    return Expectation(text, all(map(holds, rounds.values())), measured)
