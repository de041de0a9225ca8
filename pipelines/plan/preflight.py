"""Checks of a whole plan before its first stage starts."""

from __future__ import annotations

import importlib.util
import shutil
from itertools import product
from typing import Any

from pipelines.data.inspection import SourceFacts, inspect_source
from pipelines.data.new_tokenizer import check_made_tokenizer
from pipelines.errors import UserError
from pipelines.evals.availability import asked_here, check_available, check_lengths
from pipelines.machine import slurm
from pipelines.machine.process import cpp_compiler, num_cores, num_gpus
from pipelines.machine.slurm import seconds_of_job
from pipelines.models.checkpoint import ModelRef, has_chat_template, own_code, read_model_config
from pipelines.models.tokenizer import check_tokenizers, num_tokens
from pipelines.plan.context import check_context, longest_context
from pipelines.plan.estimate import bytes_to_write, estimate
from pipelines.plan.identity import check_unchanged
from pipelines.plan.kinds import kind_of
from pipelines.plan.placement import (
    check_prologue,
    check_variables,
    hosts,
    num_nodes,
    num_ranks,
    through_srun,
)
from pipelines.plan.sources import settings_of, sources_of
from pipelines.plan.stage import Stage
from pipelines.quantities import quantity
from pipelines.recipe.rules import check_one_step, check_points
from pipelines.recipe.schema import (
    Config,
    LaunchConfig,
    MidTrainConfig,
    PretrainConfig,
    RlvrConfig,
    SourceConfig,
    TrainConfig,
)
from pipelines.recipe.schema.training import Records
from pipelines.rewards import sandbox
from pipelines.run_dir.disk import free_bytes
from pipelines.run_dir.paths import RunDir
from pipelines.run_dir.resume_state import changed_versions, check_split, newest_marker


def check_plan(stages: list[Stage], run: RunDir) -> dict[str, SourceFacts]:
    """Check launch settings, models and data of all stages of a plan.

    Returns:
        Facts about each data source, by config key; their hashes are part of the identities.

    Raises:
        UserError: the first problem found.
    """
    config = stages[0].config
    _check_launches(stages)
    for stage in stages:
        _check_batches(stage)
        _check_models(stage)
        check_context(stage, stages)
        _check_packages(stage)
        if kind_of(stage.kind).asks:
            check_available(stage.config.eval, stage.config.data_root)
        if stage.kind == "evaluate":
            asked = asked_here(stage.config.eval, stage.config.data_root)
            check_lengths(asked, stage.config.eval.max_length or longest_context(stage, stages))
    _check_separation(config, stages)
    _check_sandbox(stages)
    facts: dict[str, SourceFacts] = {}
    for stage in stages:
        sources = {key: s for key, s in sources_of(stage).items() if s.weight > 0}
        if not sources and _needs_sources(stage):
            raise UserError(
                f"{stage.name} has no data: the recipe '{config.name}' sets no "
                f"{stage.kind}.sources with a weight above 0."
            )
        for key, source in sources.items():
            if key not in facts:
                cache = run.data / "inspected.json" if run.root.is_dir() else None
                facts[key] = inspect_source(
                    key,
                    source,
                    config.data_root,
                    _use(config, key),
                    cache,
                    needs=_split_field(config, key),
                )
    for key in (key for stage in stages for key in sources_of(stage)):
        facts.setdefault(key, SourceFacts([], 0, "weight 0", 0))
    check_unchanged(stages, run)
    _check_reference(stages, run)
    check_splits(stages, run)
    check_disk(stages, run)
    return facts


def check_splits(stages: list[Stage], run: RunDir) -> None:
    """Check ranks and ZeRO stage of a begun stage against its newest checkpoint."""
    for stage in stages:
        stage_dir, settings = run.stage(stage.name), settings_of(stage)
        if stage_dir.is_complete() or not isinstance(settings, TrainConfig):
            continue
        newest = newest_marker(stage_dir.checkpoints)
        if newest:
            ranks = num_ranks(stage.config.launch)
            check_split(newest[0], ranks, settings.zero_stage, stage.kind)


def check_disk(stages: list[Stage], run: RunDir) -> None:
    """Check that the disk of the run directory has space for what the plan still writes."""
    given = [given for given in stages[0].inputs.values() if isinstance(given, ModelRef)]
    predicted = estimate(stages, run, given[0] if given else None)
    needed, free = bytes_to_write(predicted, stages, run), free_bytes(run.root)
    if needed > free:
        raise UserError(
            f"--run-dir {run.root}: the plan writes up to {needed} bytes more "
            f"({quantity(needed)}B), and the disk has {free} bytes ({quantity(free)}B) free. Make "
            "room, choose another disk, or keep less (<stage>.save_total_limit, "
            "<stage>.snapshots); `remit plan` shows the bytes of each stage."
        )


