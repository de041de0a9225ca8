"""Keys of `compare`: its arms, and custom arms (variants)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipelines.recipe.schema.setting import runtime_setting


@dataclass
class VariantConfig:
    """A custom arm: one of the arms of the table with some settings changed."""

    arm: str = runtime_setting("remit", "arm to start from: ntp, kd, miniplm, rho1, sft or remit")
    set: list[str] = runtime_setting(
        list, "mid_train overrides for this arm only, such as [mid_train.remit.eps=0.5]"
    )
    base: str = runtime_setting(
        "",
        "model that mid-training starts from: an arm (its mid-trained model) or a CKPT; empty: the "
        "base",
    )
    ref: str = runtime_setting(
        "",
        "reference: an arm (its post-trained model), a stage of an arm such as ntp/20-sft, base, "
        "or a CKPT; empty: the reference of `arm`",
    )
    ref_seed: int = runtime_setting(
        0, "seed offset of the reference: take the arm that `ref` names from seed + ref_seed", low=0
    )
    budget: Literal["", "tokens", "flops"] = runtime_setting(
        "", "what is held equal, as in compare.budget; empty: compare.budget"
    )
    against: str = runtime_setting("ntp", "baseline: the arm that the tables compare it with")


@dataclass
class CompareConfig:
    arms: list[str] = runtime_setting(
        ["ntp", "kd", "miniplm", "rho1", "sft", "remit"],
        "arms to run: any of ntp, kd, miniplm, rho1, sft, remit, more-rl and the compare.variants",
    )
    variants: dict[str, VariantConfig] = runtime_setting(dict, "custom arms, by name")
    seeds: int = runtime_setting(3, "runs of each arm; their seeds count up from `seed`", low=1)
    budget: Literal["tokens", "flops"] = runtime_setting(
        "tokens",
        "what is equal for all arms: mid_train.tokens, or the FLOPs of ReMiT for that many tokens",
    )
    base_per_seed: bool = runtime_setting(
        False, "train a base for every seed and use its plain post-trained model as the reference"
    )
    sft_ref: str = runtime_setting(
        "", "reference CKPT of arm sft; empty: the SFT stage of the reference's own post-training"
    )
    small: str = runtime_setting("", "CKPT of the small model of MiniPLM; empty: the base")
    points: int = runtime_setting(
        3,
        "evaluations during the annealing of each arm, before the one at its end; they have no "
        "samples, and variants have no such evaluations",
        low=0,
    )
    post_train: bool = runtime_setting(False, "also post-train every arm and evaluate the result")
    post_points: bool = runtime_setting(
        False, "evaluate after SFT and after DPO too, not only after the last step of post-training"
    )
    rows: list[str] = runtime_setting(
        list, "rows.jsonl files of earlier runs; arms and seeds that they contain are not run again"
    )
