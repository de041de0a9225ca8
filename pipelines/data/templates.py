"""Templates: how a record of any shape becomes the text of a prompt, an answer or a document.

`{question}` or `{instances.0.input}` names a field of the record; `{{` and `}}` stand for a brace.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from pipelines.errors import UserError
from pipelines.recipe.schema import SourceConfig

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_MISSING = object()


@lru_cache(maxsize=1024)
def parse(template: str) -> tuple[tuple[str, bool], ...]:
    """Split a template into (text, is_field) pieces.

    Raises:
        UserError: a single brace, or an empty field name.
    """
    pieces: list[tuple[str, bool]] = []
    end = 0
    for match in _PIECE.finditer(template):
        pieces.append((template[end : match.start()], False))
        end = match.end()
        found = match.group()
        if found in ("{{", "}}"):
            pieces.append((found[0], False))
        elif match.group(1):
            pieces.append((match.group(1), True))
        else:
            raise UserError(
                f"template {template!r}: '{found}' at character {match.start()} names no field; "
                "write {field}, or {{ and }} for braces"
            )
    pieces.append((template[end:], False))
    return tuple(piece for piece in pieces if piece[0])


def render(template: str, record: Mapping[str, Any]) -> str:
    """Fill a template with the fields of one record; a null field gives no text.

    Raises:
        UserError: the record lacks a field, or the field is a list or an object.
    """
    return "".join(
        [
            _field_text(text, template, record) if is_field else text
            for text, is_field in parse(template)
        ]
    )


def _field_text(path: str, template: str, record: Mapping[str, Any]) -> str:
    value = lookup(path, record)
    if value is _MISSING:
        raise UserError(
            f"template {template!r}: the record has no field '{path}'; "
            f"it has: {', '.join(sorted(map(str, record)))}"
        )
    if isinstance(value, (list, tuple, dict)):
        kind = "an object" if isinstance(value, dict) else f"a list of {len(value)}"
        inside = next(iter(value), "key") if isinstance(value, dict) else 0
        raise UserError(
            f"template {template!r}: field '{path}' is {kind}; "
            f"name an element of it, for instance {{{path}.{inside}}}"
        )
    return as_text(value)


def lookup(path: str, record: Any) -> Any:
    """The value at a dotted path, or a private marker when there is none."""
    if isinstance(record, dict) and path in record:
        return record[path]
    head, dot, rest = path.partition(".")
    if isinstance(record, dict) and head in record:
        below = record[head]
    elif isinstance(record, (list, tuple)) and head.isdecimal() and int(head) < len(record):
        below = record[int(head)]
    else:
        return _MISSING
    return lookup(rest, below) if dot else below


def as_text(value: Any) -> str:
    """A scalar as a template shows it: JSON's true and false, nothing for null."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def matches(record: Mapping[str, Any], where: Mapping[str, str]) -> bool:
    """Whether every named field of the record shows the wanted text."""
    for path, wanted in where.items():
        value = lookup(path, record)
        # OmegaConf writes a YAML true into a string field as "True".
        wanted = wanted.lower() if isinstance(value, bool) else wanted
        if value is _MISSING or isinstance(value, (list, dict)) or as_text(value) != wanted:
            return False
    return True


@lru_cache(maxsize=256)
def pattern(expression: str, where: str) -> re.Pattern[str]:
    """Compile a regular expression of the configuration; `where` names its key.

    Raises:
        UserError: not a regular expression.
    """
    try:
        return re.compile(expression)
    except re.error as error:
        raise UserError(f"{where}: {expression!r} is no regular expression: {error}") from error


def source_text(template: str, record: Mapping[str, Any], source: SourceConfig) -> str:
    """A rendered template with everything removed that the source's `strip` matches."""
    text = render(template, record)
    return pattern(source.strip, "strip").sub("", text) if source.strip else text


def gold_answer(record: Mapping[str, Any], source: SourceConfig) -> str:
    """The right answer that a reward compares with: template, then `strip`, then the pattern.

    Raises:
        UserError: a missing field, or `answer_pattern` does not match; names the record.
    """
    text = source_text(source.answer, record, source)
    if not source.answer_pattern:
        return text.strip()
    match = pattern(source.answer_pattern, "answer_pattern").search(text)
    if match is None or not match.groups():
        reason = "has no group" if match else f"does not match the answer {_shorten(text)!r}"
        raise UserError(
            f"answer_pattern {source.answer_pattern!r} {reason} "
            f"of the record {_shorten(str(dict(record)))}"
        )
    return (match.group(1) or "").strip()


def _shorten(text: str, length: int = 200) -> str:
    return text if len(text) <= length else text[: length // 2] + " ... " + text[-length // 2 :]
