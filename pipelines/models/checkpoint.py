"""Resolve a CKPT argument to a model folder, check the folder, and hash its content.

CKPT is a path or a hub name; an existing path takes precedence. A model folder holds `config.json`,
weights in safetensors and a tokenizer. A stage folder stands for its `model/`.
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
    """A model to read: a local folder or, if `folder` is None, a hub name with a revision."""

    name: str
    folder: Path | None
    revision: str | None = None

    @property
    def location(self) -> str:
        """The argument for `from_pretrained`."""
        return str(self.folder) if self.folder else self.name


def find_checkpoint(ckpt: str, option: str) -> ModelRef:
    """Resolve the CKPT given for `option`, which messages name.

    Raises:
        UserError: the folder does not exist, holds no model, or is an unfinished stage.
    """
    if not ckpt.strip():
        raise UserError(f"{option} is empty. Give a model folder, a stage folder or org/name.")
    path = Path(ckpt).expanduser()
    if path.exists():
        folder = _model_folder(path.resolve(), option)
        check_model_folder(folder, option)
        return ModelRef(ckpt, folder)
    if HUB_NAME.match(ckpt) and not ckpt.startswith((".", "/")):
        name, _, revision = ckpt.partition("@")
        return ModelRef(name, None, revision or None)
    raise UserError(
        f"{option} {ckpt}: this folder does not exist. Give the folder of a Hugging Face model, "
        "the folder of a finished stage of a run, or a hub name (org/name or org/name@revision)."
    )


def fetch(model: ModelRef, option: str) -> ModelRef:
    """Download a hub model to the hub cache if needed, and return it with its local folder.

    Raises:
        UserError: the download fails, or the model has no weights in safetensors.
    """
    if model.folder is not None:
        return model
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.py"]
    try:
        folder = Path(snapshot_download(model.name, revision=model.revision, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{option} {model.name}: there is no such local folder, and the download from the "
            f"model hub failed ({str(error).splitlines()[0]}). Without network, give a local "
            "folder."
        ) from error
    check_model_folder(folder, option)
    return ModelRef(model.name, folder, model.revision)


def _model_folder(path: Path, option: str) -> Path:
    """The folder itself or, of a stage, its model."""
    if not path.is_dir():
        raise UserError(f"{option} {path}: this is a file. Give the folder of a model.")
    stage = StageDir(path)
    if not stage.config.is_file():
        return path
    if not stage.is_complete():
        raise UserError(
            f"{option} {path}: this stage has not finished. Run its command again to resume it."
        )
    return stage.model


def weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


# Suffixes of weight formats that are, or may be, pickles: loading a pickle can run code.
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5")
MAX_HEADER_BYTES = 100_000_000  # the limit of safetensors itself
GENERATION_CONFIG = "generation_config.json"
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Defaults that transformers writes into every generation_config.json.
_SAVED_ALWAYS = {"output_attentions": False, "output_hidden_states": False, "use_cache": True}


def check_model_folder(folder: Path, option: str) -> None:
    """Check, without loading it, that a folder holds a causal language model with its tokenizer.

    Raises:
        UserError: a file is missing, damaged or a link out of the folder, or the weights are not in
            safetensors.
    """
    where, weights, restore = f"{option} {folder}", weight_files(folder), _way_to_restore(folder)
    if (folder / "adapter_config.json").exists():
        raise UserError(
            f"{where}: this is a LoRA adapter, not a model; merge it (peft: merge_and_unload, then "
            "save_pretrained) and give the merged model."
        )
    if not (folder / "config.json").is_file():
        raise UserError(f"{where}: this folder holds no model (config.json is missing).{restore}")
    _check_links(folder, option)
    if not weights:
        raise UserError(
            f"{where}: model.safetensors is missing; this folder has no *.safetensors weights."
            f"{restore or _way_to_convert(folder)}"
        )
    if not (folder / "tokenizer.json").is_file():
        advice = restore or " Save the tokenizer as a fast tokenizer."
        raise UserError(f"{where}: tokenizer.json is missing.{advice}")
    for path in weights:
        _check_whole(path, f"{option} {path}", restore or " Copy or download it again.")
    _check_index(folder, option)
    weight_bytes = sum(path.stat().st_size for path in weights)
    check_shape(read_model_config(folder, option), weight_bytes, f"{where}/config.json")


def _way_to_restore(folder: Path) -> str:
    """How to get back the damaged model of a stage; empty for another model."""
    result = StageDir(folder.parent).result
    if folder.name != "model" or not result.is_file():
        return ""
    return (
        f" Remove {result} and run that stage's command again. It resumes from its newest "
        "checkpoint, or starts again if there is none."
    )


def _way_to_convert(folder: Path) -> str:
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if not pickled:
        return ""
    return (
        f" It has {', '.join(pickled[:3])}, but a pickle can run any code when it is loaded, so "
        "remit loads only safetensors. If you trust its author, convert it yourself: "
        "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW), and the same for its "
        "tokenizer."
    )


def _check_links(folder: Path, option: str) -> None:
    """Check that all entries, also in subfolders, are regular files or folders in allowed places.

    A link may point within the folder and, in a hub cache, to the blobs of its repository; weights
    to anywhere, because they can only be read as tensors. Other files are copied into models
    trained from this one, so a link could leak any file of the user.
    """
    whole = folder.resolve()
    places = [whole]
    if whole.parent.name == "snapshots":
        places.append(whole.parent.parent / "blobs")
    weights = weight_files(folder)
    for path in _all_within(folder):
        # Not Path.resolve, which fails on a link that leads to itself.
        target = Path(os.path.realpath(path))
        if not target.exists() and path.is_symlink():
            raise UserError(f"{option} {path}: this link points to {target}, which does not exist.")
        if not target.is_file() and not target.is_dir():
            raise UserError(f"{option} {path}: this is not a regular file.")
        own = any(target.is_relative_to(place) for place in places)
        if not own and not (path in weights and target.is_file()):
            raise UserError(
                f"{option} {path}: this link leads out of the model's folder, to {target}. Only "
                "weights may do so. Replace the link by a copy of the file."
            )


def _all_within(folder: Path) -> list[Path]:
    """Files and folders in a folder and its subfolders; links are listed but not followed."""
    walked = os.walk(folder)
    return sorted(Path(parent, name) for parent, dirs, files in walked for name in [*dirs, *files])


def _check_whole(path: Path, where: str, advice: str) -> None:
    """Check size, dtypes, shapes and offsets of a safetensors file, without reading its data."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"{where}: this is not a regular file.")
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
        raise UserError(f"{where}: not a safetensors file ({error}).{advice}") from error
    if expected != size:
        raise UserError(f"{where}: the file has {size} bytes instead of {expected}.{advice}")
    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise UserError(f"{where}: not a safetensors file ({error}).{advice}") from error


