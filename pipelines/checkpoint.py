"""What CKPT on the command line means, and the content hash of a model folder.

A path wins over a hub name. A model folder holds `config.json`, weights in safetensors and a
tokenizer; a stage folder stands for its `model/`.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import DamagedFile, UserError
from pipelines.run_dir import StageDir, read_json, write_json

HUB_NAME = re.compile(r"^[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+(@[A-Za-z0-9_./-]+)?$")


@dataclass(frozen=True)
class ModelRef:
    """A model to read: a local folder, or a hub name with a revision when `folder` is None."""

    name: str
    folder: Path | None
    revision: str | None = None

    @property
    def location(self) -> str:
        """What `from_pretrained` takes."""
        return str(self.folder) if self.folder else self.name


def find_checkpoint(ckpt: str, option: str) -> ModelRef:
    """Resolve CKPT, given as `option` (for the message).

    Raises:
        UserError: no such folder, an unfinished stage, or a folder without a model.
    """
    if not ckpt.strip():
        raise UserError(f"{option} is empty: give a model folder, a stage folder or org/name.")
    path = Path(ckpt).expanduser()
    if path.exists():
        return ModelRef(ckpt, _model_folder(path, option))
    if HUB_NAME.match(ckpt) and not ckpt.startswith((".", "/")):
        name, _, revision = ckpt.partition("@")
        return ModelRef(name, None, revision or None)
    raise UserError(
        f"{option} {ckpt}: no such folder. Give the folder of a Hugging Face model, the folder of "
        "a finished stage of a run, or a hub name (org/name or org/name@revision)."
    )


def fetch(model: ModelRef, option: str) -> ModelRef:
    """The local folder of a hub model, downloaded to the hub cache if it is not there yet.

    Raises:
        UserError: it cannot be had, or holds no model that loads from safetensors.
    """
    if model.folder is not None:
        return model
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(
                model.name,
                revision=model.revision,
                allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.py"],
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{option} {model.name}: no such folder here, and the model hub did not give it "
            f"({str(error).splitlines()[0]}). Without network, give a local folder."
        ) from error
    check_model_folder(folder, option)
    return ModelRef(model.name, folder, model.revision)


def _model_folder(path: Path, option: str) -> Path:
    path = path.resolve()
    if not path.is_dir():
        raise UserError(f"{option} {path}: a model is a folder, this is a file.")
    stage = StageDir(path)
    if stage.config.is_file():
        if not stage.is_complete():
            raise UserError(
                f"{option} {path}: this stage has not finished. Run the command that made it "
                "again: it resumes."
            )
        path = stage.model
    check_model_folder(path, option)
    return path


def weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def check_model_folder(folder: Path, option: str) -> None:
    """Look, without loading, whether a folder can hold a causal language model with tokenizer."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{option} {folder}: no model there (config.json is missing).")
    if not weight_files(folder):
        pickled = sorted(p.name for p in folder.glob("*.bin")) + sorted(
            p.name for p in folder.glob("*.pt")
        )
        hint = (
            f" It has {', '.join(pickled)}: convert it with save_pretrained, only safetensors load."
            if pickled
            else ""
        )
        raise UserError(f"{option} {folder}: no *.safetensors weights there.{hint}")
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"{option} {folder}: tokenizer.json is missing (a fast tokenizer).")
    for path in weight_files(folder):
        _check_whole(path, option)
    read_model_config(folder, option)


def _check_whole(path: Path, option: str) -> None:
    """Whether a safetensors file is as long as its header says."""
    size = path.stat().st_size
    try:
        with open(path, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(min(length, size)))
        ends = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{option} {path}: not a safetensors file ({error}).") from error
    if 8 + length + max(ends, default=0) != size:
        raise UserError(
            f"{option} {path}: cut off or overlong ({size} bytes, "
            f"{8 + length + max(ends, default=0)} expected). Copy or download it again."
        )


def read_model_config(folder: Path, option: str) -> dict[str, Any]:
    """The model's `config.json`."""
    try:
        return read_json(folder / "config.json")
    except DamagedFile as error:
        raise UserError(f"{option} {folder}/config.json is not a JSON object: {error}") from error


def has_chat_template(folder: Path) -> bool:
    """Whether the tokenizer of a model folder can write conversations."""
    if (folder / "chat_template.jinja").is_file():
        return True
    path = folder / "tokenizer_config.json"
    return path.is_file() and bool(read_json(path).get("chat_template"))


def content_hash(folder: Path, cache: Path | None = None) -> str:
    """SHA-256 over the weights, config and tokenizer of a model folder.

    `cache` is a JSON file of digests by path, size and time of change, so that a large model is
    read once.
    """
    known = read_json(cache) if cache and cache.is_file() else {}
    combined = hashlib.sha256()
    changed = False
    names = ["config.json", "tokenizer.json", "chat_template.jinja", "tokenizer_config.json"]
    for path in weight_files(folder) + [folder / n for n in names if (folder / n).is_file()]:
        stat = path.stat()
        key = f"{path}:{stat.st_size}:{stat.st_mtime_ns}"
        if key not in known:
            known[key] = file_sha256(path)
            changed = True
        combined.update(f"{path.name}:{known[key]}\n".encode())
    if cache and changed:
        write_json(cache, known)
    return combined.hexdigest()


def check_made_model(folder: Path, digest: str) -> None:
    """Compare a model that a stage made with what its result recorded.

    Args:
        digest: its content hash now.

    Raises:
        UserError: it is another one, with the way to mend it.
    """
    result = StageDir(folder.parent).result
    if folder.name != "model" or not result.is_file():
        return
    recorded = read_json(result).get("model_sha256", digest)
    if recorded != digest:
        raise UserError(
            f"{folder} is not what its stage wrote: its checksum differs from the one in {result}. "
            f"Remove {result} and run the command that made it again: the stage goes on from its "
            "newest checkpoint and writes the model anew."
        )


def file_sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def stage_kind(model: ModelRef) -> str | None:
    """The kind of the stage that made a model, None for a model from elsewhere."""
    if model.folder is None:
        return None
    result = StageDir(model.folder.parent).result
    return str(read_json(result)["kind"]) if result.is_file() else None
