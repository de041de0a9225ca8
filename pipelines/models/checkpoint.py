"""What CKPT on the command line means, and the content hash of a model folder.

A path wins over a hub name. A model folder holds `config.json`, weights in safetensors and a
tokenizer; a stage folder stands for its `model/`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import DamagedFile, UserError
from pipelines.models.model_shape import check_shape
from pipelines.run_dir.markers import read_marker, write_marker
from pipelines.run_dir.paths import StageDir, read_json

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


# Weights in formats that are pickles, or may be: loading one runs code that is in it.
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5")
MAX_HEADER_BYTES = 100_000_000  # as safetensors itself allows
GENERATION_CONFIG = "generation_config.json"
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# What transformers writes into a generation_config.json that says nothing.
_SAVED_ALWAYS = {"output_attentions": False, "output_hidden_states": False, "use_cache": True}


def check_model_folder(folder: Path, option: str) -> None:
    """Look, without loading, whether a folder can hold a causal language model with tokenizer.

    Raises:
        UserError: something is missing, damaged or leads out of the folder; only safetensors are
            weights.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{option} {folder}: no model there (config.json is missing).")
    if (folder / "adapter_config.json").exists():
        raise UserError(
            f"{option} {folder}: an adapter (adapter_config.json), which names a model elsewhere. "
            "Merge it into its base (peft: merge_and_unload, save_pretrained), and give the result."
        )
    _check_links(folder, option)
    if not weight_files(folder):
        raise UserError(
            f"{option} {folder}: no *.safetensors weights there.{_way_to_convert(folder)}"
        )
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"{option} {folder}: tokenizer.json is missing (a fast tokenizer).")
    for path in weight_files(folder):
        _check_whole(path, option)
    _check_index(folder, option)
    weight_bytes = sum(path.stat().st_size for path in weight_files(folder))
    config = read_model_config(folder, option)
    check_shape(config, weight_bytes, f"{option} {folder}/config.json")


def _way_to_convert(folder: Path) -> str:
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if not pickled:
        return ""
    return (
        f" It has {', '.join(pickled[:3])}, and a pickle can run any code when it is loaded: only "
        "safetensors load here. If you trust who made it, convert it elsewhere: "
        "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW), and the same for its "
        "tokenizer."
    )


def _check_links(folder: Path, option: str) -> None:
    """Whether every file, of subfolders too, is one, and lies where it may.

    A link may lead within the folder and, in a hub cache, to the blobs of its own repository.
    Weights may lie anywhere: they are read as tensors or not at all. Other files are copied into
    models that are made of this one, so that a link could carry any file of yours away.
    """
    whole = folder.resolve()
    places = [whole]
    if whole.parent.name == "snapshots":
        places.append(whole.parent.parent / "blobs")
    for path in _all_within(folder):
        # Not Path.resolve, which fails on a link that leads to itself.
        target = Path(os.path.realpath(path))
        if not target.exists() and path.is_symlink():
            raise UserError(f"{option} {path}: a link to {target}, where nothing is.")
        if not target.is_file() and not target.is_dir():
            raise UserError(f"{option} {path}: no regular file.")
        own = any(target.is_relative_to(place) for place in places)
        # Only those of the folder itself are read as weights.
        is_weight = path.suffix == ".safetensors" and path.parent == folder and target.is_file()
        if not own and not is_weight:
            raise UserError(
                f"{option} {path}: a link out of the model's folder, to {target}. Only weights may "
                "be links; copy the file in its place."
            )


def _all_within(folder: Path) -> list[Path]:
    """Files and folders in a folder and its subfolders; links are named and not followed."""
    return sorted(
        Path(parent, name)
        for parent, folders, files in os.walk(folder)
        for name in (*folders, *files)
    )


