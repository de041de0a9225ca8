"""Run a plan: skip complete stages, resume begun ones, refuse those with other settings."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pipelines.errors import WRONG_INPUT_CODE, Interrupted, StageFailed, UserError
from pipelines.launch import launcher as launch
from pipelines.launch import memory, shared_server
from pipelines.launch.stop import ReceivedSignals
from pipelines.machine.process import num_gpus
from pipelines.machine.signals import signals_handled_by
from pipelines.machine.slurm import seconds_of_job
from pipelines.models.checkpoint import ModelRef, check_made_model, content_hash
from pipelines.models.tokenizer import check_tokenizers
from pipelines.plan.identity import digest, is_made, is_remade, refusal, stage_fields
from pipelines.plan.kinds import kind_of
from pipelines.plan.placement import can_fork
from pipelines.plan.sources import is_offline, sources_of
from pipelines.plan.stage import CONTAMINATION, Stage
from pipelines.recipe.load import to_dict
from pipelines.run_dir import disk, ledger
from pipelines.run_dir.fail_points import fail_point
from pipelines.run_dir.layout import made_by
from pipelines.run_dir.paths import RunDir, RunLock, StageDir, read_json, write_yaml
from pipelines.run_dir.progress import last_error, tail
from pipelines.run_dir.resume_state import made_with

# Keys of a result that the ledger line has anyway, or that are too long for a line.
NOT_IN_LEDGER = (
    "stage", "kind", "identity", "tasks", "heldout_blocks", "evals", "rounds", "dynamics",
    "movement", "accuracy",
)  # fmt: skip

Values: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Observer:
    """Callbacks. `tick` is called several times a second while the stage runs."""

    started: Callable[[Stage, Literal["start", "resume"]], None]
    tick: Callable[[Stage], None]
    finished: Callable[[Stage, Values], None]
    skipped: Callable[[Stage, Values], None]


@dataclass
class Runner:
    """Runs the stages of a plan in a run directory, whose lock it holds."""

    run: RunDir
    lock: RunLock
    data_sha256: dict[str, str]
    command: str
    observer: Observer
    stages: list[Stage] = field(default_factory=list)
    fork_server: launch.ForkServer | None = None
    failure: StageFailed | None = None

    def run_all(self, stages: list[Stage]) -> dict[str, Values]:
        """Run all stages; returns their results by name.

        If an analysis after other stages fails, its error is not raised but put into `failure`, so
        that the caller can show the results of the others first.

        Raises:
            UserError: a stage folder was made with other inputs.
            StageFailed: the process of a stage failed; its checkpoints stay.
            Interrupted: a signal arrived, or the end of the SLURM job is near.
        """
        self.stages = stages
        results: dict[str, Values] = {}
        try:
            for stage in stages:
                try:
                    results[stage.name] = self.run_one(stage)
                except (StageFailed, UserError) as error:
                    if not (kind_of(stage.kind).derived and results):
                        raise
                    if isinstance(error, UserError):
                        log = str(self.run.stage(stage.name).log)
                        error = StageFailed(stage.name, log, str(error), WRONG_INPUT_CODE)
                    self.failure = error
            return results
        finally:
            if self.fork_server is not None:
                self.fork_server.close()

    def run_one(self, stage: Stage) -> Values:
        stage_dir = self.run.stage(stage.name)
        inputs = {role: self._input(role, given) for role, given in stage.inputs.items()}
        for role in ("ref", "model"):
            if "base" in inputs and role in inputs:
                check_tokenizers(Path(inputs["base"]["path"]), Path(inputs[role]["path"]))
        data = {key: self.data_sha256[key] for key in sources_of(stage)}
        fields = stage_fields(stage, {role: i["sha256"] for role, i in inputs.items()}, data)
        old = made_with(stage_dir)
        if old is not None and old != fields:
            if not is_remade(stage):
                raise refusal(self.stages, self.run, {stage.name: (old, fields)}, inputs)
            stage_dir.result.unlink(missing_ok=True)
        elif old is not None and is_made(stage_dir):
            result = stage_dir.read_result()
            events = ledger.read(self.run.ledger)
            # A launcher that was killed after its ranks ended did not write this line.
            if stage.name not in {e["stage"] for e in events if e["event"] == "finish"}:
                self._write_finish(stage, result, fields)
            ledger.append(self.run.ledger, "skip", stage.name, identity=digest(fields))
            self.observer.skipped(stage, result)
            return result
        if seconds_of_job(stage.config.launch.stop_before_walltime) <= 0:
            raise Interrupted(signal.SIGTERM, why="the end of the SLURM job")
        received = ReceivedSignals()
        # Only recorded while the stage runs and the ledger is written.
        with signals_handled_by(received.record):
            stage_dir.root.mkdir(parents=True, exist_ok=True)
            write_yaml(self._spec(stage, inputs, data, fields), stage_dir.config)
            how: Literal["start", "resume"] = "resume" if old == fields else "start"
            ledger.append(
                self.run.ledger, how, stage.name, kind=stage.kind, identity=digest(fields),
                inputs=inputs, command=self.command,
            )  # fmt: skip
            self.observer.started(stage, how)
            result = self._launch(stage, stage_dir, fields, received)
        # A signal that came too late to stop the stage stops the plan after it.
        received.raise_if_any()
        return result

    def _fork(self, stage: Stage) -> launch.Fork | None:
        """Forks the ranks of a stage, by a server that starts with the first stage; None if the
        stage cannot be forked."""
        inherited = (self.lock.descriptor,)
        if not can_fork(stage.config.launch):
            return None
        if path := os.environ.get(shared_server.VARIABLE):
            return partial(shared_server.fork, path, inherited)
        # A single stage would wait for imports of modules that it does not need.
        if len(self.stages) == 1:
            return None
        if self.fork_server is None:
            modules = dict.fromkeys(kind_of(s.kind).module for s in self.stages)
            offline = all(is_offline(s) for s in self.stages)
            self.fork_server = launch.ForkServer(stage.config.launch, modules, offline, inherited)
        first, own = self.fork_server.launch, stage.config.launch
        # Forked ranks inherit threads and variables, so a stage with other settings is not forked.
        same = first.env == own.env and (first.gpus == own.gpus or kind_of(stage.kind).derived)
        return self.fork_server.start if same else None

    def _launch(
        self, stage: Stage, stage_dir: StageDir, fields: Values, received: ReceivedSignals
    ) -> Values:
        started, kills = time.monotonic(), memory.kernel_kills()
        logged = stage_dir.log.stat().st_size if stage_dir.log.is_file() else 0
        ended = launch.run_stage(
            stage.config.launch, stage_dir, received, offline=is_offline(stage),
            inherited=(self.lock.descriptor,), fork=self._fork(stage),
            on_tick=lambda: self.observer.tick(stage),
        )  # fmt: skip
        if (stop := ended.interrupted) is not None:
            # Without a step, the work since the last checkpoint is lost.
            saved = stop.step is not None
            facts = {"state": "stopped", "step": stop.step} if saved else {"state": "interrupted"}
            facts |= {"why": stop.why} if stop.why else {}
            ledger.append(self.run.ledger, "interrupt", stage.name, signal=stop.signum, **facts)
            raise stop
        wall_seconds = round(time.monotonic() - started, 2)
        if ended.hang or ended.returncode != 0 or not stage_dir.is_complete():
            reason = self._reason(stage, stage_dir, ended, logged, memory.kernel_kills() - kills)
            ledger.append(
                self.run.ledger, "fail", stage.name, exit_code=ended.returncode,
                seconds=wall_seconds, **({"reason": reason} if reason else {}),
            )  # fmt: skip
            said = last_error(stage_dir.log) or disk.shortage(stage_dir.root)
            # Another program may use this exit code too, so only a message in the log counts.
            if ended.returncode == WRONG_INPUT_CODE and said:
                raise UserError(f"{stage.name}: {said}")
            log = stage_dir.log
            raise StageFailed(stage.name, str(log), tail(log), ended.returncode, reason)
        result = stage_dir.read_result() | {"wall_seconds": wall_seconds}
        self._write_finish(stage, result, fields)
        self.observer.finished(stage, result)
        return result

    @staticmethod
    def _reason(
        stage: Stage, stage_dir: StageDir, ended: launch.Ended, logged: int, kills: int
    ) -> str:
        """Why a stage failed and what to do about it; empty if unknown."""
        if ended.hang:
            return ended.hang
        if stage_dir.not_finite.is_file():
            return str(read_json(stage_dir.not_finite, needs=("reason",))["reason"])
        short = memory.shortage(ended.returncode, tail(stage_dir.log, 200, since=logged), kills)
        if not short:
            return ""
        peak = f"; peak memory {ended.memory}" if ended.memory else ""
        lower = memory.smaller(stage.kind, stage.config, on_gpu=num_gpus() > 0)
        return f"{short}{peak}. To use less memory, try {lower}"

    def _write_finish(self, stage: Stage, result: Values, fields: Values) -> None:
        fail_point("before the finish line")
        facts = {k: v for k, v in result.items() if k not in NOT_IN_LEDGER}
        ledger.append(
            self.run.ledger, "finish", stage.name, kind=stage.kind, identity=digest(fields), **facts
        )

    def _input(self, role: str, given: str | ModelRef) -> dict[str, str]:
        """The path and the content hash of an input of a stage."""
        cache = None
        if isinstance(given, ModelRef):
            assert given.folder, "hub models are downloaded before the first stage starts"
            folder, cache = given.folder, self.run.root / "data" / "hashes.json"
        elif role == CONTAMINATION:
            check = self.run.stage(given)
            return {"path": str(check.result), "sha256": check.read_result()["bits_sha256"]}
        else:
            name, _, number = given.partition("@")
            made = self.run.stage(name)
            folder = made.snapshot(int(number)) if number else made.model
        sha256 = content_hash(folder, cache)
        check_made_model(folder, sha256)
        return {"path": str(folder), "sha256": sha256}

    def _spec(self, stage: Stage, inputs: Values, data: Values, fields: Values) -> Values:
        return {
            "stage": stage.name,
            "kind": stage.kind,
            "module": kind_of(stage.kind).module,
            "run_dir": str(self.run.root),
            "identity": digest(fields),
            "inputs": inputs,
            "chat": stage.chat,
            "data_sha256": data,
            "identity_fields": fields,
            "config": to_dict(stage.config),
            # Last: a file that was cut short lacks it.
            **made_by(),
        }
