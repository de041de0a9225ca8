"""The models of a run and which model each was trained from, derived from stage names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pipelines.run_dir.paths import SNAPSHOT_FACTS, StageDir, read_json

BASE, EXTERNAL_REFERENCE = "base", "ref"
Phase = Literal["pretrain", "anneal", "post"]
OF_ROUND = re.compile(r"round-(\d+)/\d+-(mid-train|sft|dpo|rlvr)")


@dataclass(frozen=True)
class Checkpoint:
    """One model of a run; `name@2` is the second snapshot of the stage `name`.

    Attributes:
        round: round of the loop; None for the base and its snapshots.
        step: training step within its stage.
        tokens: tokens seen in pre-training and annealing up to this model; 0 for an imported base.
    """

    name: str
    folder: Path
    phase: Phase
    round: int | None
    step: int
    tokens: int


@dataclass(frozen=True)
class Lineage:
    """All models of a run.

    Attributes:
        checkpoints: by name, in the order of training.
        mids, posts: by round, the annealed model and the last post-trained model.
        external_reference: folder of a reference given with --ref; None without one.
    """

    checkpoints: dict[str, Checkpoint]
    mids: dict[int, str]
    posts: dict[int, str]
    external_reference: Path | None

    def folder(self, name: str) -> Path:
        """The folder of a model, given its name, or the path of the external reference."""
        return self.checkpoints[name].folder if name in self.checkpoints else Path(name)

    def reference(self, number: int) -> str | None:
        """The reference that weights tokens in round `number` >= 1: a model's name, or a path."""
        if number == 1 and self.external_reference is not None:
            return str(self.external_reference)
        return self.posts.get(number - 1)


def lineage(inputs: Mapping[str, Path], last_step: str) -> Lineage:
    """Collect the models of a run.

    Args:
        inputs: folder by stage name; `ref` is the external reference.
        last_step: the post-training step whose model becomes the next reference: sft, dpo or rlvr.
    """
    found: dict[str, Checkpoint] = {}
    mids: dict[int, str] = {}
    posts: dict[int, str] = {}
    for name in sorted(inputs, key=_order):
        model = Checkpoint(name, inputs[name], "pretrain", None, 0, 0)
        if made := OF_ROUND.fullmatch(name):
            number, step = int(made[1]), made[2]
            before = found[mids.get(number, BASE)].tokens
            phase: Phase = "anneal" if step == "mid-train" else "post"
            model = Checkpoint(name, inputs[name], phase, number, 0, before)
            if phase == "anneal":
                mids[number] = name
            elif step == last_step:
                posts[number] = name
        if made or name == BASE:
            found |= {each.name: each for each in _with_snapshots(model)}
    return Lineage(found, mids, posts, inputs.get(EXTERNAL_REFERENCE))


def _order(name: str) -> tuple[int, str]:
    made = OF_ROUND.fullmatch(name)
    return (int(made[1]), name) if made else (-1, name)


def _with_snapshots(model: Checkpoint) -> Iterator[Checkpoint]:
    """Yield the snapshots of a model, then itself; so far it has the tokens before its stage."""
    stage = StageDir(model.folder.parent)
    result, before = stage.read_result(), model.tokens
    steps, tokens = result.get("steps", 0), result.get("tokens", 0) if model.phase != "post" else 0
    for folder in stage.snapshots():
        step, name = read_json(folder / SNAPSHOT_FACTS)["step"], f"{model.name}@{folder.name}"
        seen = before + round(tokens * step / steps)
        yield replace(model, name=name, folder=folder, step=step, tokens=seen)
    yield replace(model, step=steps, tokens=before + tokens)