def _check_whole(path: Path, option: str) -> None:
    """Whether a safetensors file is what its header says."""
    if not path.is_file():
        raise UserError(f"{option} {path}: no regular file.")
    size = path.stat().st_size
    try:
        with open(path, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > min(MAX_HEADER_BYTES, size):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(stream.read(length))
        ends = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{option} {path}: not a safetensors file ({error}).") from error
    if expected != size:
        raise UserError(
            f"{option} {path}: cut off or overlong ({size} bytes, {expected} expected). Copy or "
            "download it again."
        )
    _check_tensors(path, option)


def _check_tensors(path: Path, option: str) -> None:
    """Types, shapes and places of all tensors, by the library that reads them; no data is read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise UserError(f"{option} {path}: not a safetensors file ({error}).") from error


def _check_index(folder: Path, option: str) -> None:
    """Whether an index names only weight files of the folder."""
    path = folder / "model.safetensors.index.json"
    if not path.is_file():
        return
    try:
        shards = read_json(path, needs=("weight_map",))["weight_map"]
    except DamagedFile as error:
        raise UserError(f"{option} {path}: {error}") from error
    present = {file.name for file in weight_files(folder)}
    names = set(map(str, shards.values())) if isinstance(shards, dict) else {"no weight_map"}
    if strangers := sorted(names - present):
        raise UserError(
            f"{option} {path}: it names {strangers[0]}, which is no weight file of this folder."
        )


def read_model_config(folder: Path, option: str) -> dict[str, Any]:
    """The model's `config.json`."""
    try:
        return read_json(folder / "config.json")
    except DamagedFile as error:
        raise UserError(f"{option} {folder}/config.json is not a JSON object: {error}") from error


def own_code(folder: Path) -> list[str]:
    """Classes that a model folder wants to be made by code of its own (`auto_map`)."""
    found: list[str] = []
    for name in ("config.json", "tokenizer_config.json"):
        path = folder / name
        named = read_json(path).get("auto_map") if path.is_file() else None
        values = named.values() if isinstance(named, dict) else [named] if named else []
        found += [str(one) for value in values for one in _listed(value) if one]
    return sorted(set(found))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def has_chat_template(folder: Path) -> bool:
    """Whether the tokenizer of a model folder can write conversations."""
    if (folder / "chat_template.jinja").is_file():
        return True
    path = folder / "tokenizer_config.json"
    return path.is_file() and bool(read_json(path).get("chat_template"))


def content_hash(folder: Path, cache: Path | None = None) -> str:
    """SHA-256 over the weights, config, tokenizer, templates and code of a model folder.

    `cache` is a JSON file of digests by path, size and time of change, so that a large model is
    read once.
    """
    known = _known_hashes(cache) if cache and cache.is_file() else {}
    combined = hashlib.sha256()
    changed = False
    for path in _hashed_files(folder):
        stat = path.stat()
        key = f"{path}:{stat.st_size}:{stat.st_mtime_ns}"
        if key not in known:
            known[key] = file_sha256(path)
            changed = True
        combined.update(f"{path.relative_to(folder).as_posix()}:{known[key]}\n".encode())
    if cache and changed:
        write_marker(cache, known)
    return combined.hexdigest()


def _hashed_files(folder: Path) -> list[Path]:
    names = ["config.json", "tokenizer.json", "chat_template.jinja", "tokenizer_config.json"]
    others = [folder / n for n in names if (folder / n).is_file()]
    if _steers_generation(folder):
        others.append(folder / GENERATION_CONFIG)
    # Last, so that a folder without subfolders keeps its hash.
    nested = [
        path
        for path in _all_within(folder)
        if path.suffix in (".jinja", ".py") and path.parent != folder and path.is_file()
    ]
    return weight_files(folder) + others + sorted(folder.glob("*.py")) + nested


def _steers_generation(folder: Path) -> bool:
    """Whether `generation_config.json` says more than `config.json` does.

    The file that every saved model has says the same, and is no part of the hash.
    """
    path = folder / GENERATION_CONFIG
    if not path.is_file():
        return False
    said = read_json(path)
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    ids = {name: said.pop(name, None) for name in SPECIAL_IDS}
    same = all(config.get(name) == value for name, value in ids.items())
    origin = ("_from_model_config", "transformers_version")
    rest = {name: value for name, value in said.items() if name not in origin}
    return not same or any(value != _SAVED_ALWAYS.get(name) for name, value in rest.items())


def _known_hashes(cache: Path) -> dict[str, str]:
    try:
        known = read_marker(cache, {})
    except DamagedFile:
        # All of it can be found out again.
        return {}
    return {key: value for key, value in known.items() if isinstance(value, str)}


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
