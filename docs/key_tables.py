"""Write the tables of keys into docs/reference/configuration.md: `python docs/key_tables.py`.

Below each heading `### <section>` of the page comes the table of the keys that the section of the
schema declares, with the help texts of the schema. tests/test_docs.py checks that they agree.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reference" / "configuration.md"
HEAD = "| key | type | default | identity | meaning |\n|---|---|---|---|---|\n"


def sections(section: type) -> list[type]:
    """The dataclasses of the schema that the keys of a section lead to, itself among them."""
    found = [parent for parent in reversed(section.__mro__) if is_dataclass(parent)]
    for hint in get_type_hints(section).values():
        for part in (hint, *get_args(hint)):
            if isinstance(part, type) and is_dataclass(part):
                found += sections(part)
    return list(dict.fromkeys(found))


def own_fields(section: type) -> list[Field[Any]]:
    """The fields that a section declares itself or gives another default."""
    return [f for f in fields(section) if f.name in section.__annotations__]


def default_text(field: Field[Any]) -> str:
    """A default as YAML has it."""
    if field.default is MISSING:
        assert not isinstance(field.default_factory, type(MISSING))
        made = field.default_factory()
        return "its section" if is_dataclass(made) else repr(made)
    if isinstance(field.default, str):
        return json.dumps(field.default)
    return str(field.default).lower() if isinstance(field.default, bool) else str(field.default)


def type_text(hint: Any) -> str:
    """A type in words: `one of fp32, bf16`, `list of str`."""
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if get_origin(hint):
        arguments = ", ".join(type_text(argument) for argument in get_args(hint))
        return f"{get_origin(hint).__name__} of {arguments}"
    return str(hint.__name__)


def rows(section: type) -> list[str]:
    """The rows of a section's table: key, type, default, whether it is in the identity, meaning."""
    hints = get_type_hints(section)
    return [
        f"| `{f.name}` | {type_text(hints[f.name])} | `{default_text(f)}` "
        f"| {'yes' if f.metadata['result'] else 'no'} | {f.metadata['help']} |"
        for f in own_fields(section)
    ]


def part_of(page: str, section: type) -> str:
    """What the page has below the heading of a section; empty without one."""
    found = re.search(rf"^### {section.__name__}\b.*?(?=^##|\Z)", page, re.M | re.S)
    return found.group() if found else ""


def with_tables(page: str, all_sections: list[type]) -> str:
    """The page with the tables of these sections; the text above and below a table is kept."""
    for section in all_sections:
        if not (part := part_of(page, section)):
            continue
        found = re.search(r"(?:^\|.*\n)+", part, re.M)
        above, below = (part[: found.start()], part[found.end() :]) if found else (part, "")
        table = HEAD + "\n".join(rows(section)) if rows(section) else ""
        texts = (text.strip("\n") for text in (above, table, below))
        page = page.replace(part, "\n\n".join(text for text in texts if text) + "\n\n")
    return page.rstrip() + "\n"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from pipelines.recipe.schema import Config

    page = PAGE.read_text("utf-8")
    if new := [s.__name__ for s in sections(Config) if rows(s) and not part_of(page, s)]:
        sys.exit(f"{PAGE} has no heading '### {new[0]}': add it where the table belongs.")
    PAGE.write_text(with_tables(page, sections(Config)), "utf-8")