def version_warnings(stages: list[Stage], run: RunDir) -> list[str]:
    """Warnings about stages that were run with other package versions."""
    by_change: dict[str, list[str]] = {}
    for stage in stages:
        changes = ", ".join(changed_versions(run.stage(stage.name)))
        if changes:
            by_change.setdefault(changes, []).append(stage.name)
    return [
        f"package versions have changed since {', '.join(names)}: {changes}. Later stages may "
        "differ in the last bits from a run with the old versions."
        for changes, names in by_change.items()
    ]


def _needs_sources(stage: Stage) -> bool:
    return not kind_of(stage.kind).asks and not (
        stage.kind == "pretrain" and "base" in stage.inputs
    )


def _split_field(config: Config, key: str) -> str:
    """The record field by which an eval task is split into families."""
    task = config.eval.tasks.get(key.removeprefix("eval.tasks."))
    return task.split_by if task is not None else ""


def _use(config: Config, key: str) -> Records:
    """The type of records of the source at a config key."""
    section = key.split(".")[0]
    if section != "eval":
        records: Records = getattr(config, section).RECORDS
        return records
    return "documents" if key.startswith("eval.bits_per_byte.") else "problems"


def _check_launches(stages: list[Stage]) -> None:
    """Check each distinct launch of a plan; a message names the stage if `stages` overrides it."""
    checked: list[LaunchConfig] = []
    for stage in stages:
        launch = stage.config.launch
        if launch in checked:
            continue
        checked.append(launch)
        own = [name for name in stage.config.stages if name == kind_of(stage.kind).launch_key]
        try:
            check_launch(launch)
        except UserError as error:
            if not own:
                raise
            raise UserError(f"{stage.name} (stages.{own[0]}.launch): {error}") from error


def check_launch(launch: LaunchConfig) -> None:
    """Check that the launch settings can work here: number of ranks and nodes, time of the job, and
    a compiler if DeepSpeed needs one.

    Raises:
        UserError: one of them does not fit.
    """
    if launch.gpus < 1:
        raise UserError(f"--gpus {launch.gpus}: must be at least 1.")
    check_variables(launch)
    check_prologue(launch)
    seconds_of_job(launch.stop_before_walltime)
    if launch.hostfile:
        hosts(launch.hostfile)
        if launch.nodes:
            raise UserError(
                f"launch.nodes = {launch.nodes} is for srun, but --hostfile {launch.hostfile} "
                "already lists the nodes. Give one of the two."
            )
    else:
        _check_nodes(launch)
        gpus = num_gpus()
        available = gpus or num_cores()
        if launch.gpus > available:
            what = f"{gpus} GPUs" if gpus else f"no GPU and {available} CPU cores"
            raise UserError(
                f"--gpus {launch.gpus}: this machine has {what}, enough for {available} ranks."
            )
    if not num_gpus() and not cpp_compiler():
        raise UserError(
            "No C++ compiler found: on CPU, DeepSpeed compiles a communication op at first start. "
            "Install one (Debian, Ubuntu: apt-get install g++), or set CXX to its path."
        )


def _check_nodes(launch: LaunchConfig) -> None:
    if launch.nodes > 1 and not slurm.in_job():
        raise UserError(
            f"launch.nodes = {launch.nodes} needs a SLURM job, and this command runs outside of "
            "one. Write a script with `remit launch --slurm`, or list the nodes with --hostfile."
        )
    if launch.nodes > slurm.num_nodes():
        raise UserError(
            f"launch.nodes = {launch.nodes}: this SLURM job has {slurm.num_nodes()} nodes. "
            "Request more (#SBATCH --nodes), or set launch.nodes lower."
        )
    if through_srun(launch) and shutil.which("srun") is None:
        raise UserError(
            f"This SLURM job has {num_nodes(launch)} nodes, but srun, which starts their ranks, is "
            "not on the PATH. Add its folder to PATH, or set launch.nodes=1."
        )


def _check_batches(stage: Stage) -> None:
    settings = settings_of(stage)
    ranks = num_ranks(stage.config.launch)
    imports = stage.kind == "pretrain" and stage.inputs
    if not isinstance(settings, TrainConfig) or imports:
        return
    trains = kind_of(stage.kind).trains
    if isinstance(settings, (PretrainConfig, MidTrainConfig)):
        check_one_step(settings, stage.config.sequence_length)
        if trains:
            check_points(settings, stage.config.sequence_length)
    if not trains:
        return
    if settings.global_batch_size % ranks:
        raise UserError(
            f"{stage.kind}.global_batch_size = {settings.global_batch_size} cannot be divided by "
            f"{ranks} ranks. Choose a multiple of {ranks}, or another --gpus."
        )


