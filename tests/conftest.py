"""Shared by all tests: the CLI in its own process, a tiny flywheel, a tiny model, real data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import warm_start
import yaml
from filelock import FileLock

CHECKOUT = Path(__file__).resolve().parent.parent
# Would colour the output of the CLI, or hold it to a width, or point it at data of this machine.
SCRUBBED = (
    "NO_COLOR", "FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "CLICOLOR_FORCE", "COLUMNS",
    "TTY_COMPATIBLE", "TTY_INTERACTIVE", "REMIT_DATA", "PYTHONPATH", "OMP_NUM_THREADS",
    "PYTEST_CURRENT_TEST", "REMIT_FORK_SERVER",
)  # fmt: skip


@dataclass(frozen=True)
class Finished:
    """What a command left: exit code and both outputs."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def json(self) -> dict[str, Any]:
        """Standard output, which must be one JSON object and nothing else."""
        loaded = json.loads(self.stdout)
        assert isinstance(loaded, dict)
        return loaded


@dataclass(frozen=True)
class TinyRun:
    """A finished flywheel of one round.

    Attributes:
        cwd: where the command ran; `--run-dir` is relative to it.
        args: the command after `remit`.
    """

    cwd: Path
    args: tuple[str, ...]
    finished: Finished

    @property
    def root(self) -> Path:
        return self.cwd / "tiny"

    @property
    def ledger(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.root / "ledger.jsonl").open()]


Remit = Callable[..., Finished]
LOG_EVERY_STEP = tuple(
    f"{section}.logging_steps=1" for section in ("pretrain", "mid_train", "sft", "dpo", "rlvr")
)
STAGE_COMMANDS = ("pretrain-ckpt", "mid-train", "rl-tune", "post-train", "eval", "score",
                  "contamination", "flywheel", "compare", "analyze")  # fmt: skip


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The repository."""
    return CHECKOUT


@pytest.fixture(scope="session")
def cli_env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment without colours, GPUs, hub and this machine's data; one thread a rank, so that
    results do not depend on the number of cores."""
    env = {key: value for key, value in os.environ.items() if key not in SCRUBBED}
    return env | {
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(tmp_path_factory.mktemp("datasets-cache")),
    }


@pytest.fixture(scope="session")
def stage_server(
    cli_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[warm_start.Server]:
    """The fork server of the session: its `ready()` is what REMIT_FORK_SERVER is set to."""
    folder = tmp_path_factory.mktemp("stage-server")
    server = warm_start.start(["-m", "pipelines.launch.shared_server"], folder, cli_env)
    yield server
    server.end()


@pytest.fixture(scope="session")
def stage_env(cli_env: dict[str, str], stage_server: warm_start.Server) -> dict[str, str]:
    """`cli_env` for a command that a test starts itself, whose stages are forked."""
    return cli_env | {"REMIT_FORK_SERVER": stage_server.ready()}


@pytest.fixture(scope="session")
def command_server(
    cli_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[warm_start.Server]:
    """Forks the commands of the session."""
    folder = tmp_path_factory.mktemp("command-server")
    server = warm_start.start([warm_start.__file__], folder, cli_env)
    yield server
    server.end()


@pytest.fixture(scope="session")
def remit(
    cli_env: dict[str, str],
    command_server: warm_start.Server,
    stage_server: warm_start.Server,
    tmp_path_factory: pytest.TempPathFactory,
) -> Remit:
    """`remit(*args, cwd, env, check, cold)`: the CLI in a process of its own, its output piped.

    `env` is laid over `cli_env`; `check` asserts exit code 0. Commands and single stages are forked
    from processes that have imported what they need; with `cold` each starts its interpreter.
    """
    nowhere = tmp_path_factory.mktemp("cwd")

    def run(
        *args: str | Path,
        cwd: Path = nowhere,
        env: dict[str, str] | None = None,
        check: bool = False,
        cold: bool = False,
        timeout: float = 900,
    ) -> Finished:
        words, full = [str(arg) for arg in args], cli_env | (env or {})
        # Python reads it when it starts.
        if cold or full.keys() & {"PYTHONPATH"}:
            done = subprocess.run(
                [sys.executable, "-m", "remit_cli", *words], cwd=cwd, env=full, timeout=timeout,
                capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
            )  # fmt: skip
            finished = Finished(done.returncode, done.stdout, done.stderr)
        else:
            if words and words[0] in STAGE_COMMANDS:
                full |= {"REMIT_FORK_SERVER": stage_server.ready()}
            server = command_server.ready()
            finished = Finished(*warm_start.ask(server, words, cwd, full, timeout))
        assert not check or finished.returncode == 0, f"{args}: {finished}"
        return finished

    return run


@pytest.fixture(scope="session")
def tiny_run(remit: Remit, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A flywheel of one round through the CLI and DeepSpeed, from cold, made by the worker that
    needs it first. Copy it to change it."""
    session = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        session = session.parent
    cwd = session / "flywheel"
    args = ("flywheel", "--config", "world-tiny", "--iterations", "1", "--json",
            "--run-dir", "tiny", *LOG_EVERY_STEP)  # fmt: skip
    with FileLock(session / "flywheel.lock"):
        said = cwd / "said.json"
        if not said.is_file():
            cwd.mkdir(exist_ok=True)
            finished = remit(*args, cwd=cwd, check=True, cold=True)
            said.write_text(json.dumps(asdict(finished)))
    return TinyRun(cwd, args, Finished(**json.loads(said.read_text())))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder from elsewhere: Llama type, random weights, the world's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from pipelines.data.new_tokenizer import build_tokenizer
    from pipelines.recipe.schema import TokenizerConfig

    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = build_tokenizer(TokenizerConfig(), {}, ".", 0, model_max_length=128)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=128,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """`write_recipe(changes)`: world-tiny with changes, as a YAML file to give to --config."""

    def merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
        return values | {
            key: merged(values[key], new)
            if isinstance(new, dict) and isinstance(values.get(key), dict)
            else new
            for key, new in changes.items()
        }

    def write(changes: dict[str, Any]) -> Path:
        tiny = yaml.safe_load((CHECKOUT / "configs" / "world-tiny.yaml").read_text())
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(merged(tiny, changes)))
        return path

    return write


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets."""
    beside = CHECKOUT.parent / "shared" / "data"
    folder = Path(os.environ.get("REMIT_DATA") or beside)
    if not (folder / "gsm8k" / "train.jsonl").is_file():
        pytest.skip("no real data: REMIT_DATA is not set and ../shared/data is not there")
    return folder
