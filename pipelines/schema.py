"""The configuration schema: every key a recipe may set, its type, default and meaning.

`config.py` fills it from YAML and overrides. A field made with `result=False` cannot change what
a stage computes (launch, logging, paths, checkpoint interval) and is left out of its identity.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


def setting(default: Any, help: str, *, result: bool = True) -> Any:
    """Declare a config field. `result=False` keeps it out of the identity of a stage."""
    metadata = {"help": help, "result": result}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class SourceConfig:
    """One data source. Templates name a record's fields in braces: `{question}`, `{a.0.b}`."""

    kind: Literal["world", "jsonl", "parquet", "text", "hub"] = setting(
        "jsonl", "built-in world, JSON Lines (.gz too), Parquet, plain text, or a hub data set"
    )
    path: str = setting("", "file or glob below data_root (or absolute), or the hub data set")
    stream: str = setting("", "kind world: which stream of the world")
    subset: str = setting("", "kind hub: configuration name")
    split: str = setting("train", "kind hub: split")
    weight: float = setting(1.0, "share of the mixture; 0 leaves the source out")
    limit: int = setting(0, "use at most this many records; 0: all (world: what the stage needs)")
    where: dict[str, str] = setting(dict, "keep records whose fields equal these values")
    hash_range: list[float] = setting(
        [0.0, 1.0], "keep records whose prompt hashes into [from, to); separates SFT from RL"
    )
    text: str = setting("{text}", "template of a plain-text document")
    prompt: str = setting("{prompt}", "template of the user's turn")
    response: str = setting("{response}", "template of the right answer")
    chosen: str = setting("{chosen}", "template of the preferred answer")
    rejected: str = setting("{rejected}", "template of the rejected answer")
    answer: str = setting("{answer}", "template of the gold answer that a reward compares with")
    strip: str = setting("", "regular expression removed from every rendered text")
    answer_pattern: str = setting(
        "", "regular expression; group 1 in the answer is the gold answer"
    )
    near_miss: bool = setting(
        False, "make preference pairs: chosen = response, rejected = response with a wrong number"
    )
    reward: Literal["world", "math", "exact"] = setting("exact", "how an answer is judged")


@dataclass
class ModelConfig:
    """Shape of a model trained from scratch; for an adopted base, what `plan` estimates with."""

    model_type: str = setting("llama", "transformers model type (AutoConfig.for_model)")
    vocab_size: int = setting(0, "0: the tokenizer's size")
    hidden_size: int = setting(96, "width of the residual stream")
    intermediate_size: int = setting(288, "width of the feed-forward layers")
    num_layers: int = setting(4, "number of blocks")
    num_heads: int = setting(4, "query heads")
    num_kv_heads: int = setting(4, "key and value heads")
    tie_embeddings: bool = setting(True, "share the input embedding with the output head")
    rope_theta: float = setting(10000.0, "base of the rotary position embedding")
    attention: Literal["sdpa", "eager", "flash_attention_2"] = setting(
        "sdpa", "attention backend, the same for learner and reference"
    )


@dataclass
class TokenizerConfig:
    kind: Literal["world", "bpe"] = setting("world", "characters of the world, or byte-level BPE")
    vocab_size: int = setting(4096, "kind bpe: number of tokens")
    train_characters: int = setting(20_000_000, "kind bpe: characters of pre-training text used")
    chat_template: str = setting("", "Jinja template for a base without one; empty: the default")


@dataclass
class TrainConfig:
    """What every gradient stage has."""

    precision: Literal["fp32", "bf16"] = setting("fp32", "of weights and activations")
    zero_stage: int = setting(2, "DeepSpeed ZeRO stage, 0 to 3", result=False)
    offload_optimizer: bool = setting(False, "ZeRO: optimizer state in CPU memory", result=False)
    gradient_checkpointing: bool = setting(False, "recompute activations", result=False)
    global_batch: int = setting(32, "sequences per optimizer step, over all ranks")
    micro_batch: int = setting(32, "sequences per forward on one rank (at most)", result=False)
    learning_rate: float = setting(1e-3, "peak learning rate")
    weight_decay: float = setting(0.1, "AdamW (OLMo-2 stage 2: 0.1)")
    adam_beta1: float = setting(0.9, "AdamW (OLMo-2 stage 2: 0.9)")
    adam_beta2: float = setting(0.95, "AdamW (OLMo-2 stage 2: 0.95)")
    max_grad_norm: float = setting(1.0, "gradient clipping (OLMo-2 stage 2: 1.0)")
    warmup_ratio: float = setting(0.01, "share of the steps with rising learning rate")
    logging_steps: int = setting(10, "steps between two lines of metrics.jsonl", result=False)
    save_every_steps: int = setting(0, "steps between two checkpoints; 0: by time", result=False)
    save_every_seconds: float = setting(900.0, "seconds between checkpoints; 0: none", result=False)
    keep: int = setting(1, "complete checkpoints kept", result=False)


@dataclass
class PretrainConfig(TrainConfig):
    tokens: int = setting(1_000_000, "training tokens")
    sources: dict[str, SourceConfig] = setting(dict, "pre-training mixture")


@dataclass
class MidTrainConfig(TrainConfig):
    tokens: int = setting(1_900_000, "training tokens")
    sources: dict[str, SourceConfig] = setting(dict, "mid-training mixture")
    objective: Literal["auto", "ntp", "remit"] = setting(
        "auto", "auto: remit with a reference, ntp without"
    )
    eps: float = setting(0.2, "ReMiT: weights are clipped to [1 - eps, 1 + eps] (paper, eq. 5)")


