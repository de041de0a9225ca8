"""What a plan will cost: tokens, FLOPs, bytes on disk and time, before anything starts.

FLOPs: 2 N per token forward, 6 N forward and backward (N parameters); the reference's forward
adds 2 N. Time: FLOPs over a rate, plus a start per stage. The rate is measured where the run has
finished stages, else assumed; `Estimate.rate_source` says which.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pipelines.launch.launcher import can_fork
from pipelines.machine.process import num_cores, num_gpus
from pipelines.models.checkpoint import ModelRef, read_model_config, weight_files
from pipelines.models.tokenizer import world_vocab_size
from pipelines.plan.flywheel import BASE, Stage
from pipelines.plan.placement import num_ranks
from pipelines.recipe.schema import Config, ModelConfig, TaskConfig, pool_factor, whole_step_tokens
from pipelines.run_dir.disk import bytes_in
from pipelines.run_dir.paths import RunDir

# Assumed where nothing was measured. CPU: small models in fp32, seen on one core of a server.
CPU_FLOPS_PER_CORE = 2.5e10
GPU_FLOPS = 4e14
START_SECONDS = {"forked": 2.0, "cpu": 10.0, "gpu": 25.0}
# Generation reads all weights for each token: slower than training at equal FLOPs.
GENERATION_SLOWDOWN = 6.0
BYTES = {"fp32": 4, "bf16": 2}
TRAINING = ("pretrain", "mid_train", "sft", "dpo", "rlvr")
# Families of a task that is split into some: as many as the built-in world has.
FAMILIES = 10
# Prompt and answer of a conversation, as a share of the context, on average.
CHAT_FILL = 0.6


@dataclass(frozen=True)
class StageEstimate:
    """Predicted cost of one stage.

    Attributes:
        tokens: tokens trained on, or scored and generated.
        flops: floating point operations.
        disk_bytes: what the stage leaves on disk.
        passing_bytes: what it has on disk besides, for a while: a checkpoint that is being written.
        seconds: predicted wall time with the start.
        state: done, begun or to do.
    """

    stage: str
    kind: str
    tokens: int
    flops: float
    disk_bytes: int
    seconds: float
    state: str
    passing_bytes: int = 0


@dataclass(frozen=True)
class Estimate:
    parameters: int
    stages: list[StageEstimate]
    flops_per_second: float
    rate_source: str

    @property
    def seconds_left(self) -> float:
        return sum(s.seconds for s in self.stages if s.state != "done")


def num_parameters(model: ModelConfig, vocab_size: int) -> int:
    """Parameters of a Llama-type model: embeddings, attention, gated feed-forward, norms."""
    head_dim = model.hidden_size // model.num_heads
    attention = model.hidden_size * head_dim * (2 * model.num_heads + 2 * model.num_kv_heads)
    feed_forward = 3 * model.hidden_size * model.intermediate_size
    block = attention + feed_forward + 2 * model.hidden_size
    embeddings = vocab_size * model.hidden_size * (1 if model.tie_embeddings else 2)
    return embeddings + model.num_layers * block + model.hidden_size


def base_parameters(config: Config, base: ModelRef | None) -> int:
    """Parameters of the base: read from its weights, else from the shape in the config."""
    if base is not None and base.folder is not None:
        described = read_model_config(base.folder, "--base")
        stored = described.get("dtype") or described.get("torch_dtype") or "float32"
        size = sum(path.stat().st_size for path in weight_files(base.folder))
        return size // (4 if "32" in str(stored) else 2)
    vocab = config.model.vocab_size
    if not vocab:
        kind = config.tokenizer.kind
        vocab = world_vocab_size() if kind == "world" else config.tokenizer.vocab_size
    return num_parameters(config.model, vocab)


def estimate(stages: list[Stage], run: RunDir, base: ModelRef | None) -> Estimate:
    """Predict every stage of a plan."""
    config = stages[0].config
    parameters = base_parameters(config, base)
    rate, source = _rate(stages, run, parameters)
    where = "forked" if can_fork(config.launch) else "gpu" if num_gpus() else "cpu"
    start = START_SECONDS[where]
    found = []
    for stage in stages:
        tokens, flops, slowdown = _work(stage, parameters)
        found.append(
            StageEstimate(
                stage=stage.name,
                kind=stage.kind,
                tokens=tokens,
                flops=flops,
                disk_bytes=_disk_bytes(stage, parameters),
                seconds=start + flops * slowdown / rate,
                state=_state(run, stage),
                passing_bytes=_checkpoint_bytes(stage, parameters),
            )
        )
    return Estimate(parameters, found, rate, source)


def _state(run: RunDir, stage: Stage) -> str:
    stage_dir = run.stage(stage.name)
    if stage_dir.is_complete():
        # An analysis of fewer models is made anew.
        derived = stage.kind == "analyze"
        grown = derived and stage_dir.read_config()["inputs"].keys() != stage.inputs.keys()
        return "to do" if grown else "done"
    return "begun" if stage_dir.config.is_file() else "to do"


def _rate(stages: list[Stage], run: RunDir, parameters: int) -> tuple[float, str]:
    """FLOPs per second of training: from this run's base or mid-training where there is one."""
    for stage in stages:
        stage_dir = run.stage(stage.name)
        if stage.kind in ("pretrain", "mid_train") and stage_dir.is_complete():
            measured: dict[str, Any] = stage_dir.read_result()
            if "tokens_per_second" in measured:
                return (
                    measured["tokens_per_second"] * _training_flops(stage) * parameters,
                    f"measured in {stage.name}",
                )
    config, ranks = stages[0].config, num_ranks(stages[0].config.launch)
    if num_gpus() or config.mid_train.precision == "bf16":
        here = "" if num_gpus() else " (there is none here)"
        return GPU_FLOPS * ranks, f"assumed 400 TFLOP/s for each of {ranks} GPUs{here}"
    cores = num_cores()
    return CPU_FLOPS_PER_CORE * cores, f"assumed 25 GFLOP/s a core, {cores} cores"


