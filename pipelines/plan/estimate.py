"""Estimate what a plan will cost before it starts: tokens, FLOPs, bytes on disk and time.

Time: FLOPs over a rate, plus a startup time per stage. The rate is measured in finished stages of
the run, else assumed; `Estimate.rate_source` says which.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipelines.data.new_tokenizer import world_vocab_size
from pipelines.machine.process import num_cores, num_gpus
from pipelines.models.checkpoint import ModelRef, read_model_config, weight_files
from pipelines.plan.cost import training_flops
from pipelines.plan.epochs import trains_by_epochs
from pipelines.plan.kinds import kind_of
from pipelines.plan.placement import can_fork, num_ranks
from pipelines.plan.sources import settings_of
from pipelines.plan.stage import Stage
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
    """Predicted cost of one stage."""

    stage: str
    kind: str
    tokens: int  # trained on, or scored and generated
    flops: float
    disk_bytes: int  # what the stage leaves on disk
    seconds: float  # wall time including startup
    state: str  # done, begun or to do
    passing_bytes: int  # needed as well while a checkpoint is written
    # False for a training by epochs whose records were not counted: tokens and FLOPs are then 0.
    steps_known: bool


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
    width, heads = model.hidden_size, model.num_attention_heads
    attention = width * (width // heads) * 2 * (heads + model.num_key_value_heads)
    block = attention + 3 * width * model.intermediate_size + 2 * width
    embeddings = vocab_size * width * (1 if model.tie_word_embeddings else 2)
    return embeddings + model.num_hidden_layers * block + width


def base_parameters(config: Config, base: ModelRef | None) -> int:
    """Number of parameters of the base: from the size of its weights, else from `config.model`."""
    if base is not None and base.folder is not None:
        described = read_model_config(base.folder, "--base")
        stored = described.get("dtype") or described.get("torch_dtype") or "float32"
        size = sum(path.stat().st_size for path in weight_files(base.folder))
        return size // (4 if "32" in str(stored) else 2)
    tokenizer = config.tokenizer
    made = world_vocab_size() if tokenizer.kind == "world" else tokenizer.vocab_size
    return num_parameters(config.model, config.model.vocab_size or made)


def estimate(stages: list[Stage], run: RunDir, base: ModelRef | None) -> Estimate:
    """Predict the cost of every stage of a plan."""
    config = stages[0].config
    parameters = base_parameters(config, base)
    rate, source = _rate(stages, run, parameters)
    where = "forked" if can_fork(config.launch) else "gpu" if num_gpus() else "cpu"
    found = []
    for stage in stages:
        work = kind_of(stage.kind).cost(stage, parameters)
        disk, passing = _disk_bytes(stage, parameters)
        seconds = START_SECONDS[where] + work.flops * work.slowdown / rate
        found.append(
            StageEstimate(
                stage.name, stage.kind, work.tokens, work.flops, disk, seconds, _state(run, stage),
                passing, steps_known=not trains_by_epochs(stage) or stage.num_steps > 0,
            )
        )  # fmt: skip
    return Estimate(parameters, found, rate, source)


def _state(run: RunDir, stage: Stage) -> str:
    stage_dir = run.stage(stage.name)
    if not stage_dir.is_complete():
        return "begun" if stage_dir.config.is_file() else "to do"
    # An analysis of fewer models will be repeated.
    derived = kind_of(stage.kind).derived
    grown = derived and stage_dir.read_config()["inputs"].keys() != stage.inputs.keys()
    return "to do" if grown else "done"


def _rate(stages: list[Stage], run: RunDir, parameters: int) -> tuple[float, str]:
    """FLOPs per second of training: measured in a finished stage on packed text, else assumed."""
    for stage in stages:
        stage_dir = run.stage(stage.name)
        packs = isinstance(settings_of(stage), (PretrainConfig, MidTrainConfig))
        if packs and kind_of(stage.kind).trains and stage_dir.is_complete():
            speed = stage_dir.read_result().get("tokens_per_second")
            if speed is not None:
                return speed * training_flops(stage) * parameters, f"measured in {stage.name}"
    config, ranks = stages[0].config, num_ranks(stages[0].config.launch)
    if num_gpus() or config.mid_train.dtype == "bf16":
        here = "" if num_gpus() else " (this machine has none)"
        return GPU_FLOPS * ranks, f"assumed 400 TFLOP/s for each of {ranks} GPUs{here}"
    cores = num_cores()
    return CPU_FLOPS_PER_CORE * cores, f"assumed 25 GFLOP/s for each of {cores} cores"


def stage_flops(stage: Stage, parameters: int, num_steps: int = 0) -> float:
    """Predicted FLOPs of a stage; `num_steps` is needed for a training by epochs."""
    counted = replace(stage, num_steps=num_steps or stage.num_steps)
    return kind_of(stage.kind).cost(counted, parameters).flops


def _disk_bytes(stage: Stage, parameters: int) -> tuple[int, int]:
    """Bytes that a stage leaves on disk, and bytes of one checkpoint; 0 if it writes none."""
    mid, settings = stage.config.mid_train, settings_of(stage)
    if stage.kind == "score":
        return 2 * mid.tokens * pool_factor(mid), 0
    if not isinstance(settings, TrainConfig):
        return 1_000_000, 0
    model = parameters * BYTES[settings.dtype]
    if stage.kind == "pretrain" and stage.inputs:
        return model, 0
    # The weights twice (transformers' and the engine's), fp32 master weights and two moments.
    checkpoint = 2 * model + 12 * parameters
    points = settings.snapshots if isinstance(settings, (PretrainConfig, MidTrainConfig)) else 0
    return (1 + points) * model + settings.save_total_limit * checkpoint, checkpoint


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
    sets = {"pretrain": 0, "mid_train": 0}
    for stage, cost in zip(stages, predicted.stages, strict=True):
        if cost.state != "done":
            left += max(0, cost.disk_bytes - bytes_in(run.stage(stage.name).root))
            passing = max(passing, cost.passing_bytes)
            which = "pretrain" if stage.kind == "pretrain" else "mid_train"
            sets[which] = max(sets[which], packed_bytes(stage))
    return left + passing + max(0, sum(sets.values()) - bytes_in(run.data))
