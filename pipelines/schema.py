"""The configuration schema: every key a recipe may set, its type, default and meaning.

`config.py` fills it from YAML and overrides. A field made with `result=False` cannot change what
a stage computes (launch, logging, paths, checkpoint interval) and is left out of its identity.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


def setting(
    default: Any,
    help: str,
    *,
    result: bool = True,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    below: float | None = None,
) -> Any:
    """Declare a config field.

    Args:
        result: False keeps it out of the identity of a stage.
        low, high: the least and the largest value allowed.
        above, below: bounds that are not reached.
    """
    bounds = {"low": low, "above": above, "high": high, "below": below}
    metadata = {"help": help, "result": result, "bounds": bounds}
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
    weight: float = setting(1.0, "share of the mixture; 0 leaves the source out", low=0)
    limit: int = setting(
        0, "use at most this many records; 0: all (world: what the stage needs)", low=0
    )
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
    reward: Literal["world", "math", "exact", "code"] = setting(
        "exact", "how an answer is judged; code: the answer is tests, run in the sandbox"
    )
    licence: str = setting("", "licence of the text, named beside its excerpts", result=False)
    publish: bool = setting(
        True, "the analysis may show excerpts of the text; false: only a hash", result=False
    )


@dataclass
class ModelConfig:
    """Shape of a model trained from scratch; for an adopted base, what `plan` estimates with."""

    model_type: str = setting("llama", "transformers model type (AutoConfig.for_model)")
    vocab_size: int = setting(0, "0: the tokenizer's size", low=0)
    hidden_size: int = setting(96, "width of the residual stream", low=1)
    intermediate_size: int = setting(288, "width of the feed-forward layers", low=1)
    num_layers: int = setting(4, "number of blocks", low=1)
    num_heads: int = setting(4, "query heads", low=1)
    num_kv_heads: int = setting(4, "key and value heads", low=1)
    tie_embeddings: bool = setting(True, "share the input embedding with the output head")
    rope_theta: float = setting(10000.0, "base of the rotary position embedding", above=0)
    attention: Literal["sdpa", "eager", "flash_attention_2"] = setting(
        "sdpa", "attention backend, the same for learner and reference"
    )


@dataclass
class TokenizerConfig:
    kind: Literal["world", "bpe"] = setting("world", "characters of the world, or byte-level BPE")
    vocab_size: int = setting(4096, "kind bpe: number of tokens", low=1)
    train_characters: int = setting(
        20_000_000, "kind bpe: characters of pre-training text used", low=1
    )
    chat_template: str = setting("", "Jinja template for a base without one; empty: the default")


@dataclass
class TrainConfig:
    """What every gradient stage has."""

    precision: Literal["fp32", "bf16"] = setting("fp32", "of weights and activations")
    zero_stage: int = setting(2, "DeepSpeed ZeRO stage, 0 to 3", result=False, low=0, high=3)
    offload_optimizer: bool = setting(False, "ZeRO: optimizer state in CPU memory", result=False)
    gradient_checkpointing: bool = setting(False, "recompute activations", result=False)
    global_batch: int = setting(32, "sequences per optimizer step, over all ranks", low=1)
    micro_batch: int = setting(
        32, "sequences per forward on one rank (at most)", result=False, low=1
    )
    learning_rate: float = setting(1e-3, "peak learning rate", above=0)
    weight_decay: float = setting(0.1, "AdamW (OLMo-2 stage 2: 0.1)", low=0)
    adam_beta1: float = setting(0.9, "AdamW (OLMo-2 stage 2: 0.9)", low=0, below=1)
    adam_beta2: float = setting(0.95, "AdamW (OLMo-2 stage 2: 0.95)", low=0, below=1)
    max_grad_norm: float = setting(1.0, "gradient clipping (OLMo-2 stage 2: 1.0)", above=0)
    warmup_ratio: float = setting(
        0.01, "share of the steps with rising learning rate", low=0, below=1
    )
    logging_steps: int = setting(
        10, "steps between two lines of metrics.jsonl", result=False, low=1
    )
    save_every_steps: int = setting(
        0, "steps between two checkpoints; 0: by time", result=False, low=0
    )
    save_every_seconds: float = setting(
        900.0, "seconds between checkpoints; 0: none", result=False, low=0
    )
    keep: int = setting(1, "complete checkpoints kept", result=False, low=1)


@dataclass
class PretrainConfig(TrainConfig):
    tokens: int = setting(1_000_000, "training tokens", low=1)
    sources: dict[str, SourceConfig] = setting(dict, "pre-training mixture")
    keep_points: int = setting(
        0, "models kept along the training for the analysis, at even steps", result=False, low=0
    )


@dataclass
class MidTrainConfig(TrainConfig):
    tokens: int = setting(1_900_000, "training tokens", low=1)
    sources: dict[str, SourceConfig] = setting(dict, "mid-training mixture")
    objective: Literal["auto", "ntp", "remit", "rho1", "miniplm", "kd"] = setting(
        "auto", "auto: remit with a reference, ntp without"
    )
    eps: float = setting(
        0.2, "ReMiT: weights are clipped to [1 - eps, 1 + eps] (paper, eq. 5)", above=0, high=1
    )
    center: Literal["none", "sequence", "document", "batch"] = setting(
        "sequence", "ReMiT: over what the mean of d is taken and subtracted (paper, eq. 4)"
    )
    map: Literal["sigmoid", "identity", "tanh"] = setting(
        "sigmoid", "ReMiT: 2 sigmoid(c) (paper, eq. 5), 1 + c, or 1 + tanh(c)"
    )
    standardize: bool = setting(False, "ReMiT: divide c by the spread of d")
    detach: bool = setting(True, "ReMiT: no gradient through the weights")
    divisor: Literal["targets", "weights"] = setting(
        "targets", "ReMiT: the loss is divided by the number of targets, or by the sum of weights"
    )
    scope: Literal["micro_batch", "step"] = setting(
        "micro_batch",
        "what center=batch, divisor=weights and RHO-1's ranking see: one rank's micro-batch, or "
        "exactly the whole step, by one more forward",
    )
    rho1_keep: float = setting(
        0.6, "RHO-1: share of the targets that is trained on", above=0, high=1
    )
    kd_alpha: float = setting(0.5, "KD: share of the KL term", low=0, high=1)
    snapshots: int = setting(
        0, "models kept along the annealing, at even steps before the last", low=0
    )
    keep_points: int = setting(
        0,
        "the same for the analysis, where `snapshots` keeps none; no part of the identity",
        result=False,
        low=0,
    )
    reference: Literal["inline", "cached"] = setting(
        "inline", "reference's forward beside the learner's, or its scores kept by a score stage"
    )


@dataclass
class PostTrainConfig(TrainConfig):
    """What SFT, DPO and RLVR have in common."""

    enabled: bool = setting(True, "run this step of post-training")
    steps: int = setting(200, "optimizer steps", low=1)
    sources: dict[str, SourceConfig] = setting(dict, "where its records come from")
    weight_decay: float = setting(0.0, "AdamW", low=0)
    adam_beta2: float = setting(0.999, "AdamW", low=0, below=1)


@dataclass
class SftConfig(PostTrainConfig):
    pass


@dataclass
class DpoConfig(PostTrainConfig):
    beta: float = setting(0.1, "strength of the pull to the reference policy (DPO, eq. 7)", above=0)
    heldout_pairs: int = setting(256, "pairs kept out of training to measure pair accuracy", low=1)


@dataclass
class RlvrConfig(PostTrainConfig):
    """GRPO with verifiable rewards. `global_batch` counts completions."""

    num_generations: int = setting(8, "completions per prompt, the group of GRPO", low=2)
    max_completion_length: int = setting(64, "new tokens per completion", low=1)
    temperature: float = setting(1.0, "sampling temperature of the rollouts", above=0)
    beta: float = setting(0.0, "weight of the KL term to the starting policy", low=0)
    clip_epsilon: float = setting(0.2, "PPO clip range", above=0)
    max_zero_variance: float = setting(
        0.9,
        "above this share of groups without reward variance the stage ends as 'no signal'",
        low=0,
        high=1,
    )
    use_vllm: bool = setting(False, "rollouts by vLLM (GPU, optional extra)", result=False)


@dataclass
class ScoreConfig:
    batch_size: int = setting(64, "sequences per forward on one rank", result=False, low=1)
    shard_sequences: int = setting(
        1024,
        "sequences in one file of the score cache; a scoring resumes at a file",
        result=False,
        low=1,
    )


@dataclass
class TaskConfig:
    """One evaluation task: greedy answers to the prompts of a source, judged by its reward."""

    enabled: bool = setting(True, "ask this task")
    source: SourceConfig = setting(SourceConfig, "records with prompt and answer")
    limit: int = setting(0, "questions used; 0: all", low=0)
    max_new_tokens: int = setting(64, "answer length", low=1)
    split_by: str = setting("", "record field that splits the task into families")
    base_template: str = setting("{prompt}\n", "prompt of a model without chat, as plain text")
    stop: str = setting("\n", "text that ends an answer of a model without chat; empty: EOS only")
    samples: int = setting(
        0, "answers drawn for each question besides, for pass@k, mean@n and entropy", low=0
    )
    temperature: float = setting(1.0, "of the draws", above=0)
    top_p: float = setting(1.0, "of the draws: least set of tokens with this much mass", above=0)


@dataclass
class BenchmarkConfig:
    """A task or group of lm-evaluation-harness, scored by one right-or-wrong metric."""

    enabled: bool = setting(True, "ask this benchmark")
    task: str = setting("", "task or group of the harness; empty: the benchmark's name")
    metric: str = setting(
        "acc", "metric that counts, with its filter if it has one: exact_match,flexible-extract"
    )
    version: str = setting("", "version of the task; another is refused; empty: any")
    shots: int = setting(-1, "worked examples before each question; -1: the task's own", low=-1)
    max_new_tokens: int = setting(0, "answer length; 0: the task's own", low=0)
    limit: int = setting(0, "first questions of each task of a group; 0: all", low=0)
    files: dict[str, str] = setting(
        dict,
        "local file of each split below data_root, used where all are there; {name}: the task's "
        "data set on the hub",
    )
    field: str = setting("", "key that holds the records of a local JSON file")
    runs_code: bool = setting(False, "runs generated programs, in the sandbox", result=False)
    publish: bool = setting(True, "its questions may be shown in a report", result=False)


@dataclass
class EvalConfig:
    precision: Literal["fp32", "bf16"] = setting("fp32", "of the weights")
    batch_size: int = setting(256, "prompts generated together on one rank", result=False, low=1)
    tasks: dict[str, TaskConfig] = setting(dict, "tasks of the built-in runner")
    bits_per_byte: dict[str, SourceConfig] = setting(dict, "held-out text per domain")
    bits_per_byte_tokens: int = setting(
        50_000, "documents are taken to this many tokens, the last whole", low=1
    )
    suite: str = setting(
        "",
        "tasks, benchmarks and held-out text of configs/eval/NAME.yaml, or of a file",
        result=False,
    )
    benchmarks: dict[str, BenchmarkConfig] = setting(
        dict, "benchmarks of lm-evaluation-harness, by a name of your choice"
    )
    task_folder: str = setting("", "folder of task files of your own, for the harness")
    backend: Literal["transformers", "vllm"] = setting(
        "transformers", "what generates the answers to benchmarks"
    )
    max_length: int = setting(
        0, "longest prompt with its answer, in tokens, of a benchmark; 0: the model's own", low=0
    )
    contamination: Literal["report", "leave_out", "none"] = setting(
        "report",
        "questions that stand in training text: counted, left out of the scores too (this is part "
        "of the identity), or not looked for",
        result=False,
    )
    contamination_ngram: int = setting(
        13,
        "words of an n-gram of the contamination check, of whose identity it is",
        result=False,
        low=1,
    )
    unpublished: list[str] = setting(
        list, "evaluations of which the contamination check shows no text", result=False
    )


@dataclass
class AnalysisConfig:
    enabled: bool = setting(True, "analyze at the end of a flywheel", result=False)
    tokens: int = setting(
        200_000,
        "mid-training tokens whose weights are looked at, the first of the packed set",
        low=1,
    )
    heldout_tokens: int = setting(
        20_000, "held-out tokens for each domain of eval.bits_per_byte", low=1
    )
    batch_size: int = setting(64, "sequences per forward", result=False, low=1)


@dataclass
class FlywheelConfig:
    iterations: int = setting(3, "rounds after round 0", result=False, low=0)
    expectations: bool = setting(
        False, "check at the end what the built-in world is calibrated to show", result=False
    )
    baseline: bool = setting(True, "run round 0 even when --ref gives the first reference")


@dataclass
class CompareConfig:
    objectives: list[str] = setting(
        ["ntp", "kd", "miniplm", "rho1", "sft", "remit"],
        "arms, of ntp, kd, miniplm, rho1, sft, remit, more-rl",
        result=False,
    )
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
        0, "evaluations along the annealing of each arm, before the last", result=False, low=0
    )
    post_train: bool = setting(False, "post-train and evaluate every arm too", result=False)
    rows: list[str] = setting(
        list, "rows.jsonl of other runs; what is in them is not run again", result=False
    )


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
    seed: int = setting(0, "data order, initial weights and sampling", low=0, high=2**32 - 1)
    data_root: str = setting("${oc.env:REMIT_DATA,.}", "data paths start here", result=False)
    base: str = setting(
        "", "checkpoint to adopt instead of training from scratch (= --base)", result=False
    )
    trust_remote_code: bool = setting(False, "allow model code from CKPT folders to run")
    context_length: int = setting(128, "tokens per packed training sequence", low=8)
    document_mask: bool = setting(True, "attention stays within a document of a packed sequence")
    chunk_bytes: int = setting(
        64 * 2**20,
        "most bytes of logits that a loss or a scoring holds at once; above them it goes in chunks",
        result=False,
        low=1,
    )
    model: ModelConfig = setting(ModelConfig, "model shape")
    tokenizer: TokenizerConfig = setting(TokenizerConfig, "tokenizer trained with the base")
    pretrain: PretrainConfig = setting(PretrainConfig, "stage pretrain-ckpt")
    mid_train: MidTrainConfig = setting(MidTrainConfig, "stage mid-train")
    sft: SftConfig = setting(SftConfig, "post-train, step 1")
    dpo: DpoConfig = setting(DpoConfig, "post-train, step 2")
    rlvr: RlvrConfig = setting(RlvrConfig, "post-train, step 3, and rl-tune")
    score: ScoreConfig = setting(ScoreConfig, "stage score")
    eval: EvalConfig = setting(EvalConfig, "stage eval")
    analysis: AnalysisConfig = setting(AnalysisConfig, "stage analyze")
    flywheel: FlywheelConfig = setting(FlywheelConfig, "command flywheel")
    compare: CompareConfig = setting(CompareConfig, "command compare")
    launch: LaunchConfig = setting(LaunchConfig, "processes and machines", result=False)
    stage: StageConfig = setting(StageConfig, "single-stage commands", result=False)


def uses_score_cache(mid: MidTrainConfig) -> bool:
    """Whether a mid-training reads scores that a score stage made."""
    return mid.objective == "miniplm" or (mid.objective != "ntp" and mid.reference == "cached")


def pool_factor(mid: MidTrainConfig) -> int:
    """Sequences looked at for one that is trained on: MiniPLM keeps half of its pool."""
    return 2 if mid.objective == "miniplm" else 1
