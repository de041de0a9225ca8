"""The models of a run and which model each was trained from, derived from stage names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipelines.run_dir.paths import SNAPSHOT_FACTS, StageDir, read_json

BASE, EXTERNAL_REFERENCE = "base", "ref"
OF_ROUND = re.compile(r"round-(\d+)/\d+-(mid-train|sft|dpo|rlvr)")


@dataclass(frozen=True)
class Checkpoint:
    """One model of a run.

    Attributes:
        name: name of its stage; `name@2` is the second snapshot of that stage.
        round: round of the loop; None for the base and its snapshots.
        step: training step within its stage.
        tokens: tokens seen in pre-training and annealing up to this model; 0 for an imported base.
    """

    name: str
    folder: Path
    phase: Literal["pretrain", "anneal", "post"]
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
        made = OF_ROUND.fullmatch(name)
        if name == BASE:
            _add(found, name, inputs[name], "pretrain", None, 0)
        elif made and made[2] == "mid-train":
            mids[int(made[1])] = name
            _add(found, name, inputs[name], "anneal", int(made[1]), found[BASE].tokens)
        elif made:
            number = int(made[1])
            before = found[mids[number]].tokens if number in mids else found[BASE].tokens
            step = _result(inputs[name]).get("steps", 0)
            found[name] = Checkpoint(name, inputs[name], "post", number, step, before)
            if made[2] == last_step:
                posts[number] = name
    return Lineage(found, mids, posts, inputs.get(EXTERNAL_REFERENCE))


def _order(name: str) -> tuple[int, str]:
    made = OF_ROUND.fullmatch(name)
    return (int(made[1]), name) if made else (-1, name)


def _add(
    found: dict[str, Checkpoint],
    name: str,
    folder: Path,
    phase: Literal["pretrain", "anneal"],
    number: int | None,
    tokens_before: int,
) -> None:
    """Add a model that was trained on text, preceded by its snapshots."""
    result = _result(folder)
    steps, tokens = result.get("steps", 0), result.get("tokens", 0)
    for snapshot in StageDir(folder.parent).snapshots():
        step = read_json(snapshot / SNAPSHOT_FACTS)["step"]
        seen = tokens_before + round(tokens * step / steps)
        at = f"{name}@{snapshot.name}"
        found[at] = Checkpoint(at, snapshot, phase, number, step, seen)
    found[name] = Checkpoint(name, folder, phase, number, steps, tokens_before + tokens)


def _result(folder: Path) -> dict[str, int]:
    return StageDir(folder.parent).read_result()
