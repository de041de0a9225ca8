"""Templates: how a record of any shape becomes the text of a prompt, an answer or a document.

A template is sandboxed Jinja2, as in chat templates and in lm-evaluation-harness: `{{ question }}`,
`{{ messages[0].content }}`, `{{ choices | join('\\n') }}`; `record` is the whole record. It has no
functions and no arithmetic that could make a short template run or grow without end: see `_check`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, UndefinedError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pipelines.errors import UserError
from pipelines.recipe.schema import SourceConfig

_MISSING = object()
_CALLED = "()"  # ends the name of a method that the template calls
# A field as str.format writes it, which Jinja would take for text.
_SINGLE_BRACES = re.compile(r"\{(\w[^{}]*)\}")
_FILTERS = (
    "abs", "capitalize", "count", "d", "default", "first", "float", "int", "items", "join",
    "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "replace",
    "reverse", "select", "selectattr", "sort", "string", "sum", "title", "trim", "unique",
    "upper",
)  # fmt: skip
_METHODS = frozenset((
    "capitalize", "count", "endswith", "find", "get", "index", "items", "keys", "lower", "lstrip",
    "removeprefix", "removesuffix", "replace", "rsplit", "rstrip", "split", "splitlines",
    "startswith", "strip", "title", "upper", "values",
))  # fmt: skip
_ALLOWED = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.For, nodes.CondExpr,
    nodes.Name, nodes.Getattr, nodes.Getitem, nodes.Slice, nodes.Filter, nodes.Test, nodes.Keyword,
    nodes.Const, nodes.List, nodes.Tuple, nodes.Dict, nodes.Pair, nodes.Compare, nodes.Operand,
    nodes.And, nodes.Or, nodes.Not, nodes.Neg, nodes.Add, nodes.Sub, nodes.Concat,
)  # fmt: skip


class _Environment(ImmutableSandboxedEnvironment):
    def getattr(self, obj: Any, attribute: str) -> Any:
        """A key of an object goes before a method of that name, such as `values`."""
        name = attribute.removesuffix(_CALLED)
        if name != attribute and not (isinstance(obj, dict) and name in obj):
            return super().getattr(obj, name)
        return self.getitem(obj, name)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """A method that the template does not call is an undefined field."""
        found = super().getitem(obj, argument)
        return self.undefined(obj=obj, name=argument) if callable(found) else found


class _Field(str):
    """The text of a field, so that it can be found among the pieces of a rendered template."""

    def __str__(self) -> str:
        return self


def _as_text(value: Any) -> str:
    """A scalar as a template shows it: JSON's true and false, nothing for null."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple, dict)):
        kind = "an object" if isinstance(value, dict) else f"a list of {len(value)}"
        inside = f".{next(iter(value), 'key')}" if isinstance(value, dict) else "[0]"
        raise UserError(
            f"a field is {kind}; name an element of it, for instance {{{{ field{inside} }}}}, "
            "or join it: {{ field | join('\\n') }}"
        )
    return "" if value is None else str(value)


_ENVIRONMENT = _Environment(
    undefined=StrictUndefined,
    keep_trailing_newline=True,
    finalize=lambda value: _Field(_as_text(value)),
)
_ENVIRONMENT.globals.clear()  # no range, and no global in place of a missing field
_ENVIRONMENT.filters = {name: _ENVIRONMENT.filters[name] for name in _FILTERS}


@lru_cache(maxsize=1024)
def compiled(template: str) -> Template:
    """A template, compiled once; UserError if it is not one, or has more than `_check` allows."""
    try:
        _check(parsed := _ENVIRONMENT.parse(template))
        for call in parsed.find_all(nodes.Call):
            assert isinstance(call.node, nodes.Getattr)
            call.node.attr += _CALLED
        return _ENVIRONMENT.from_string(parsed)
    except (TemplateError, UserError) as error:
        raise UserError(f"template {template!r}: {error}") from error


