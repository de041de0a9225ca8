"""Estimate what a plan will cost before it starts: tokens, FLOPs, bytes on disk and time.

FLOPs: 2 N per token forward, 6 N forward and backward (N parameters); the reference's forward
adds 2 N. Time: FLOPs over a rate, plus a startup time per stage. The rate is measured in finished
stages of the run, else assumed; `Estimate.rate_source` says which.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pipelines.data.new_tokenizer import world_vocab_size
from pipelines.machine.process import num_cores, num_gpus
from pipelines.models.checkpoint import ModelRef, read_model_config, weight_files
from pipelines.plan.cost import training_flops
from pipelines.plan.epochs import trains_by_epochs
from pipelines.plan.kinds import kind_of
from pipelines.plan.placement import can_fork, num_ranks
from pipelines.plan.sources import settings_of
from pipelines.plan.stage import BASE, Stage
from pipelines.recipe.schema import (
    Config,
    MidTrainConfig,
    ModelConfig,
    PretrainConfig,
    TrainConfig,
    pool_factor,
)
from pipelines.run_dir.disk import bytes_in
from pipelines.run_dir.paths import RunDir

# Assumed if no stage has finished. CPU: measured with small fp32 models on one core of a server.
CPU_FLOPS_PER_CORE = 2.5e10
GPU_FLOPS = 4e14
START_SECONDS = {"forked": 2.0, "cpu": 10.0, "gpu": 25.0}
BYTES = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class StageEstimate:
    """Predicted cost of one stage.

    Attributes:
        tokens: tokens trained on, or scored and generated.
        flops: floating point operations.
        disk_bytes: what the stage leaves on disk.
        passing_bytes: what it also needs temporarily, for a checkpoint that is being written.
        seconds: predicted wall time including startup.
        state: done, begun or to do.
        steps_known: false for a training by epochs whose records were not counted: its tokens,
            FLOPs and time are then 0.
    """

    stage: str
    kind: str
    tokens: int
    flops: float
    disk_bytes: int
    seconds: float
    state: str
    passing_bytes: int = 0
    steps_known: bool = True


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
    """Number of parameters of a Llama-type model (embeddings, attention, gated MLP, norms)."""
    head_dim = model.hidden_size // model.num_attention_heads
    attention = (
        model.hidden_size
        * head_dim
        * (2 * model.num_attention_heads + 2 * model.num_key_value_heads)
    )
    feed_forward = 3 * model.hidden_size * model.intermediate_size
    block = attention + feed_forward + 2 * model.hidden_size
    embeddings = vocab_size * model.hidden_size * (1 if model.tie_word_embeddings else 2)
    return embeddings + model.num_hidden_layers * block + model.hidden_size


def base_parameters(config: Config, base: ModelRef | None) -> int:
    """Number of parameters of the base: from the size of its weights, else from `config.model`."""
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
    """Predict the cost of every stage of a plan."""
    config = stages[0].config
    parameters = base_parameters(config, base)
    rate, source = _rate(stages, run, parameters)
    where = "forked" if can_fork(config.launch) else "gpu" if num_gpus() else "cpu"
    start = START_SECONDS[where]
    found = []
    for stage in stages:
        work = kind_of(stage.kind).cost(stage, parameters)
        found.append(
            StageEstimate(
                stage=stage.name,
                kind=stage.kind,
                tokens=work.tokens,
                flops=work.flops,
                disk_bytes=_disk_bytes(stage, parameters),
                seconds=start + work.flops * work.slowdown / rate,
                state=_state(run, stage),
                passing_bytes=_checkpoint_bytes(stage, parameters),
                steps_known=not trains_by_epochs(stage) or stage.num_steps > 0,
            )
        )
    return Estimate(parameters, found, rate, source)


def _state(run: RunDir, stage: Stage) -> str:
    stage_dir = run.stage(stage.name)
    if stage_dir.is_complete():
        # An analysis of fewer models will be repeated.
        derived = kind_of(stage.kind).derived
        grown = derived and stage_dir.read_config()["inputs"].keys() != stage.inputs.keys()
        return "to do" if grown else "done"
    return "begun" if stage_dir.config.is_file() else "to do"


def _rate(stages: list[Stage], run: RunDir, parameters: int) -> tuple[float, str]:
    """FLOPs per second of training: measured in a finished stage on packed text, else assumed."""
    for stage in stages:
        stage_dir = run.stage(stage.name)
        if _packs(stage) and stage_dir.is_complete():
            measured: dict[str, Any] = stage_dir.read_result()
            if "tokens_per_second" in measured:
                return (
                    measured["tokens_per_second"] * training_flops(stage) * parameters,
                    f"measured in {stage.name}",
                )
    config, ranks = stages[0].config, num_ranks(stages[0].config.launch)
    if num_gpus() or config.mid_train.dtype == "bf16":
        here = "" if num_gpus() else " (this machine has none)"
        return GPU_FLOPS * ranks, f"assumed 400 TFLOP/s for each of {ranks} GPUs{here}"
    cores = num_cores()
    return CPU_FLOPS_PER_CORE * cores, f"assumed 25 GFLOP/s for each of {cores} cores"


def stage_flops(stage: Stage, parameters: int, num_steps: int = 0) -> float:
    """Predicted FLOPs of a stage: 6 per parameter and training token, 2 per forward.

    Args:
        num_steps: its steps, for a training by epochs, whose recipe does not give them.
    """
    counted = replace(stage, num_steps=num_steps or stage.num_steps)
    return kind_of(stage.kind).cost(counted, parameters).flops


def _disk_bytes(stage: Stage, parameters: int) -> int:
    if stage.kind == "score":
        return 2 * stage.config.mid_train.tokens * pool_factor(stage.config.mid_train)
    config = settings_of(stage)
    if not isinstance(config, TrainConfig):
        return 1_000_000
    model: int = parameters * BYTES[config.dtype]
    points = config.snapshots if isinstance(config, (PretrainConfig, MidTrainConfig)) else 0
    if not _checkpoint_bytes(stage, parameters):
        return model if stage.inputs and stage.kind == "pretrain" else (1 + points) * model
    return (1 + points) * model + config.save_total_limit * _checkpoint_bytes(stage, parameters)


def _checkpoint_bytes(stage: Stage, parameters: int) -> int:
    """Bytes of one checkpoint of a stage; 0 if it writes none."""
    imports = stage.kind == "pretrain" and stage.name == BASE and bool(stage.inputs)
    config = settings_of(stage)
    if not kind_of(stage.kind).trains or not isinstance(config, TrainConfig) or imports:
        return 0
    # The weights twice (transformers' and the engine's), fp32 master weights and two moments.
    return parameters * (2 * BYTES[config.dtype] + 12)


def _packs(stage: Stage) -> bool:
    """Whether a stage trains on packed sequences."""
    settings = settings_of(stage)
    return kind_of(stage.kind).trains and isinstance(settings, (PretrainConfig, MidTrainConfig))


def packed_bytes(stage: Stage) -> int:
    """Bytes of the packed set that a stage reads; 0 if it reads none."""
    if stage.kind == "pretrain" and not stage.inputs:
        tokens = stage.config.pretrain.tokens
    elif stage.kind in ("mid_train", "score"):
        tokens = stage.config.mid_train.tokens * pool_factor(stage.config.mid_train)
    else:
        return 0
    # uint16 for vocabularies of up to 65536 tokens, else uint32: assume the larger.
    return 4 * tokens


def bytes_to_write(predicted: Estimate, stages: list[Stage], run: RunDir) -> int:
    """Maximum number of bytes that the rest of a plan adds to what is on the disk now."""
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
