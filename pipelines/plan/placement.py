"""Where the ranks of a stage run: machines, ranks on each, the command and environment of them.

Three ways over several machines: DeepSpeed's runner with a hostfile, `srun` inside a job of SLURM,
and DeepSpeed's runner started on each machine by hand (`--no_ssh`). One machine takes DeepSpeed's
per-node launcher, and one rank is started directly, with that launcher's environment (5 s less).
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

# Set for each rank by what starts it.
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "LOCAL_WORLD_SIZE")
# Of this process's environment, what DeepSpeed's runner does not carry to other machines.
CARRIED = ("HF_", "WANDB_", "REMIT_")
SECRET_MODE = 0o600


def hosts(hostfile: str) -> dict[str, int]:
    """Ranks by host of a DeepSpeed hostfile (`name slots=N` a line).

    Raises:
        UserError: no such file, a line of another form, or a host named twice.
    """
    path = Path(hostfile)
    if not path.is_file():
        raise UserError(f"--hostfile {hostfile}: no such file.")
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
            raise UserError(f"--hostfile {hostfile}, line {number}: {match[1]} is there twice.")
        found[match[1]] = int(match[2])
    if not found:
        raise UserError(f"--hostfile {hostfile}: it names no host.")
    return found


def num_nodes(launch: LaunchConfig) -> int:
    """Machines of a stage."""
    if launch.hostfile:
        return len(hosts(launch.hostfile))
    return launch.nodes or slurm.num_nodes()


def num_ranks(launch: LaunchConfig) -> int:
    """Ranks of a stage, over all machines."""
    if launch.hostfile:
        return sum(hosts(launch.hostfile).values())
    return num_nodes(launch) * launch.gpus


def through_srun(launch: LaunchConfig) -> bool:
    """Whether srun starts the ranks: several machines of a job, and no hostfile."""
    return not launch.hostfile and num_nodes(launch) > 1


def is_spread(launch: LaunchConfig) -> bool:
    """Whether ranks run on other machines than this one, or may."""
    return bool(launch.hostfile) or through_srun(launch)


def can_fork(launch: LaunchConfig) -> bool:
    """Whether ranks may be forked: all on this machine, without lines of a shell before them, and
    no GPU (CUDA does not survive it)."""
    return not is_spread(launch) and not launch.prologue and not num_gpus()


def check_variables(launch: LaunchConfig) -> None:
    """Refuse variables of `launch.env` that the launcher sets or that no environment can hold, and
    a port that is none.

    Raises:
        UserError: which one, and what to write instead.
    """
    for name in RANK_VARIABLES:
        if name in launch.env:
            raise UserError(
                f"launch.env.{name}: every rank has its own, from what starts it. Leave it out; "
                "--gpus, launch.nodes and --hostfile say how many ranks there are."
            )
    for name, value in launch.env.items():
        if not name or "=" in name or "\0" in name:
            raise UserError(
                f"launch.env: {name!r} is no name of a variable; it must not be empty or have '='."
            )
        if "\0" in value:
            raise UserError(f"launch.env.{name}: the value has a NUL, which no variable can hold.")
    port = launch.env.get("MASTER_PORT", "29500")
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"launch.env.MASTER_PORT = {port}: a port is a number up to 65535.")


def check_prologue(launch: LaunchConfig) -> None:
    """Have bash read each line of `launch.prologue`; runs none.

    Raises:
        UserError: a line that bash does not understand, or there is no bash.
    """
    for line in launch.prologue:
        if "\0" in line:
            raise UserError(f"launch.prologue: {line!r} has a NUL, which no line can hold.")
        try:
            read = subprocess.run(
                ["bash", "-n", "-c", line], capture_output=True, text=True, check=False
            )
        except FileNotFoundError as error:
            raise UserError("launch.prologue needs bash, which is not on the PATH.") from error
        if read.returncode:
            said = (read.stderr.strip().splitlines() or ["no reason given"])[0]
            raise UserError(
                f"launch.prologue: {shlex.quote(line)} is no whole command of bash ({said})."
            )


def master_port(launch: LaunchConfig) -> int:
    """Where the ranks meet: `launch.env.MASTER_PORT`, else a free port of this machine."""
    return int(launch.env.get("MASTER_PORT") or free_port())


def visible_devices(launch: LaunchConfig) -> list[int | str]:
    """The GPUs that the ranks of this machine take, one each: numbers or UUIDs."""
    visible = launch.env.get("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    named = [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    if len(named) < launch.gpus:
        return list(range(launch.gpus))
    return [int(name) if name.isdigit() else name for name in named[: launch.gpus]]


def needs_launch_spec(launch: LaunchConfig) -> bool:
    """Whether `pipelines.worker.rank` starts the ranks: on other machines, or after a prologue."""
    return is_spread(launch) or bool(launch.prologue)


def command_line(
    launch: LaunchConfig, stage_dir: StageDir, port: int, token: str = ""
) -> list[str]:
    """The command that runs a stage's ranks.

    Args:
        token: what `write_launch_spec` returned, where there are orders.
    """
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
        # Later options win, so that a port given for all hosts replaces the free one of this host.
        return [*runner, *options, *launch.runner_args, "--module", *worker]
    if launch.gpus == 1:
        return [sys.executable, "-m", *worker]
    world = base64.urlsafe_b64encode(
        json.dumps({"localhost": visible_devices(launch)}).encode()
    ).decode()
    options = [
        f"--world_info={world}",
        f"--master_addr={address or '127.0.0.1'}",
        f"--master_port={port}",
        "--no_local_rank",
    ]
    return [sys.executable, "-m", "deepspeed.launcher.launch", *options, "--module", *worker]


def write_launch_spec(
    launch: LaunchConfig, stage_dir: StageDir, port: int, env: Mapping[str, str]
) -> str:
    """Write what ranks read before they start, on whatever machine; see `pipelines.worker.rank`.

    Args:
        env: the environment of the stage's ranks on this machine.

    Returns:
        The token in it, new for every start: a rank that finds another one, or no file, is on a
        machine that does not see this run directory. Empty where there are no orders.
    """
    if not needs_launch_spec(launch):
        return ""
    token = secrets.token_hex(8)
    rendezvous: dict[str, str] = {}
    if through_srun(launch):
        given = {"MASTER_ADDR": launch.env.get("MASTER_ADDR", ""), "MASTER_PORT": str(port)}
        rendezvous = {key: value for key, value in given.items() if value}
    kept = {key: value for key, value in env.items() if _is_carried(key, launch)}
    spec = {
        "token": token,
        "port": port,
        "env": kept,
        "rendezvous": rendezvous,
        "prologue": launch.prologue,
        "command": this_process(),
    }
    # It may hold tokens of a hub or a tracker.
    write_json(stage_dir.launch_spec, spec, mode=SECRET_MODE)
    return token


def _is_carried(name: str, launch: LaunchConfig) -> bool:
    if name.startswith("MASTER_"):
        return False
    by_runner = launch.hostfile and "--no_ssh" not in launch.runner_args
    if by_runner and (name.startswith(CARRIED) or name in COMPUTED):
        return True
    return name in launch.env or name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")


CPU_ENVIRONMENT = {
    # Spinning threads on a shared machine cost 4 to 10 times.
    "OMP_WAIT_POLICY": "PASSIVE",
    # glibc gives large blocks back at once and takes them anew, a page fault for every 4 KB: a
    # tenth of a step beside a reference. 32 MB is the most that every glibc allows.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
}
# What `environment` works out, and DeepSpeed's runner does not carry either.
COMPUTED = (
    "PATH", "DS_ACCELERATOR", "OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM", "TORCH_EXTENSIONS_DIR",
    "PYTHONUNBUFFERED", *CPU_ENVIRONMENT,
)  # fmt: skip


def environment(launch: LaunchConfig, port: int, offline: bool) -> dict[str, str]:
    """The environment of a stage's ranks.

    On CPU, threads are the cores over the ranks, and what is freed stays with the process.
    """
    env = dict(os.environ)
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', '')}"
    if not num_gpus():
        env["DS_ACCELERATOR"] = "cpu"
        here = max(hosts(launch.hostfile).values()) if launch.hostfile else launch.gpus
        env.setdefault("OMP_NUM_THREADS", str(max(1, num_cores() // here)))
        for name, value in CPU_ENVIRONMENT.items():
            env.setdefault(name, value)
    env.setdefault("TOKENIZERS_PARALLELISM", "false")
    if os.access(sys.prefix, os.W_OK):
        # Two environments that share torch's default folder build DeepSpeed's op over and over.
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
    """What DeepSpeed's per-node launcher tells each rank of this machine."""
    return [
        {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(launch.gpus),
            "LOCAL_SIZE": str(launch.gpus),
            "MASTER_ADDR": launch.env.get("MASTER_ADDR", "127.0.0.1"),
            "MASTER_PORT": str(port),
        }
        for rank in range(launch.gpus)
    ]