def _check(parsed: nodes.Template) -> None:
    """Refuse what could make the work more than a power of the record's size, and single braces."""
    for node in parsed.find_all(nodes.Node):
        if isinstance(node, nodes.Call):
            if not (isinstance(node.node, nodes.Getattr) and node.node.attr in _METHODS):
                raise UserError(f"a template can call {', '.join(sorted(_METHODS))} alone")
        elif not isinstance(node, _ALLOWED):
            what = type(node).__name__.lower()
            raise UserError(
                f"line {node.lineno}: a template has fields, filters, if and for, but no {what}"
            )
    if _loops(parsed) > 2:
        raise UserError("loops are nested more than 2 deep")
    texts = [node.data for node in parsed.find_all(nodes.TemplateData)]
    if not parsed.find(nodes.Name) and (old := _SINGLE_BRACES.search("".join(texts))):
        raise UserError(
            f"write a field in two braces: {{{{ {old[1].strip()} }}}} instead of {old[0]}"
        )


def _loops(node: nodes.Node) -> int:
    below = max(map(_loops, node.iter_child_nodes()), default=0)
    return below + isinstance(node, nodes.For)


def render(template: str, record: Mapping[str, Any]) -> str:
    """Fill a template with the fields of one record; a null field gives no text.

    Raises:
        UserError: the record lacks a field, a field is a list or an object, or an expression does
            not fit its values.
    """
    return "".join(_pieces(template, record))


def rendered_fields(template: str, record: Mapping[str, Any]) -> list[str]:
    """The text of each `{{ ... }}` of a template; empty where the template is one field alone."""
    pieces = _pieces(template, record)
    return [piece for piece in pieces if isinstance(piece, _Field)] if len(pieces) > 1 else []


def _pieces(template: str, record: Mapping[str, Any]) -> list[str]:
    made = compiled(template)
    context = made.new_context({"record": record, **record}, shared=True)
    try:
        return list(made.root_render_func(context))
    except UndefinedError as error:
        raise UserError(
            f"template {template!r}: {error}; the record has: {', '.join(sorted(map(str, record)))}"
        ) from error
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise UserError(f"template {template!r}: {error}") from error


def _lookup(path: str, record: Any) -> Any:
    """The value at a dotted path, or `_MISSING`."""
    if isinstance(record, (list, tuple)):
        record = {str(i): value for i, value in enumerate(record)}
    if not isinstance(record, dict):
        return _MISSING
    if path in record:
        return record[path]
    head, _, rest = path.partition(".")
    return _lookup(rest, record[head]) if head in record else _MISSING


def matches(record: Mapping[str, Any], where: Mapping[str, str]) -> bool:
    """Whether every named field of the record shows the wanted text."""
    for path, wanted in where.items():
        value = _lookup(path, record)
        # OmegaConf writes a YAML true into a string field as "True".
        wanted = wanted.lower() if isinstance(value, bool) else wanted
        if value is _MISSING or isinstance(value, (list, dict)) or _as_text(value) != wanted:
            return False
    return True


@lru_cache(maxsize=256)
def pattern(expression: str, key: str) -> re.Pattern[str]:
    """Compile the regular expression of a key of the configuration.

    Raises:
        UserError: not a regular expression, or an `answer_pattern` without a group.
    """
    try:
        made = re.compile(expression)
    except re.error as error:
        raise UserError(f"{key}: {expression!r} is not a regular expression: {error}") from error
    if key == "answer_pattern" and not made.groups:
        raise UserError(
            f"{key} {expression!r} has no group. Put the part that matches the answer in ( )."
        )
    return made


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
    if match is None:
        raise UserError(
            f"answer_pattern {source.answer_pattern!r} does not match the answer "
            f"{_shorten(text)!r} of the record {_shorten(str(dict(record)))}"
        )
    return (match.group(1) or "").strip()


def filled(part: str, record: Mapping[str, Any], source: SourceConfig) -> str:
    """The text of a source's template of this name; for `answer`, the gold answer.

    Raises as `render` and `gold_answer`, and UserError if it is empty.
    """
    if part == "answer":
        text, part = gold_answer(record, source), "gold answer"
    else:
        text = source_text(getattr(source, part), record, source).strip()
    if not text:
        raise UserError(f"the {part} is empty")
    return text


def _shorten(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:100]} ... {text[-100:]}"
