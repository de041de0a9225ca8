"""The stages of a comparison: what an evaluation needs, and its arm, seed and point. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from pipelines.plan.stage import COMPARISON, CONTAMINATION, Stage

FOLDER = COMPARISON
CHECK = f"{FOLDER}/{CONTAMINATION}"
# The points where an arm is evaluated after mid-training, in the order of its stages.
AFTER = {"mid": "mid-training", "sft": "SFT", "dpo": "DPO", "post": "post-training"}
POINTS = tuple(AFTER)
Place = tuple[str, int, str]  # arm, seed and point of an evaluation
_POINT = {"15": "mid", "25": "sft", "35": "dpo", "50": "post"}
_EVALUATION = re.compile(
    rf"{FOLDER}/seed-(\d+)/([^/]+)/(?:({'|'.join(_POINT)})-eval|12-eval-(\d+-of-\d+))"
)


def behind(stage: Stage, by_name: dict[str, Stage], *, whole: bool) -> Iterator[Stage]:
    """The stages in `by_name` behind one, back to its mid-training or, if `whole`, to the start."""
    if stage.kind == "mid_train":
        # A mid-training stage finds its scores by their fingerprint, not by an input.
        for name, scored in by_name.items():
            if name.startswith(f"{stage.name}-score"):
                yield scored
                if whole:
                    yield from behind(scored, by_name, whole=True)
        if not whole:
            return
    for role, given in stage.inputs.items():
        if role == CONTAMINATION:
            continue
        name = given.partition("@")[0] if isinstance(given, str) else ""
        if name in by_name:
            yield by_name[name]
            yield from behind(by_name[name], by_name, whole=whole)


def needed(stages: Sequence[Stage], known: set[Place]) -> list[Stage]:
    """The evaluations that are not `known`, and all stages they depend on."""
    by_name = {stage.name: stage for stage in stages}
    kept: set[str] = set()
    for stage in stages:
        if stage.kind == "evaluate" and place(stage) not in known:
            kept |= {stage.name} | {s.name for s in behind(stage, by_name, whole=True)}
    return [s for s in stages if s.name in kept or (kept and s.kind == "contamination")]


def place(stage: Stage) -> Place:
    """Arm, seed and point of an evaluation, see `place_of`."""
    found = place_of(stage.name)
    assert found is not None
    return found


def place_of(name: str) -> Place | None:
    """Arm, seed and point of an evaluation by its name; None for other stages.

    `compare/seed-0/ntp/12-eval-1-of-4` is the point `1/4` of seed 0, `.../15-eval` is `mid`,
    `.../25-eval` is `sft`, `.../35-eval` is `dpo`, `.../50-eval` is `post`.
    """
    found = _EVALUATION.fullmatch(name)
    if found is None:
        return None
    seed, arm, number, part = found.groups()
    return arm, int(seed), part.replace("-of-", "/") if part else _POINT[number]