def stage_flops(stage: Stage, parameters: int) -> float:
    """FLOPs of a stage, by arithmetic: 6 for each parameter and training token, 2 for a forward."""
    return _work(stage, parameters)[1]


def _training_flops(stage: Stage) -> float:
    """FLOPs for each parameter and token: 6, and 2 for each forward besides."""
    if stage.kind != "mid_train":
        return 6.0
    mid = stage.config.mid_train
    if mid.objective in ("ntp", "miniplm"):
        return 6.0
    forwards = (mid.reference == "inline") + (mid.scope == "step" and mid.objective != "kd")
    return 6.0 + 2.0 * forwards


def _work(stage: Stage, parameters: int) -> tuple[int, float, float]:
    """Tokens, FLOPs, and how much slower than training they run."""
    if stage.kind == "contamination":
        return 0, 0.0, 1.0
    config, n = stage.config, float(parameters)
    context = config.context_length
    if stage.kind == "pretrain":
        if stage.inputs:
            return 0, 0.0, 1.0
        tokens = whole_step_tokens(config.pretrain, context)
        return tokens, 6 * n * tokens, 1.0
    if stage.kind == "mid_train":
        tokens = whole_step_tokens(config.mid_train, context)
        return tokens, _training_flops(stage) * n * tokens, 1.0
    if stage.kind == "score":
        tokens = whole_step_tokens(config.mid_train, context) * pool_factor(config.mid_train)
        return tokens, 2 * n * tokens, 1.0
    if stage.kind == "sft":
        tokens = math.ceil(config.sft.steps * config.sft.global_batch * context * CHAT_FILL)
        return tokens, 6 * n * tokens, 1.0
    if stage.kind == "dpo":
        tokens = math.ceil(2 * config.dpo.steps * config.dpo.global_batch * context * CHAT_FILL)
        return tokens, 8 * n * tokens, 1.0
    if stage.kind == "rlvr":
        completions = config.rlvr.steps * config.rlvr.global_batch
        tokens = completions * config.rlvr.max_completion_length
        # A prompt counts as long as its completion.
        training, generation = 6 * n * 2 * tokens, 2 * n * tokens
        flops = training + generation
        return tokens, flops, (training + generation * GENERATION_SLOWDOWN) / flops
    if stage.kind == "analyze":
        scored, generated = _analysis_tokens(stage), _analysis_answers(stage)
        tokens = scored + generated
        as_if = generated * GENERATION_SLOWDOWN + scored
        return tokens, 2 * n * tokens, as_if / max(1, tokens)
    tasks = [task for task in config.eval.tasks.values() if task.enabled]
    questions = sum(_answers(task) for task in tasks)
    longest = max((task.max_new_tokens for task in tasks), default=0)
    scored = config.eval.bits_per_byte_tokens * len(config.eval.bits_per_byte)
    tokens = questions * longest + scored
    as_if = questions * longest * GENERATION_SLOWDOWN + scored
    return tokens, 2 * n * tokens, as_if / max(1, tokens)


