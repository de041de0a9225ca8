"""Check a model's `config.json` before anything is loaded."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pipelines.errors import UserError

_COUNTS = ("hidden_size", "vocab_size", "num_hidden_layers", "max_position_embeddings")
# Each of these, times hidden_size, is a lower bound on the number of weights.
_ROWS = ("vocab_size", "num_hidden_layers")


def check_shape(config: Mapping[str, Any], weight_bytes: int, where: str) -> None:
    """Check that a `config.json`, called `where`, describes a causal model that fits its weights.

    Raises:
        UserError: a kernel on the hub, a model type that transformers does not know, a size that is
            not a positive integer, or a model larger than its weights; the message names the key.
    """
    for key in _COUNTS:
        value = config.get(key)
        if value is not None and not (type(value) is int and value > 0):
            raise UserError(f"{where}: {key} = {_shown(value)}: it must be a whole number above 0.")
    width = config.get("hidden_size") or 1
    for key in _ROWS:
        if (config.get(key) or 0) * width > weight_bytes:
            raise UserError(
                f"{where}: {key} = {_shown(config[key])} needs more weights than the folder's "
                f"{weight_bytes} bytes. The file belongs to another model."
            )
    _check_type(config, where)
    _check_kernels(config, where)


def _check_kernels(config: Mapping[str, Any], where: str) -> None:
    """Refuse an `_attn_implementation` or similar key, at any depth, that names a repository.

    transformers would run its code, whichever implementation the loader sets.
    """
    left: list[tuple[str, Any, bool]] = [("", config, False)]
    while left:
        key, value, chooses = left.pop()
        if isinstance(value, dict):
            left += [(k, v, chooses or k.endswith("_implementation")) for k, v in value.items()]
        elif isinstance(value, list):
            left += [(key, one, chooses) for one in value]
        elif chooses and isinstance(value, str) and "/" in value:
            raise UserError(
                f"{where}: {key} = {_shown(value)} names a kernel on the hub, which is code. "
                "Remove it from the file; remit uses the recipe's model.attn_implementation."
            )


def _check_type(config: Mapping[str, Any], where: str) -> None:
    own_code = config.get("auto_map")
    if isinstance(own_code, dict) and "AutoModelForCausalLM" in own_code:
        return
    known, given = _known_types(), config.get("model_type")
    if known and given not in known:
        raise UserError(
            f"{where}: model_type = {_shown(given)}, but the installed transformers has no causal "
            "language model of that type. A newer transformers may have it."
        )


@cache
def _known_types() -> tuple[str, ...]:
    """The types of causal language models that the installed transformers supports.

    They are read from its source, because importing it takes seconds; empty if they are not found.
    """
    found = importlib.util.find_spec("transformers")
    path = Path(found.origin or "").parent / "models/auto/modeling_auto.py" if found else Path()
    if not path.is_file():
        return ()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and node.value.args:
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            if names == ["MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"]:
                return tuple(str(name) for name, _ in ast.literal_eval(node.value.args[0]))
    return ()


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