def _check_index(folder: Path, option: str) -> None:
    """Check that the weight index names only weight files in the folder."""
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
            f"{option} {path}: the index names {strangers[0]}, but no such weight file exists."
        )


def read_model_config(folder: Path, option: str) -> dict[str, Any]:
    try:
        return read_json(folder / "config.json")
    except DamagedFile as error:
        raise UserError(f"{option} {folder}/config.json is not a JSON object: {error}") from error


def own_code(folder: Path) -> list[str]:
    """Classes that a model folder defines in custom code (`auto_map`)."""
    found: set[str] = set()
    for name in ("config.json", "tokenizer_config.json"):
        named = _content(folder / name).get("auto_map")
        for value in named.values() if isinstance(named, dict) else [named]:
            found |= {str(one) for one in (value if isinstance(value, list) else [value]) if one}
    return sorted(found)


def _content(path: Path) -> dict[str, Any]:
    """The content of a JSON file; empty if it does not exist."""
    return read_json(path) if path.is_file() else {}


def has_chat_template(folder: Path) -> bool:
    """Whether the tokenizer of a model folder has a chat template."""
    if (folder / "chat_template.jinja").is_file():
        return True
    return bool(_content(folder / "tokenizer_config.json").get("chat_template"))


def content_hash(folder: Path, cache: Path | None = None) -> str:
    """SHA-256 over the weights, config, tokenizer, templates and code of a model folder.

    `cache` is a JSON file of hashes by path, size and modification time, so that a large model is
    read only once.
    """
    known = _known_hashes(cache) if cache and cache.is_file() else {}
    before = len(known)
    combined = hashlib.sha256()
    for path in _hashed_files(folder):
        stat = path.stat()
        key = f"{path}:{stat.st_size}:{stat.st_mtime_ns}"
        if key not in known:
            known[key] = file_sha256(path)
        combined.update(f"{path.relative_to(folder).as_posix()}:{known[key]}\n".encode())
    if cache and len(known) > before:
        write_marker(cache, known)
    return combined.hexdigest()


def _hashed_files(folder: Path) -> list[Path]:
    names = ["config.json", "tokenizer.json", "chat_template.jinja", "tokenizer_config.json"]
    others = [folder / n for n in names if (folder / n).is_file()]
    if _steers_generation(folder):
        others.append(folder / GENERATION_CONFIG)
    # Nested files come last, so that they do not change the hash of a folder without subfolders.
    code = [p for p in _all_within(folder) if p.suffix in (".jinja", ".py") and p.is_file()]
    nested = [path for path in code if path.parent != folder]
    return weight_files(folder) + others + sorted(folder.glob("*.py")) + nested


def _steers_generation(folder: Path) -> bool:
    """Whether `generation_config.json` adds anything to `config.json` and to the defaults.

    Every saved model has this file; without additions it is not part of the hash.
    """
    if not (folder / GENERATION_CONFIG).is_file():
        return False
    said, config = read_json(folder / GENERATION_CONFIG), _content(folder / "config.json")
    ids = {name: said.pop(name, None) for name in SPECIAL_IDS}
    same = all(config.get(name) == value for name, value in ids.items())
    for name in ("_from_model_config", "transformers_version"):
        said.pop(name, None)
    return not same or any(value != _SAVED_ALWAYS.get(name) for name, value in said.items())


def _known_hashes(cache: Path) -> dict[str, str]:
    try:
        known = read_marker(cache, {})
    except DamagedFile:
        # Everything in the cache can be computed again.
        return {}
    return {key: value for key, value in known.items() if isinstance(value, str)}


def check_made_model(folder: Path, digest: str) -> None:
    """Compare a stage's model, whose hash is now `digest`, with the hash that its result recorded.

    Raises:
        UserError: the model has changed; the message says how to restore it.
    """
    result, restore = StageDir(folder.parent).result, _way_to_restore(folder)
    if restore and read_json(result).get("model_sha256", digest) != digest:
        check_model_folder(folder, "model")  # which says what is missing
        raise UserError(
            f"{folder} has changed since its stage wrote it: its checksum differs from the one in "
            f"{result}.{restore}"
        )


def file_sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def stage_kind(model: ModelRef) -> str | None:
    """The kind of the stage that made a model; None for an external model."""
    if model.folder is None:
        return None
    result = StageDir(model.folder.parent).result
    return str(read_json(result)["kind"]) if result.is_file() else None