def _check_packages(stage: Stage) -> None:
    """Check that the optional packages which a setting needs are installed."""
    settings = settings_of(stage)
    needed = {
        "vllm": isinstance(settings, RlvrConfig) and settings.use_vllm and "rlvr.use_vllm=true",
        "flash_attn": stage.config.model.attn_implementation == "flash_attention_2"
        and "model.attn_implementation=flash_attention_2",
        "lm_eval": kind_of(stage.kind).asks
        and any(benchmark.enabled for benchmark in stage.config.eval.benchmarks.values())
        and "eval.benchmarks",
        **{name: f"report_to=[{name}]" for name in stage.config.report_to},
    }
    for package, why in needed.items():
        if why and importlib.util.find_spec(package) is None:
            raise UserError(f"{why} needs the package {package}, which is not installed.")


def _check_models(stage: Stage) -> None:
    for role, given in stage.inputs.items():
        if isinstance(given, ModelRef) and given.folder:
            model_config = read_model_config(given.folder, f"--{role}")
            if kind_of(stage.kind).chat and not has_chat_template(given.folder):
                raise UserError(
                    f"{given.folder}: its tokenizer has no chat template. Import it first (remit "
                    "pretrain-ckpt --base ...), which adds one, and give the folder of that stage."
                )
            _check_code(given, role, stage.config)
            _check_embeddings(given, model_config)
    base, ref = stage.inputs.get("base"), stage.inputs.get("ref") or stage.inputs.get("model")
    if isinstance(base, ModelRef) and isinstance(ref, ModelRef) and base.folder and ref.folder:
        check_tokenizers(base.folder, ref.folder)


def _check_code(model: ModelRef, role: str, config: Config) -> None:
    """Refuse custom code of a model that trust_remote_code does not name."""
    assert model.folder is not None
    code = own_code(model.folder)
    if code and model.name not in config.trust_remote_code:
        raise UserError(
            f"--{role} {model.name}: this model runs custom code ({', '.join(code[:3])}) with all "
            "your rights. Read the code first; then allow it for this model with "
            f"trust_remote_code=[{model.name}]."
        )


def _check_embeddings(model: ModelRef, model_config: dict[str, Any]) -> None:
    """Check that the embedding has a row for every token of the tokenizer."""
    assert model.folder is not None
    rows = model_config.get("vocab_size")
    tokens = num_tokens(model.folder)
    if isinstance(rows, int) and tokens > rows:
        raise UserError(
            f"{model.folder}: its tokenizer has {tokens} tokens, but its model only {rows} "
            "(vocab_size in config.json). They do not belong together."
        )


def _check_reference(stages: list[Stage], run: RunDir) -> None:
    """Check the tokenizer of an external reference against that of the base, before it is made."""
    first = stages[0]
    imported = first.inputs.get("base")
    made = run.stage(first.name)
    for ref in (stage.inputs.get("ref") for stage in stages):
        if first.kind != "pretrain" or not isinstance(ref, ModelRef) or not ref.folder:
            continue
        if isinstance(imported, ModelRef) and imported.folder:
            check_tokenizers(imported.folder, ref.folder)
        elif made.is_complete():
            check_tokenizers(made.model, ref.folder)
        else:
            check_made_tokenizer(first.config, ref.folder)


def _check_separation(config: Config, stages: list[Stage]) -> None:
    """Keep RL prompts out of SFT: sources that read the same file need disjoint hash ranges."""
    kinds = {stage.kind for stage in stages}
    if not {"sft", "rlvr"} <= kinds:
        return
    for (sft_name, sft), (rl_name, rl) in product(
        config.sft.sources.items(), config.rlvr.sources.items()
    ):
        if _overlap(sft, rl):
            raise UserError(
                f"sft.sources.{sft_name} and rlvr.sources.{rl_name} read the same questions from "
                f"{rl.path}. Split them by hash, for example hash_range: [0, 0.5] for SFT and "
                "[0.5, 1] for RLVR."
            )


def _check_sandbox(stages: list[Stage]) -> None:
    """Refuse to run generated programs without the sandbox."""
    for stage in stages:
        settings = settings_of(stage)
        if isinstance(settings, TrainConfig) and settings.RECORDS != "problems":
            continue
        for key, source in sources_of(stage).items():
            reason = sandbox.unavailable() if source.reward == "code" and source.weight > 0 else ""
            if reason:
                raise UserError(
                    f"{key}: reward code needs the sandbox, and {reason}. "
                    "docs/guides/evaluation.md says "
                    "what the kernel has to allow. Choose another machine, or leave the source out."
                )


def _overlap(first: SourceConfig, second: SourceConfig) -> bool:
    same: list[Any] = [first.kind, first.path, first.name, first.split]
    if first.kind == "world" or not (first.weight and second.weight):
        return False
    if same != [second.kind, second.path, second.name, second.split]:
        return False
    return max(first.hash_range[0], second.hash_range[0]) < min(
        first.hash_range[1], second.hash_range[1]
    )
