"""What a model's `config.json` says of itself, checked before anything is loaded."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipelines.errors import UserError

_COUNTS = ("hidden_size", "vocab_size", "num_hidden_layers", "max_position_embeddings")
# Each has at least one weight for every unit of the model's width.
_ROWS = ("vocab_size", "num_hidden_layers")


def check_shape(config: Mapping[str, Any], weight_bytes: int, where: str) -> None:
    """Look whether a `config.json` can be that of a causal language model with these weights, and
    asks for no code from elsewhere.

    Args:
        config: what is in the file.
        weight_bytes: size of the weights.
        where: the file, as a message names it.

    Raises:
        UserError: a kernel of the hub, a type of model that transformers does not know, a size that
            is no whole number, or a model larger than its weights; the message names the key.
    """
    for key in _COUNTS:
        value = config.get(key)
        whole = isinstance(value, int) and not isinstance(value, bool) and value > 0
        if value is not None and not whole:
            raise UserError(
                f"{where}: {key} = {_shown(value)}, where a whole number above 0 should be."
            )
    width = config.get("hidden_size") or 1
    for key in _ROWS:
        if (config.get(key) or 0) * width > weight_bytes:
            raise UserError(
                f"{where}: {key} = {_shown(config[key])} asks for more weights than the "
                f"{weight_bytes} bytes that the folder holds. The file belongs to another model."
            )
    _check_type(config, where)
    _check_kernels(config, where)


def _check_kernels(config: Mapping[str, Any], where: str) -> None:
    """No `_attn_implementation` and the like, at whatever depth, that names a repository.

    transformers would fetch it and run it, whatever backend the loader asks for.
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
                f"{where}: {key} = {_shown(value)} names a kernel of the hub, which is code. "
                "Remove it from the file; model.attn_implementation says what is used here."
            )


def _check_type(config: Mapping[str, Any], where: str) -> None:
    own_code = config.get("auto_map")
    if isinstance(own_code, dict) and "AutoModelForCausalLM" in own_code:
        return
    known, given = known_types(), config.get("model_type")
    if known and given not in known:
        raise UserError(
            f"{where}: model_type = {_shown(given)}, and the transformers installed here has no "
            "causal language model of that type. A newer transformers may have it."
        )


@lru_cache(maxsize=1)
def known_types() -> tuple[str, ...]:
    """Types of causal language models that the installed transformers has.

    Read from its source, since importing it takes seconds; empty where they are not found there.
    """
    found = importlib.util.find_spec("transformers")
    places = found.submodule_search_locations if found else None
    path = Path(places[0], "models", "auto", "modeling_auto.py") if places else Path()
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
