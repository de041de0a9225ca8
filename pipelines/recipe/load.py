"""Load a recipe: schema + YAML + overrides -> one typed, checked `Config`.

Only this package uses OmegaConf. All other packages get dataclasses.
"""

from __future__ import annotations

import copy
import os
import re
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipelines.errors import UserError, did_you_mean
from pipelines.recipe.nesting import check_limits
from pipelines.recipe.rules import check_values
from pipelines.recipe.schema import Config
from pipelines.recipe.unknown_keys import hint

DEFAULT_CONFIG = "world"
# OmegaConf's message for a ${oc.env:NAME} without a value.
UNSET = re.compile(r"Environment variable '(\w+)' not found")
# OmegaConf's message for a value of the wrong type, with the expected type.
WRONG_TYPE = re.compile(
    r"Value '(.*)' (?:of type '\w+' could not be converted to|is not a valid) (\w+)"
)
WANTED = {
    "Integer": "an integer (write it without decimal point and exponent)",
    "Float": "a number",
    "bool": "true or false",
}
# Keys of section `eval` that a suite may set.
MEASURED = ("tasks", "benchmarks", "bits_per_byte")


def configs_dir() -> Path:
    """Folder of the shipped recipes, in an installed wheel or in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def _find(given: str, option: str, what: str, folder: Path) -> Path:
    """The path of a recipe or suite: an existing file, else the shipped one of this name."""
    for path in (Path(os.path.expanduser(given)), folder / f"{given}.yaml"):
        if path.is_file():
            return path
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    raise UserError(
        f"{option} {given}: not a file and not a shipped {what}. "
        f"Shipped {what}s: {', '.join(names)}{did_you_mean(given, names)}"
    )


def load(name_or_path: str = DEFAULT_CONFIG, overrides: list[str] | None = None) -> Config:
    """The checked config of a recipe with `key=value` overrides.

    Raises:
        UserError: the file does not exist or is not YAML; a key is unknown; a value is missing, of
            the wrong type or impossible. The message names the key and the file.
    """
    path = _find(name_or_path, "--config", "recipe", configs_dir())
    return resolved(_read_yaml(path), overrides or [], path)


def resolved(recipe: DictConfig | dict[str, Any], overrides: list[str], path: Path) -> Config:
    """The checked config of the values of a file with overrides; raises as `load` does."""
    patches = [(OmegaConf.create(recipe), str(path))]
    patches += [(_parse_override(o), f"override {o!r}") for o in overrides]
    patches = _with_suite(patches)
    merged = copy.deepcopy(defaults())
    for patch, where in patches:
        _merge_into(merged, patch, where=where)
    if not merged.name:
        merged.name = path.stem
    try:
        OmegaConf.resolve(merged)
        config = _typed(merged)
    except OmegaConfBaseException as error:
        why, key = _first_line(error), error.full_key
        if unset := UNSET.search(str(error)):
            how = f"Set it, or give the value with {key}=VALUE."
            if key == "data_root":
                how = (
                    f"Set {unset[1]} to the folder of the data (docs/guides/data.md lists its "
                    "files), or give the folder with data_root=FOLDER."
                )
            why = f"the environment variable {unset[1]} is not set. {how}"
        raise UserError(f"{path}: key '{key}': {why}") from error
    config.data_root = str(Path(config.data_root).expanduser().resolve())

    def refuse(key: str, message: str, *others: str) -> NoReturn:
        keys = (key, *others)
        given = [w for patch, w in patches if any(_given(patch, k) is not None for k in keys)]
        raise UserError(f"{given[-1] if given else path}: {message}")

    check_values(config, refuse)
    return config


def varied(config: Config, overrides: list[str], named: str) -> Config:
    """A checked config with more overrides, which messages call `named`; raises as `load` does."""
    if not overrides:
        return config
    merged: DictConfig = OmegaConf.structured(config)
    for override in overrides:
        _merge_into(merged, _parse_override(override), where=f"{named}: {override!r}")
    found = _typed(merged)

    def refuse(key: str, message: str, *others: str) -> NoReturn:
        raise UserError(f"{named}: {message}")

    check_values(found, refuse)
    return found


def _given(patch: DictConfig, key: str) -> Any:
    """The value of a key in a patch; None if the patch does not set it or the path is broken."""
    try:
        return OmegaConf.select(patch, key, throw_on_resolution_failure=False)
    except OmegaConfBaseException:  # a list or a value on the path: `_merge` refuses it by name
        return None


def _with_suite(patches: list[tuple[DictConfig, str]]) -> list[tuple[DictConfig, str]]:
    """The patches, preceded by that of `eval.suite`.

    A suite named by an override replaces what the recipe measures. A suite named by the recipe is
    the base that the recipe adds to.
    """
    named = [_given(patch, "eval.suite") for patch, _ in patches]
    given = [name for name in named if name is not None]
    if not given or not given[-1]:
        return patches
    recipe = patches[0][0]
    if given[-1] != named[0] and OmegaConf.is_dict(recipe.get("eval")):
        for key in MEASURED:
            recipe.eval.pop(key, None)
    path = _find(str(given[-1]), "eval.suite =", "suite", configs_dir() / "eval")
    suite = _read_yaml(path, "suite")
    if not suite:
        raise UserError(f"{path}: the suite is empty; it must set some of {', '.join(MEASURED)}")
    strangers = [str(key) for key in suite if key not in MEASURED]
    if strangers:
        raise UserError(
            f"{path}: unknown key '{strangers[0]}' in a suite; allowed are {', '.join(MEASURED)}"
        )
    return [(OmegaConf.create({"eval": suite}), str(path)), *patches]


def _read_yaml(path: Path, what: str = "recipe") -> DictConfig:
    try:
        check_limits(path.read_text("utf-8"))
        loaded = OmegaConf.load(path)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    except (OmegaConfBaseException, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not a {what}: {_first_line(error)}") from error
    if not isinstance(loaded, DictConfig):
        raise UserError(f"{path}: a {what} must be a mapping of keys to values, not a list")
    return loaded


def _parse_override(override: str) -> DictConfig:
    key, separator, value = override.partition("=")
    if separator and not value:
        # `stage.name=$UNSET` in a shell script means the empty text, not YAML's null.
        override = f"{key}=''"
    if not separator or not key.strip():
        raise UserError(f"override {override!r}: write it as key=value, for example seed=1")
    try:
        check_limits(value)
        return OmegaConf.from_dotlist([override])
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError) as error:
        why = str(error)
        if "{" in value and re.search(r":[^\s]", value):
            why += "; write a space after the colon between key and value: {set: [...], arm: ntp}"
        raise UserError(
            f"override {override[:80]!r}: the value is not valid YAML, or too large: {why}"
        ) from error


def override_keys(overrides: list[str]) -> list[str]:
    """The full key of every value that overrides set."""
    return [key for override in overrides for key in _keys(_parse_override(override))]


def _keys(patch: Any, prefix: str = "") -> list[str]:
    if not OmegaConf.is_dict(patch):
        return [prefix.removesuffix(".")]
    return [found for key in patch for found in _keys(patch._get_node(key), f"{prefix}{key!s}.")]


@cache
def defaults() -> DictConfig:
    """The schema with its default values, made once; copy it before a change."""
    defaults: DictConfig = OmegaConf.structured(Config)
    return defaults


def _merge_into(merged: DictConfig, patch: DictConfig, where: str) -> None:
    try:
        if missing := sorted(OmegaConf.missing_keys(patch)):
            raise UserError(f"{where}: key '{missing[0]}' has no value (???)")
        _check_keys(patch, merged, where)
        # In place: `OmegaConf.merge` would copy the whole schema for every override.
        merged.merge_with(patch)
    except UserError:
        raise
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        key, why = getattr(error, "full_key", None), _first_line(error)
        if (wrong := WRONG_TYPE.match(why)) and wrong[2] in WANTED:
            why = f"{wrong[1]} is not {WANTED[wrong[2]]}."
        named = f" key '{key}':" if key else ""
        raise UserError(f"{where}:{named} {why}") from error


def _check_keys(patch: DictConfig, base: DictConfig, where: str, prefix: str = "") -> None:
    """Refuse the first key of the patch that the schema lacks or has as another kind of node."""
    typed = OmegaConf.get_type(base)
    key: Any
    for key in patch:
        name = f"{prefix}{key!s}"
        if is_dataclass(typed) and str(key) not in base:
            raise UserError(f"{where}: unknown key '{name}'{hint(name, map(str, base))}")
        node, given = _node(base, key), patch._get_node(key)
        if OmegaConf.is_interpolation(patch, key):
            continue
        if OmegaConf.is_list(node) and not OmegaConf.is_list(given):
            raise UserError(f"{where}: key '{name}' is a list: write it in brackets, {name}=[...]")
        if not OmegaConf.is_dict(node):
            continue
        if OmegaConf.is_dict(given):
            _check_keys(patch[key], node, where, f"{name}.")
        elif is_dataclass(typed) or is_dataclass(OmegaConf.get_type(node)):
            raise UserError(f"{where}: key '{name}' is a section of keys, not one value")


def _node(base: DictConfig, key: Any) -> Any:
    """The schema node of a key; for a missing entry of a table, the node that it would have."""
    kind, node = base._metadata.element_type, base._get_node(key)
    missing_entry = node is None and isinstance(kind, type) and is_dataclass(kind)
    return _entry(kind) if missing_entry else node


_entry = cache(OmegaConf.structured)  # the schema of an entry of a table


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def to_dict(value: Any, only_result: bool = False) -> Any:
    """A config, a section or a value of it as plain dictionaries, lists and scalars."""
    if isinstance(value, dict):
        return {key: to_dict(entry, only_result) for key, entry in value.items()}
    if not is_dataclass(value):
        return value
    kept = [f.name for f in fields(value) if f.metadata["result"] or not only_result]
    return {name: to_dict(getattr(value, name), only_result) for name in kept}


def result_fields(config: Config) -> dict[str, Any]:
    """The part of `to_dict` that can change the result of a stage."""
    found: dict[str, Any] = to_dict(config, only_result=True)
    return found


def from_dict(values: dict[str, Any]) -> Config:
    """Inverse of `to_dict`, for the worker, which reads the resolved config of its stage."""
    return _typed(OmegaConf.merge(defaults(), values))


def _typed(merged: Any) -> Config:
    config = OmegaConf.to_object(merged)
    assert isinstance(config, Config)
    return config
