"""Classes of tokens by value, for whole words, pieces of words and characters."""

from __future__ import annotations

import re

import pytest

from pipelines.analysis.token_classes import CLASSES, token_classes


def by_word(text: str) -> dict[str, str]:
    """Class by token, for tokens that are a word with the space before it, or one sign."""
    tokens = re.findall(r"\s*\w+|\s*[^\w\s]|\s+", text)
    assert "".join(tokens) == text
    return {t.strip(): c for t, c in zip(tokens, token_classes(tokens), strict=True)}


def test_prose() -> None:
    found = by_word("So Anna has 12 apples, because Ben gave some. Then she ate 3")
    assert found == {
        "So": "connectives", "Anna": "names", "has": "other", "12": "digits", "apples": "other",
        ",": "punctuation", "because": "connectives", "Ben": "names", "gave": "other",
        "some": "other", ".": "punctuation", "Then": "connectives", "she": "other",
        "ate": "other", "3": "digits",
    }  # fmt: skip


@pytest.mark.parametrize("text", ["Paris is", "He left. Paris is", "He left\nParis is", "I said I"])
def test_what_begins_a_sentence_is_no_name(text: str) -> None:
    assert "names" not in by_word(text).values()


@pytest.mark.parametrize(
    "line",
    ["def f(x):", "    total = 0", "return x + 1;", "import numpy as np", "if (a == b) {", "}",
     "for i in range(3):", "const x = 1", "x = np.sum(y)", "print(a.b())", "</div>", "x += 1"],
)  # fmt: skip
def test_lines_of_programs(line: str) -> None:
    found = token_classes([*line])
    assert {kind for kind, sign in zip(found, line, strict=True) if sign.strip()} == {"code"}


@pytest.mark.parametrize(
    "line",
    ["mod 7 3+5=1+2=3 so 3", "The rest is 3 (or 4) = 7; so it goes;", "close ( is ).", "x = 5",
     "She returns home (late).", "if it rains we stay", "most of 22 92 is 92.", "run npkh on 6"],
)  # fmt: skip
def test_lines_that_are_no_programs(line: str) -> None:
    assert "code" not in token_classes([*line])


def test_code_goes_line_by_line() -> None:
    found = by_word("Look here\nrest = f(y)\nand 5")
    assert (found["Look"], found["y"], found["and"], found["5"]) == (
        "other", "code", "connectives", "digits"
    )  # fmt: skip


def test_a_program_is_code_as_a_whole() -> None:
    lines = ["def f(x):", "    # so we add", "    y = [", "        1,", "    ]", "    return y"]
    found = token_classes([*"\n".join(lines)])
    assert found.count("code") == sum(not sign.isspace() for sign in "".join(lines))
    prose = ["So we add 1", "x += 1", "and then", "we", "go on"]
    assert token_classes([*"\n".join(prose)])[0] == "connectives"
    assert token_classes([*"\n".join(prose)]).count("code") == len("x+=1")


def test_a_token_is_of_the_class_of_its_word() -> None:
    text = "a man, therefore Anna 42"
    whole = ["a", " man", ",", " therefore", " Anna", " 42"]
    expected = ["other", "other", "punctuation", "connectives", "names", "digits"]
    assert token_classes(whole) == expected
    pieces = ["a", " m", "an", ",", " there", "fore", " An", "na", " 4", "2"]
    assert token_classes(pieces) == [
        "other", "other", "other", "punctuation", "connectives", "connectives", "names", "names",
        "digits", "digits",
    ]  # fmt: skip
    word_of = [kind for token, kind in zip(whole, expected, strict=True) for _ in token]
    assert token_classes([*text]) == [
        "other" if sign == " " else kind for sign, kind in zip(text, word_of, strict=True)
    ]


def test_most_characters_decide_and_the_first_wins_a_tie() -> None:
    assert token_classes(["a1", "22b", ").", ""]) == ["other", "digits", "punctuation", "other"]


def test_only_the_classes_there_are() -> None:
    text = "So what? 1.5 \u00e9t\u00e9 _x_ [a]\n{b};\n\nEnd \u2014 Zo\u00eb's"
    assert set(token_classes([*text])) <= set(CLASSES)
    assert token_classes([]) == []
