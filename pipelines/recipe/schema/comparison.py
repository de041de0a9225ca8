"""Keys of `compare`: the arms, and arms of your own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipelines.recipe.schema.setting import setting


@dataclass
class VariantConfig:
    """An arm of your own: one of the table with something changed."""

    arm: str = setting(
        "remit", "what it is made from: ntp, kd, miniplm, rho1, sft or remit", result=False
    )
    set: list[str] = setting(
        list, "overrides of mid_train for this arm alone: [mid_train.remit.eps=0.5]", result=False
    )
    base: str = setting(
        "",
        "what it starts from: an arm, whose mid-trained model it is, or a CKPT; empty: the base",
        result=False,
    )
    ref: str = setting(
        "",
        "its reference: an arm, whose post-trained model it is, a stage of one such as ntp/20-sft, "
        "base, or a CKPT; empty: that of its arm",
        result=False,
    )
    ref_seed: int = setting(
        0,
        "take the arm that `ref` names from the seed that lies this much after its own",
        result=False,
        low=0,
    )
    budget: Literal["", "tokens", "flops"] = setting("", "empty: compare.budget", result=False)
    against: str = setting("ntp", "arm that the tables subtract from it", result=False)


@dataclass
class CompareConfig:
    arms: list[str] = setting(
        ["ntp", "kd", "miniplm", "rho1", "sft", "remit"],
        "arms, of ntp, kd, miniplm, rho1, sft, remit, more-rl and compare.variants",
        result=False,
    )
    variants: dict[str, VariantConfig] = setting(dict, "arms of your own, by name", result=False)
    seeds: int = setting(3, "runs of each arm, with seeds from `seed` on", result=False, low=1)
    budget: Literal["tokens", "flops"] = setting(
        "tokens",
        "what is equal: mid_train.tokens, or the FLOPs that ReMiT needs for mid_train.tokens",
        result=False,
    )
    base_per_seed: bool = setting(
        False,
        "train a base for every seed, and take its plain post-trained model as the reference",
        result=False,
    )
    sft_ref: str = setting(
        "", "CKPT of arm sft; empty: the SFT stage beside the reference", result=False
    )
    small: str = setting("", "CKPT of MiniPLM's small model; empty: the base", result=False)
    points: int = setting(
        3,
        "evaluations along the annealing of each arm of the table, before the last, without drawn "
        "answers; variants have none",
        result=False,
        low=0,
    )
    post_train: bool = setting(False, "post-train and evaluate every arm too", result=False)
    post_points: bool = setting(
        False, "evaluate after SFT and after DPO too, not only after the last step", result=False
    )
    rows: list[str] = setting(
        list, "rows.jsonl of other runs; what is in them is not run again", result=False
    )
