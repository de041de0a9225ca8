"""Where the ranks of a stage run: nodes, ranks per node, their command and environment.

Ranks on multiple nodes are started in one of three ways: DeepSpeed's runner with a hostfile, `srun`
inside a SLURM job, or DeepSpeed's runner started by hand on every node (`--no_ssh`). On one node,
DeepSpeed's per-node launcher starts them. A single rank is started directly with the environment
that this launcher would give it, which saves 5 s.
"""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from pipelines.errors import UserError
from pipelines.machine import slurm
from pipelines.machine.process import free_port, num_cores, num_gpus, this_process
from pipelines.recipe.schema import LaunchConfig
from pipelines.run_dir.paths import StageDir, write_json

# Set for each rank by its launcher.
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "LOCAL_WORLD_SIZE")
# Variables of this process that DeepSpeed's runner does not pass on to the other nodes.
CARRIED = ("HF_", "WANDB_", "REMIT_")
SECRET_MODE = 0o600


def hosts(hostfile: str) -> dict[str, int]:
    """Number of ranks by host, from a DeepSpeed hostfile (`name slots=N` per line).

    Raises:
        UserError: the file does not exist, has a malformed line, or names a host twice.
    """
    path = Path(hostfile)
    if not path.is_file():
        raise UserError(f"--hostfile {hostfile}: the file does not exist.")
    found: dict[str, int] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = re.fullmatch(r"\s*(\S+)\s+slots=(\d+)\s*", line)
        if not match or int(match[2]) < 1:
            raise UserError(
                f"--hostfile {hostfile}, line {number}: write it as 'name slots=N', N at least 1."
            )
        if match[1] in found:
            raise UserError(f"--hostfile {hostfile}, line {number}: {match[1]} is listed twice.")
        found[match[1]] = int(match[2])
    if not found:
        raise UserError(f"--hostfile {hostfile}: it lists no host.")
    return found


def num_nodes(launch: LaunchConfig) -> int:
    """Number of nodes of a stage."""
    return len(hosts(launch.hostfile)) if launch.hostfile else launch.nodes or slurm.num_nodes()


def num_ranks(launch: LaunchConfig) -> int:
    """Number of ranks of a stage over all nodes."""
    if launch.hostfile:
        return sum(hosts(launch.hostfile).values())
    return num_nodes(launch) * launch.gpus


def through_srun(launch: LaunchConfig) -> bool:
    """Whether srun starts the ranks: the job has multiple nodes, and no hostfile is set."""
    return not launch.hostfile and num_nodes(launch) > 1


def needs_launch_spec(launch: LaunchConfig) -> bool:
    """Whether ranks start through `pipelines.worker.rank`: on other nodes or after a prologue."""
    return bool(launch.hostfile or launch.prologue) or through_srun(launch)


def can_fork(launch: LaunchConfig) -> bool:
    """Whether ranks may be forked: not with GPUs, since CUDA does not survive a fork."""
    return not needs_launch_spec(launch) and not num_gpus()


def check_variables(launch: LaunchConfig) -> None:
    """
    Raises:
        UserError: a variable of `launch.env` is set by the launcher itself, has an invalid name or
            value, or is a MASTER_PORT that is not a port.
    """
    for name, value in launch.env.items():
        if name in RANK_VARIABLES:
            raise UserError(
                f"launch.env.{name}: the launcher sets it for each rank. Remove it; --gpus, "
                "launch.nodes and --hostfile set the number of ranks."
            )
        if not name or "=" in name or "\0" in name:
            raise UserError(
                f"launch.env: invalid variable name {name!r}; it must not be empty or contain '='."
            )
        if "\0" in value:
            raise UserError(f"launch.env.{name}: the value contains a NUL character. Remove it.")
    port = launch.env.get("MASTER_PORT", "29500")
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"launch.env.MASTER_PORT = {port}: a port is a number from 1 to 65535.")


def check_prologue(launch: LaunchConfig) -> None:
    """Let bash parse each line of `launch.prologue` without running it.

    Raises:
        UserError: a line is not valid bash, or bash is not installed.
    """
    for line in launch.prologue:
        if "\0" in line:
            raise UserError(f"launch.prologue: {line!r} contains a NUL character. Remove it.")
        try:
            command = ["bash", "-n", "-c", line]
            read = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise UserError("launch.prologue needs bash, which is not on the PATH.") from error
        if read.returncode:
            said = (read.stderr.strip().splitlines() or ["no reason given"])[0]
            raise UserError(
                f"launch.prologue: {shlex.quote(line)} is not a complete bash command ({said})."
            )


def master_port(launch: LaunchConfig) -> int:
    """The rendezvous port: `launch.env.MASTER_PORT`, else a free port of this node."""
    return int(launch.env.get("MASTER_PORT") or free_port())


