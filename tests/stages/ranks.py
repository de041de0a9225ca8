"""Ranks that train one job after another, for tests that compare ways to split the same batch.

The product's fork server starts `run` in each rank, as it starts the module of any stage. A job is
the folder of a stage with its `config.yaml`; the ranks run the stage's own module.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from pipelines.launch import shared_server
from pipelines.launch.launcher import ForkedRanks, end_group
from pipelines.machine.process import free_port
from pipelines.plan.placement import environment, rank_environments
from pipelines.recipe import load as recipes
from pipelines.recipe.schema import LaunchConfig
from pipelines.run_dir.job import StageJob, read_job
from pipelines.run_dir.paths import StageDir, read_yaml, write_json, write_text, write_yaml

FAR_TOO_LONG = 300.0


def run(job: StageJob) -> dict[str, Any]:
    """In a rank: run the jobs in the order of their numbers, until the test ends the ranks."""
    from accelerate.state import AcceleratorState
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    folder, rank = job.stage_dir.root, int(os.environ["RANK"])
    for number in itertools.count():
        asked = folder / f"job-{number}"
        while not asked.exists():
            time.sleep(0.01)
        one = read_job(StageDir(Path(asked.read_text())))
        result = importlib.import_module(one.module).run(one)
        if rank == 0:
            write_json(one.stage_dir.result, result)
        # A trainer expects to be the first of its process; the process group stays.
        AcceleratorState._reset_state()
        unset_hf_deepspeed_config()
        (folder / f"done-{number}-{rank}").touch()
    raise AssertionError


def forked(stage: StageDir, number: int, env: dict[str, str]) -> ForkedRanks:
    """Fork the ranks of a stage, whose `config.yaml` may name a module of this folder."""
    launch, port = LaunchConfig(gpus=number), free_port()
    with mock.patch.dict(os.environ, env, clear=True), contextlib.chdir(Path(__file__).parent):
        started = shared_server.fork(
            env[shared_server.VARIABLE], (), stage,
            environment(launch, port, offline=True), rank_environments(launch, port),
        )  # fmt: skip
    assert started is not None, stage.log.read_text()
    return started


class Ranks:
    """Processes with one process group.

    Args:
        spec: content of a `config.yaml` of a mid-training, which jobs change.
        run: the run directory of the jobs.
    """

    def __init__(self, number: int, spec: dict[str, Any], run: Path, env: dict[str, str]) -> None:
        self.spec, self.run = spec | {"run_dir": str(run)}, run
        self.stage = StageDir(run / f"ranks-{number}")
        self.number, self.jobs = number, 0
        write_yaml(self.spec | {"module": "ranks"}, self.stage.config)
        self.process = forked(self.stage, number, env)

    def train(self, name: str, inputs: dict[str, Path], *overrides: str) -> StageDir:
        """Run a mid-training of world-tiny with these inputs to its end; its folder."""
        stage = StageDir(self.run / name)
        values = [*overrides, f"launch.gpus={self.number}"]
        config = recipes.to_dict(recipes.load("world-tiny", values))
        given = {role: {"path": str(path), "sha256": ""} for role, path in inputs.items()}
        write_yaml(self.spec | {"stage": name, "config": config, "inputs": given}, stage.config)
        number, self.jobs = self.jobs, self.jobs + 1
        write_text(self.stage.root / f"job-{number}", str(stage.root))
        deadline = time.monotonic() + FAR_TOO_LONG
        done = [self.stage.root / f"done-{number}-{rank}" for rank in range(self.number)]
        while not all(path.exists() for path in done):
            assert self.process.poll() is None, self.stage.log.read_text()
            assert time.monotonic() < deadline, self.stage.log.read_text()
            time.sleep(0.01)
        return stage

    def end(self) -> None:
        self.process.answers.close()
        with contextlib.suppress(ValueError):
            end_group(self.process)


@contextlib.contextmanager
def pair_and_single(tiny_run: Any, run: Path, env: dict[str, str]) -> Iterator[dict[int, Ranks]]:
    """Two ranks, and one alone, by their number."""
    spec = read_yaml(tiny_run.root / "round-0" / "10-mid-train" / "config.yaml")
    groups = {number: Ranks(number, spec, run, env) for number in (1, 2)}
    try:
        yield groups
    finally:
        for group in groups.values():
            group.end()


def logged(stage: StageDir) -> list[dict[str, Any]]:
    """What a training logged of each step."""
    lines = [json.loads(line) for line in stage.metrics.open()]
    return [line for line in lines if "loss" in line]