def _answers(task: TaskConfig) -> int:
    """Greedy and drawn answers of a task; how many families it has is a guess."""
    asked = task.limit or task.source.limit or 2000
    drawn = task.sampled_questions * (FAMILIES if task.split_by else 1) or asked
    return asked + task.samples * min(asked, drawn)


def _analysis_tokens(stage: Stage) -> int:
    """Tokens that an analysis scores: every model held-out text, the rounds' training text too."""
    config = stage.config
    heldout = config.analysis.heldout_tokens * len(config.eval.bits_per_byte)
    mids = _num_rounds(stage)
    kept = config.pretrain.keep_points + config.mid_train.keep_points * mids
    training = min(config.analysis.tokens, config.mid_train.tokens)
    # Two pairs of models for each round's movement; the base once, and two models for each round.
    return heldout * (len(stage.inputs) + kept + 4 * mids) + training * (2 * mids - 1)


def _analysis_answers(stage: Stage) -> int:
    """Tokens that an analysis generates: the base and the models along each annealing answer."""
    config, mids = stage.config, _num_rounds(stage)
    each = config.analysis.accuracy_questions
    tokens = sum(
        min(each * (FAMILIES if task.split_by else 1), task.limit or each * FAMILIES)
        * task.max_new_tokens
        for task in config.eval.tasks.values()
        if task.enabled
    )
    return tokens * (1 + mids * (1 + config.mid_train.keep_points))


def _num_rounds(stage: Stage) -> int:
    """Rounds whose annealed model an analysis looks at."""
    return sum(name.endswith("mid-train") for name in stage.inputs)


def _disk_bytes(stage: Stage, parameters: int) -> int:
    if stage.kind in ("evaluate", "contamination", "analyze"):
        return 1_000_000
    if stage.kind == "score":
        return 2 * stage.config.mid_train.tokens * pool_factor(stage.config.mid_train)
    config = getattr(stage.config, stage.kind)
    model: int = parameters * BYTES[config.precision]
    points: int = getattr(config, "snapshots", 0) or getattr(config, "keep_points", 0)
    if not _checkpoint_bytes(stage, parameters):
        return model if stage.inputs and stage.kind == "pretrain" else (1 + points) * model
    return (1 + points) * model + int(config.keep) * _checkpoint_bytes(stage, parameters)


def _checkpoint_bytes(stage: Stage, parameters: int) -> int:
    """Bytes of one checkpoint of a stage; 0 where it writes none."""
    adopts = stage.kind == "pretrain" and stage.name == BASE and bool(stage.inputs)
    if stage.kind not in TRAINING or adopts:
        return 0
    config = getattr(stage.config, stage.kind)
    # The weights twice (transformers' and the engine's), fp32 master weights and two moments.
    return parameters * (2 * BYTES[config.precision] + 12)


def packed_bytes(stage: Stage) -> int:
    """Bytes of the packed set that a stage reads; 0 for one that reads none."""
    if stage.kind == "pretrain" and not stage.inputs:
        tokens = stage.config.pretrain.tokens
    elif stage.kind in ("mid_train", "score"):
        tokens = stage.config.mid_train.tokens * pool_factor(stage.config.mid_train)
    else:
        return 0
    # uint16 for vocabularies of up to 65536 tokens, else uint32: taken as the larger.
    return 4 * tokens


def bytes_to_write(predicted: Estimate, stages: list[Stage], run: RunDir) -> int:
    """What a plan will still add to the disk, at most; what is there already is taken off."""
    left = passing = 0
    for stage, cost in zip(stages, predicted.stages, strict=True):
        if cost.state != "done":
            left += max(0, cost.disk_bytes - bytes_in(run.stage(stage.name).root))
            passing = max(passing, cost.passing_bytes)
    sets: dict[str, int] = {}
    for stage, cost in zip(stages, predicted.stages, strict=True):
        if cost.state != "done":
            which = "pretrain" if stage.kind == "pretrain" else "mid_train"
            sets[which] = max(sets.get(which, 0), packed_bytes(stage))
    return left + passing + max(0, sum(sets.values()) - bytes_in(run.data))