def visible_devices(launch: LaunchConfig) -> list[int | str]:
    """The GPUs of the ranks on this node, one each: numbers or UUIDs."""
    visible = launch.env.get("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    named = [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    if len(named) < launch.gpus:
        return list(range(launch.gpus))
    return [int(name) if name.isdigit() else name for name in named[: launch.gpus]]


def command_line(
    launch: LaunchConfig, stage_dir: StageDir, port: int, token: str = ""
) -> list[str]:
    """The command that runs a stage's ranks; `write_launch_spec` returns the token."""
    worker = ["pipelines.worker.worker", str(stage_dir.root)]
    if needs_launch_spec(launch):
        worker = ["pipelines.worker.rank", str(stage_dir.root), token]
    if through_srun(launch):
        step = slurm.step_command(num_nodes(launch), launch.gpus, num_cores())
        return [*step, *launch.srun_args, sys.executable, "-u", "-m", *worker]
    address = launch.env.get("MASTER_ADDR")
    if launch.hostfile:
        runner = [sys.executable, "-m", "deepspeed.launcher.runner"]
        options = [f"--hostfile={launch.hostfile}", f"--master_port={port}", "--no_local_rank"]
        if address:
            options.append(f"--master_addr={address}")
        # Later options win: a port in runner_args replaces ours, which is free on this host only.
        return [*runner, *options, *launch.runner_args, "--module", *worker]
    if launch.gpus == 1:
        return [sys.executable, "-m", *worker]
    world = json.dumps({"localhost": visible_devices(launch)}).encode()
    options = [
        f"--world_info={base64.urlsafe_b64encode(world).decode()}",
        f"--master_addr={address or '127.0.0.1'}", f"--master_port={port}", "--no_local_rank",
    ]  # fmt: skip
    return [sys.executable, "-m", "deepspeed.launcher.launch", *options, "--module", *worker]


def write_launch_spec(
    launch: LaunchConfig, stage_dir: StageDir, port: int, env: Mapping[str, str]
) -> str:
    """Write the launch spec, which the ranks on all nodes read first; see `pipelines.worker.rank`.

    Returns:
        Its token, a new one for every start. A rank that finds another token, or no file, runs on a
        node that does not see this run directory. Empty if the ranks need no launch spec.
    """
    if not needs_launch_spec(launch):
        return ""
    token = secrets.token_hex(8)
    rendezvous: dict[str, str] = {}
    if through_srun(launch):
        if address := launch.env.get("MASTER_ADDR"):
            rendezvous["MASTER_ADDR"] = address
        rendezvous["MASTER_PORT"] = str(port)
    spec = {
        "token": token,
        "port": port,
        "env": {key: value for key, value in env.items() if _is_carried(key, launch)},
        "rendezvous": rendezvous,
        "prologue": launch.prologue,
        "command": this_process(),
    }
    # The environment may contain access tokens of a hub or a tracker.
    write_json(stage_dir.launch_spec, spec, mode=SECRET_MODE)
    return token


def _is_carried(name: str, launch: LaunchConfig) -> bool:
    if name.startswith("MASTER_"):
        return False
    by_runner = bool(launch.hostfile) and "--no_ssh" not in launch.runner_args
    carried = by_runner and (name.startswith(CARRIED) or name in COMPUTED)
    return carried or name in launch.env or name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")


CPU_ENVIRONMENT = {
    # Spinning threads make steps 4 to 10 times slower if the cores are shared.
    "OMP_WAIT_POLICY": "PASSIVE",
    # By default glibc returns large blocks at once and then maps them again, with a page fault per
    # 4 KB: a tenth of a step with an inline reference. 32 MB is the maximum of every glibc.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
}
# Variables set by `environment` that DeepSpeed's runner does not pass on either.
COMPUTED = (
    "PATH", "DS_ACCELERATOR", "OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM", "TORCH_EXTENSIONS_DIR",
    "PYTHONUNBUFFERED", *CPU_ENVIRONMENT,
)  # fmt: skip


def environment(launch: LaunchConfig, port: int, offline: bool) -> dict[str, str]:
    """The environment of a stage's ranks; on CPU, they share the cores and keep freed memory."""
    env = dict(os.environ)
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', '')}"
    if not num_gpus():
        env["DS_ACCELERATOR"] = "cpu"
        here = max(hosts(launch.hostfile).values()) if launch.hostfile else launch.gpus
        threads = {"OMP_NUM_THREADS": str(max(1, num_cores() // here))}
        for name, value in (threads | CPU_ENVIRONMENT).items():
            env.setdefault(name, value)
    env.setdefault("TOKENIZERS_PARALLELISM", "false")
    if os.access(sys.prefix, os.W_OK):
        # If two environments share torch's default folder, each rebuilds the op of the other.
        env.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    env["PYTHONUNBUFFERED"] = "1"
    if offline:
        env |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    if through_srun(launch):
        for name in slurm.NOT_INHERITED:
            env.pop(name, None)
    elif launch.gpus == 1 and not launch.hostfile:
        env |= rank_environments(launch, port)[0]
    return env | launch.env


def rank_environments(launch: LaunchConfig, port: int) -> list[dict[str, str]]:
    """The variables that DeepSpeed's per-node launcher sets for each rank of this node."""
    shared = {
        "WORLD_SIZE": str(launch.gpus),
        "LOCAL_SIZE": str(launch.gpus),
        "MASTER_ADDR": launch.env.get("MASTER_ADDR", "127.0.0.1"),
        "MASTER_PORT": str(port),
    }
    ranks = map(str, range(launch.gpus))
    return [{"RANK": rank, "LOCAL_RANK": rank, **shared} for rank in ranks]