@dataclass
class PostTrainConfig(TrainConfig):
    """What SFT, DPO and RLVR have in common."""

    enabled: bool = setting(True, "run this step of post-training")
    steps: int = setting(200, "optimizer steps")
    sources: dict[str, SourceConfig] = setting(dict, "where its records come from")
    weight_decay: float = setting(0.0, "AdamW")
    adam_beta2: float = setting(0.999, "AdamW")


@dataclass
class SftConfig(PostTrainConfig):
    pass


@dataclass
class DpoConfig(PostTrainConfig):
    beta: float = setting(0.1, "strength of the pull to the reference policy (DPO, eq. 7)")
    heldout_pairs: int = setting(256, "pairs kept out of training to measure pair accuracy")


@dataclass
class RlvrConfig(PostTrainConfig):
    """GRPO with verifiable rewards. `global_batch` counts completions."""

    num_generations: int = setting(8, "completions per prompt, the group of GRPO")
    max_completion_length: int = setting(64, "new tokens per completion")
    temperature: float = setting(1.0, "sampling temperature of the rollouts")
    beta: float = setting(0.0, "weight of the KL term to the starting policy")
    clip_epsilon: float = setting(0.2, "PPO clip range")
    max_zero_variance: float = setting(
        0.9, "above this share of groups without reward variance the stage ends as 'no signal'"
    )
    use_vllm: bool = setting(False, "rollouts by vLLM (GPU, optional extra)", result=False)


@dataclass
class TaskConfig:
    """One evaluation task: greedy answers to the prompts of a source, judged by its reward."""

    enabled: bool = setting(True, "ask this task")
    source: SourceConfig = setting(SourceConfig, "records with prompt and answer")
    limit: int = setting(0, "questions used; 0: all")
    max_new_tokens: int = setting(64, "answer length")
    split_by: str = setting("", "record field that splits the task into families")
    base_template: str = setting("{prompt}\n", "prompt of a model without chat, as plain text")
    stop: str = setting("\n", "text that ends an answer of a model without chat; empty: EOS only")


@dataclass
class EvalConfig:
    precision: Literal["fp32", "bf16"] = setting("fp32", "of the weights")
    batch_size: int = setting(256, "prompts generated together on one rank", result=False)
    tasks: dict[str, TaskConfig] = setting(dict, "tasks of the built-in runner")
    bits_per_byte: dict[str, SourceConfig] = setting(dict, "held-out text per domain")
    bits_per_byte_tokens: int = setting(
        50_000, "documents are taken to this many tokens, the last whole"
    )
    lm_eval_tasks: list[str] = setting(list, "lm-evaluation-harness tasks, by name")
    lm_eval_limit: int = setting(0, "questions per lm-eval task; 0: all")
    lm_eval_include_path: str = setting("", "folder of extra lm-eval task YAML files")


@dataclass
class FlywheelConfig:
    iterations: int = setting(3, "rounds after round 0", result=False)
    expectations: bool = setting(
        False, "check at the end what the built-in world is calibrated to show", result=False
    )
    baseline: bool = setting(True, "run round 0 even when --ref gives the first reference")


@dataclass
class LaunchConfig:
    gpus: int = setting(1, "ranks on this machine", result=False)
    hostfile: str = setting("", "DeepSpeed hostfile for several machines", result=False)
    runner_args: list[str] = setting(
        list, "with a hostfile: options of DeepSpeed's runner, such as --no_ssh", result=False
    )
    env: dict[str, str] = setting(dict, "environment variables for the ranks", result=False)


@dataclass
class StageConfig:
    name: str = setting("", "single-stage commands write to <command>-<name>", result=False)


@dataclass
class Config:
    """A whole recipe. One file of `configs/` fills it; `key=value` overrides on top."""

    name: str = setting("", "names the default run directory; empty: the file's name", result=False)
    seed: int = setting(0, "data order, initial weights and sampling")
    data_root: str = setting("${oc.env:REMIT_DATA,.}", "data paths start here", result=False)
    base: str = setting(
        "", "checkpoint to adopt instead of training from scratch (= --base)", result=False
    )
    trust_remote_code: bool = setting(False, "allow model code from CKPT folders to run")
    context_length: int = setting(128, "tokens per packed training sequence")
    document_mask: bool = setting(True, "attention stays within a document of a packed sequence")
    model: ModelConfig = setting(ModelConfig, "model shape")
    tokenizer: TokenizerConfig = setting(TokenizerConfig, "tokenizer trained with the base")
    pretrain: PretrainConfig = setting(PretrainConfig, "stage pretrain-ckpt")
    mid_train: MidTrainConfig = setting(MidTrainConfig, "stage mid-train")
    sft: SftConfig = setting(SftConfig, "post-train, step 1")
    dpo: DpoConfig = setting(DpoConfig, "post-train, step 2")
    rlvr: RlvrConfig = setting(RlvrConfig, "post-train, step 3, and rl-tune")
    eval: EvalConfig = setting(EvalConfig, "stage eval")
    flywheel: FlywheelConfig = setting(FlywheelConfig, "command flywheel")
    launch: LaunchConfig = setting(LaunchConfig, "processes and machines", result=False)
    stage: StageConfig = setting(StageConfig, "single-stage commands", result=False)
