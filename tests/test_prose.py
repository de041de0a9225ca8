"""User-facing text uses the standard terms: none of the words that the glossary replaces."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])
RECIPES = sorted(ROOT.glob("configs/**/*.yaml"))
SOURCES = sorted(path for top in ("remit_cli", "pipelines") for path in (ROOT / top).rglob("*.py"))
# What to write instead, by the words that are not to be written.
GLOSSARY = {
    r"(?:told|tell|telling) apart": "significantly different, no significant difference",
    r"less (?:NTP|ReMiT|plain|round|the base|`)": "vs, minus",
    r"(?:held|hold|holds|holding) (?:\w+ )?(?:\w+ )?against": "compared with (baseline)",
    r"drawn answers?|answers drawn|draws(?! (?:a|an|the|this|it|sections))": "samples",
    r"anew|done again": "recomputed, repeated, again",
    r"at hand": "available",
    r"(?:is|are) there": "exists, is available",
    # Possession has a noun after it: "the blobs of its own repository".
    r"of (?:its|their|your|one's) own(?= ?(?:$|[.,;:)]| (?:"
    r"and|or|is|are|was|in|with|for|to|that|which|so|from|on|at|by|where|when|as|than)\b))": (
        "separate, custom"
    ),
    r"silent groups?|groups? silent": "zero-variance groups",
    r"reads? (?:[\w-]+ ){0,4}(?:better|worse)": "has lower (higher) bits per byte",
    r"the wheel|wheel turns|way of the model": "the loop runs, how the model moved",
    r"adopt(?:s|ed|ing|ion)?": "import (a checkpoint)",
    r"besides": "also, in addition",
    r"(?<!there )is no (?!longer|more|less)\w+": "is not a, has no",
    r"(?:several|other|all|each|every) machines?": "nodes (of a cluster)",
    r"that knows? (?:more|most|nothing)": "say what it was trained on",
    r"lies this much after": "seed offset",
    r"is won by": "takes precedence",
    r"least set of tokens": "top-p",
    r"as (?:it is|they are) given": "as given on the command line",
    r"can(?:not)? be (?:told|had)": "say what is possible",
    r"ended without a word": "crashed (no exit recorded)",
    r"draw them apart": "report them separately",
    r"wait for each other": "circular reference",
    r"first words of": "entry point of",
    r"what lies beside it": "completion markers",
    r"leaves it alone": "say what continues",
    r"a kill takes": "say what is repeated",
    r"is chance": "say what is random or untrained",
    r"says? (?:it|that) more sharply": "is more sensitive",
    r"nursery": "fork server",
}
FORBIDDEN = {
    re.compile(
        rf"(?<![\w-])(?:{words})(?![\w-])" if words[-1] != "`" else words, re.IGNORECASE
    ): use
    for words, use in GLOSSARY.items()
}


def found_in(text: str) -> list[str]:
    """What the glossary replaces in a text, with some words around and what to write instead."""
    flat = " ".join(text.split())
    return [
        f"'{flat[max(0, match.start() - 40) : match.end() + 30]}': write {use}"
        for pattern, use in FORBIDDEN.items()
        for match in pattern.finditer(flat)
    ]


def yaml_comments(text: str) -> str:
    return "\n".join(re.findall(r"(?:^|\s)#(.*)", text))


def python_prose(text: str) -> str:
    """Comments, docstrings and those string literals that are more than a key or a name."""
    comments = [
        token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT
    ]
    strings = [
        node.value
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value
    ]
    return "\n".join([" ".join(comments), *(f"{string} ." for string in strings)])


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_pages_use_the_standard_terms(page: Path) -> None:
    assert found_in(page.read_text("utf-8")) == []


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.name)
def test_comments_of_recipes_use_the_standard_terms(recipe: Path) -> None:
    assert found_in(yaml_comments(recipe.read_text("utf-8"))) == []


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_code_speaks_in_the_standard_terms(source: Path) -> None:
    assert found_in(python_prose(source.read_text("utf-8"))) == []


def test_what_the_glossary_replaces_is_found() -> None:
    for text in (
        "The two are not told\n apart.", "ReMiT less NTP", "held every arm against NTP", "8 draws",
        "packed anew", "no GPU was at hand", "a folder of its own", "it is no path", "Adopt a base",
        "Arms of your own are named.",
        "several machines", "the group is there",
    ):  # fmt: skip
        assert found_in(text), text
    for text in (
        "There is no GPU.", "It draws the map.", "its own folder", "this machine",
        "it takes less time", "the weights of its own base",
    ):  # fmt: skip
        assert found_in(text) == [], text
    code = '# told apart\nx = {"adopted": 1}\nprint("an adopted base")\n'
    assert len(found_in(python_prose(code))) == 2
    assert found_in(yaml_comments("adopt: 1  # at hand\n")) != []
    assert len(PAGES) > 20 and len(RECIPES) > 5 and len(SOURCES) > 100
