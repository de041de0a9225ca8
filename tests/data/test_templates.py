"""Templates: what they render, by value, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.data import templates
from pipelines.errors import UserError
from pipelines.recipe.schema import SourceConfig

RECORD: dict[str, Any] = {
    "q": "Which?", "choices": ["red", "blue"], "label": 1, "ok": True, "none": None, "x.y": 2.5,
    "a": [{"b": 1, "values": "own"}, {"b": "two"}], "Best Answer": "B", "answer": "so #### 4 ",
}  # fmt: skip


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ a[0].b }}/{{ a.1.b }}", "1/two"),
        ("{{ q }}\n{{ choices | join('\n') }}\n", "Which?\nred\nblue\n"),
        ("[{{ none }}] {{ ok }} {{ label }}", "[] true 1"),
        ("{{ record['Best Answer'] }} {{ record['x.y'] }}", "B 2.5"),
        ("{{ a[0].values }}", "own"),
        ("{{ choices[label] }} {{ 'AB'[label] }}", "blue B"),
        ("{{ answer.split('####')[1].strip() }}", "4"),
        ("{% for c in choices %}{{ loop.index }}. {{ c }}\n{% endfor %}", "1. red\n2. blue\n"),
        ("{{ missing | default('-') }}{{ q if ok else none }}", "-Which?"),
        (r"\boxed{ {{- label -}} } <b>&", r"\boxed{1} <b>&"),
        ("no field", "no field"),
    ],
)
def test_rendered_text(template: str, text: str) -> None:
    assert templates.render(template, RECORD) == text


def test_rendered_text_is_not_filled_again() -> None:
    assert templates.render("{{ a }}", {"a": "{b} {{ c }}"}) == "{b} {{ c }}"


def test_a_missing_field_is_named_with_those_of_the_record() -> None:
    with pytest.raises(UserError, match=r"'text' is undefined; the record has: a, q"):
        templates.render("{{ text }}", {"q": 1, "a": 2})
    with pytest.raises(UserError, match=r"no attribute 'c'; the record has: a"):
        templates.render("{{ a[0].c }}", {"a": [{"b": 1}]})
    with pytest.raises(UserError, match="'range' is undefined"):
        templates.render("{{ range }}", {"a": 1})


@pytest.mark.parametrize(
    "template",
    [
        "{{ o.values }}", "{{ o['values'] }}", "{{ record.values }}", "{{ q.upper }}",
        "{{ o.values | string }}", "{% if o.items %}x{% endif %}", "{{ 'x' ~ o.keys }}",
    ],
)  # fmt: skip
def test_a_method_is_not_a_field(template: str) -> None:
    record = {"o": {"a": 1}, "q": "text"}
    with pytest.raises(UserError, match=r"has no attribute '\w+'; the record has: o, q"):
        templates.render(template, record)
    assert templates.render("{{ o.values | default('-') }}{{ q.upper() }}", record) == "-TEXT"
    assert templates.render("{{ o.values() | join }}", record) == "1"


@pytest.mark.parametrize("template", ["{q}", "Question: {q}\nAnswer: {a.0.b}"])
def test_single_braces_are_refused_with_the_new_form(template: str) -> None:
    with pytest.raises(UserError, match=r"in two braces: \{\{ q \}\} instead of \{q\}"):
        templates.render(template, RECORD)


def test_a_list_or_an_object_is_no_text() -> None:
    with pytest.raises(UserError, match=r"a list of 2.*field\[0\].*join"):
        templates.render("{{ choices }}", RECORD)
    with pytest.raises(UserError, match=r"an object.*field\.b"):
        templates.render("{{ a[0] }}", RECORD)


@pytest.mark.parametrize(
    "template",
    [
        "{{ q", "{% for c in choices %}", "{{ q | nothing }}", "{{ range(10) }}", "{{ 'x' * 9 }}",
        "{{ 2 ** 9 }}", "{{ '%9d' % 1 }}", "{{ q | center(9) }}", "{{ q.ljust(9) }}",
        "{{ '{:9}'.format(1) }}", "{{ choices | map('center', 9) | join }}", "{% set x = 1 %}",
        "{% macro f() %}{% endmacro %}", "{% include 'x' %}", "{{ ''.__class__ }}",
        "{% for c in choices recursive %}{{ loop(choices) }}{% endfor %}",
        "{% for a in q %}{% for b in q %}{% for c in q %}{% endfor %}{% endfor %}{% endfor %}",
        "{{ q + 1 }}",
    ],
)  # fmt: skip
def test_what_a_template_may_not_do(template: str) -> None:
    with pytest.raises(UserError, match=r"^template "):
        templates.render(template, RECORD)


def test_fields_of_a_rendered_template() -> None:
    template = "Q: {{ q }}\n{% for c in choices %}{{ c }} {% endfor %}{{ ok }}"
    assert templates.rendered_fields(template, RECORD) == ["Which?", "red", "blue", "true"]
    assert templates.rendered_fields("{{ q }}", RECORD) == []


def test_gold_answer_strip_and_pattern() -> None:
    source = SourceConfig(answer="{{ answer }}", answer_pattern=r"#### (.*)", strip=r"<<[^>]*>>")
    assert templates.gold_answer({"answer": "48/2 = <<48/2=24>>24\n#### 1,024 "}, source) == "1,024"
    with pytest.raises(UserError, match="does not match the answer 'none'"):
        templates.gold_answer({"answer": "none"}, source)
