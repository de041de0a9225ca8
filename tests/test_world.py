"""The built-in world: its streams are apart, its answers are right, and they never change."""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import world
from pipelines.world import families
from pipelines.world.rng import Dice

ROOT = Path(__file__).resolve().parent.parent
TEXT = ("pretrain", "mid_train", "heldout_pretrain", "heldout_mid_train")
ENDLESS = tuple(name for name in world.STREAMS if name != "eval")
CONTEXT = 128
SPECIALS = 3


def take(stream: str, seed: int, count: int) -> list[dict[str, str]]:
    """The first `count` records of a stream."""
    return list(itertools.islice(world.records(stream, seed), count))


@cache
def exam() -> tuple[dict[str, str], ...]:
    """The eval stream."""
    return tuple(world.records("eval", 0))


def questions(stream: str, seed: int) -> Iterator[str]:
    """The prompts of a stream, those of its problem documents for a text stream."""
    for record in world.records(stream, seed):
        if "prompt" in record:
            yield record["prompt"]
        elif record["domain"] == "problem":
            yield record["text"].split("\n")[0]


@cache
def asked(stream: str) -> frozenset[str]:
    """The different prompts among the first 50 thousand of a stream (held out: 10 thousand)."""
    # Held-out problems are one in twenty of those drawn, and nothing is trained on them.
    count = 10_000 if stream.startswith("heldout") else 50_000
    return frozenset(itertools.islice(questions(stream, 0), count))


def owner(prompt: str) -> str:
    """The one owner whose range has the bucket of a problem."""
    number = families.bucket(prompt)
    (name,) = (name for name, (low, high) in families.OWNERS.items() if low <= number < high)
    return name


def test_exports() -> None:
    assert len(world.FAMILIES) == len(set(world.FAMILIES)) == 10
    assert world.STREAMS == (
        "pretrain",
        "mid_train",
        "sft",
        "dpo",
        "rlvr",
        "eval",
        "heldout_pretrain",
        "heldout_mid_train",
    )
    assert isinstance(world.WORLD_VERSION, int)
    assert set(world.CONSTANT_ANSWER_ACCURACY) == set(world.FAMILIES)


def test_an_unknown_stream_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(ValueError, match="heldout_mid_train") as caught:
        world.records("exam", 0)
    assert all(name in str(caught.value) for name in world.STREAMS)


FINGERPRINT = """
import hashlib, itertools, json
from pipelines import world
print(json.dumps({s: hashlib.blake2b(json.dumps(list(itertools.islice(world.records(s, 7), 2500)))
      .encode()).hexdigest() for s in world.STREAMS}))
"""


def test_the_same_seed_gives_the_same_records_in_another_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FINGERPRINT],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "12345"},
    )
    here = {
        stream: hashlib.blake2b(json.dumps(take(stream, 7, 2500)).encode()).hexdigest()
        for stream in world.STREAMS
    }
    assert json.loads(done.stdout) == here


@pytest.mark.parametrize("stream", ENDLESS)
def test_another_seed_gives_other_records(stream: str) -> None:
    assert take(stream, 0, 50) != take(stream, 1, 50)


def test_no_two_streams_are_the_same_sequence() -> None:
    first = [json.dumps(take(stream, 0, 20)) for stream in TEXT]
    assert len(set(first)) == len(first)


@pytest.mark.parametrize("stream", world.STREAMS)
def test_alphabet_covers_every_character(stream: str) -> None:
    assert "\n" in world.ALPHABET and len(world.ALPHABET) <= 90
    assert list(world.ALPHABET) == sorted(set(world.ALPHABET))
    for record in take(stream, 3, 5000):
        for key, value in record.items():
            if key not in ("family", "domain"):
                assert set(value) <= set(world.ALPHABET), value


def test_the_alphabet_has_no_character_too_many() -> None:
    seen = set()
    for stream in ("pretrain", "mid_train"):
        for record in take(stream, 0, 5000):
            seen |= set(record["text"])
    assert seen == set(world.ALPHABET)


def test_a_problem_fits_the_context() -> None:
    for record in (*exam(), *take("sft", 0, 5000)):
        assert 0 < len(record["prompt"]) <= 56 and 0 < len(record["response"]) <= 56
        assert len(record["prompt"]) + len(record["response"]) + SPECIALS + 1 <= CONTEXT
        assert "\n" not in record["prompt"] + record["response"]
    for record in take("dpo", 0, 5000):
        assert max(len(record["chosen"]), len(record["rejected"])) <= 56


def test_records_have_the_promised_keys() -> None:
    keys = {
        "sft": {"prompt", "response", "family"},
        "dpo": {"prompt", "chosen", "rejected", "family"},
        "rlvr": {"prompt", "answer", "family"},
        "eval": {"prompt", "answer", "response", "family"},
    }
    for stream in world.STREAMS:
        for record in take(stream, 0, 300):
            assert set(record) == keys.get(stream, {"text", "domain", "family"})
            if "domain" in record:
                assert (record["family"] in world.FAMILIES) == (record["domain"] == "problem")
            else:
                assert record["family"] in world.FAMILIES


def test_eval_is_two_hundred_of_each_family_for_every_seed() -> None:
    assert exam() == tuple(world.records("eval", 1)) == tuple(world.records("eval", 10**9))
    assert Counter(item["family"] for item in exam()) == dict.fromkeys(world.FAMILIES, 200)
    assert len({item["prompt"] for item in exam()}) == 2000


@pytest.mark.parametrize("stream", ENDLESS)
def test_eval_questions_never_occur_elsewhere(stream: str) -> None:
    held = {item["prompt"] for item in exam()}
    assert len(asked(stream)) > (5_000 if stream.startswith("heldout") else 30_000)
    assert not held & asked(stream)


def test_streams_of_different_owners_share_no_question() -> None:
    owners = {
        "sft": "tuning",
        "dpo": "tuning",
        "rlvr": "rlvr",
        "pretrain": "text",
        "mid_train": "text",
        "heldout_pretrain": "heldout",
        "heldout_mid_train": "heldout",
    }
    for left, right in itertools.combinations(ENDLESS, 2):
        if owners[left] != owners[right]:
            assert not asked(left) & asked(right), (left, right)
    for name in ENDLESS:
        assert {owner(prompt) for prompt in asked(name)} == {owners[name]}


def test_every_bucket_has_exactly_one_owner() -> None:
    spans = sorted(families.OWNERS.values())
    assert spans[0][0] == 0 and spans[-1][1] == families.BUCKETS
    assert all(left[1] == right[0] for left, right in itertools.pairwise(spans))
    assert all(low < high for low, high in spans)


@given(st.text())
def test_any_prompt_has_one_bucket_that_does_not_depend_on_the_process(prompt: str) -> None:
    raw = hashlib.blake2b(prompt.encode(errors="surrogatepass"), digest_size=8).digest()
    assert families.bucket(prompt) == int.from_bytes(raw, "big") % families.BUCKETS
    low, high = families.OWNERS[owner(prompt)]
    assert low <= families.bucket(prompt) < high


@pytest.mark.parametrize("family", world.FAMILIES)
def test_a_family_has_thousands_of_problems(family: str) -> None:
    kind, dice = families.TABLE[family], Dice.named(f"space {family}")
    assert len({kind.prompt(kind.draw(dice)) for _ in range(20_000)}) >= 5_000


def test_check_accepts_every_gold_response() -> None:
    for item in exam():
        assert world.check(item["response"], item["answer"])
        assert world.check(item["response"] + "\nsort 31 so 13", item["answer"])
        assert world.check("\n" + item["response"] + " ", item["answer"])
        assert world.check(f"so {item['answer']}", item["answer"])


def test_check_rejects_near_misses_and_accepts_what_was_chosen() -> None:
    for item in take("dpo", 0, 5000):
        answer = item["chosen"].rpartition(" so ")[2]
        assert world.check(item["chosen"], answer)
        assert not world.check(item["rejected"], answer), item
        assert item["rejected"] != item["chosen"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\n",
        "so",
        "so ",
        " so \n",
        "7",
        "also 7",
        "so 77",
        "so 7 so 8",
        "so 8\nso 7",
        "it is 7",
        "so7",
        "so 7.",
        "so 7 7",
    ],
)
def test_check_rejects_what_does_not_end_in_the_answer(text: str) -> None:
    assert not world.check(text, "7")


@given(st.text(), st.text())
def test_check_never_raises(completion: str, answer: str) -> None:
    assert world.check(completion, answer) in (True, False)
    assert not world.check(completion, "")


@given(st.text(alphabet=world.ALPHABET))
def test_check_is_right_only_when_the_answer_is_written(completion: str) -> None:
    assert not world.check(completion, "77") or "so 77" in completion


def test_share_of_problems_in_the_text_streams() -> None:
    for stream, low, high in (("pretrain", 0.08, 0.12), ("mid_train", 0.57, 0.63)):
        size = Counter()
        for record in take(stream, 0, 20_000):
            size[record["domain"]] += len(record["text"])
        assert low <= size["problem"] / size.total() <= high, (stream, size)


@pytest.mark.parametrize("family", world.FAMILIES)
def test_chance_is_the_frequency_of_the_best_constant_answer(family: str) -> None:
    kind, dice = families.TABLE[family], Dice.named(f"chance {family}")
    answers = Counter(kind.solve(kind.draw(dice))[1] for _ in range(20_000))
    best = answers.most_common(1)[0][1] / answers.total()
    assert world.CONSTANT_ANSWER_ACCURACY[family] == pytest.approx(best, abs=0.012)


def test_heldout_text_uses_the_same_families_as_the_stream_it_is_held_out_from() -> None:
    for name in ("pretrain", "mid_train"):
        for stream in (name, f"heldout_{name}"):
            seen = Counter(record["family"] for record in take(stream, 0, 10_000))
            assert set(seen) == {"", *world.FAMILIES}


# Solvers that share no code with the world: they read the prompt alone.

WEEK = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]


def solve_modular(words: list[str]) -> str:
    """`add 7 5 9 mod 10`"""
    return str(sum(map(int, words[1:-2])) % int(words[-1]))


def solve_weekday(words: list[str]) -> str:
    """`add tue 3 2 days`"""
    return WEEK[(WEEK.index(words[1]) + sum(map(int, words[2:-1]))) % 7]


def solve_maximum(words: list[str]) -> str:
    """`most of 41 72 29`"""
    return str(max(map(int, words[2:])))


def solve_sorting(words: list[str]) -> str:
    """`sort 5281`"""
    return "".join(digit * words[1].count(digit) for digit in "0123456789")


def solve_reversal(words: list[str]) -> str:
    """`reverse dfab`"""
    return "".join(reversed(words[1]))


def solve_counting(words: list[str]) -> str:
    """`count vowels in kaeb`"""
    return str(sum(words[3].count(vowel) for vowel in "aeiou"))


def solve_lookup(words: list[str]) -> str:
    """`look up c in ac cb b7`"""
    at = words[2]
    while at.isalpha():
        at = next(pair[1] for pair in words[4:] if pair[0] == at)
    return at


def solve_boolean(words: list[str]) -> str:
    """`and a10 d11 b01`: and needs two ones, or needs one at least, xor exactly one."""
    wanted = {"and": (2,), "or": (1, 2), "xor": (1,)}[words[0]]
    return "".join(item[0] for item in words[1:] if item.count("1") in wanted)


def solve_brackets(words: list[str]) -> str:
    """`close ([]<`"""
    text, size = words[1], 0
    while size != len(text):
        size = len(text)
        text = text.replace("()", "").replace("[]", "").replace("<>", "")
    return text[::-1].translate(str.maketrans("([<", ")]>"))


def solve_tracing(words: list[str]) -> str:
    """`run itdi on 4`"""
    rows = {
        "i": "1234567890", "d": "9012345678", "p": "3456789012", "m": "7890123456",
        "h": "5678901234", "n": "9876543210", "r": "0987654321", "t": "0246802468",
        "k": "0369258147", "s": "0149656941",
    }  # fmt: skip
    value = words[3]
    for name in words[1]:
        value = rows[name][int(value)]
    return value


@pytest.mark.parametrize("family", world.FAMILIES)
def test_answers_agree_with_an_independent_solver(family: str) -> None:
    solver = globals()[f"solve_{family}"]
    rows = [item for item in (*exam(), *take("rlvr", 0, 3000)) if item["family"] == family]
    assert len(rows) > 400
    for item in rows:
        assert solver(item["prompt"].split()) == item["answer"], item


def steps_of(family: str) -> Iterator[tuple[str, str, str]]:
    """(prompt, steps, answer) of the eval questions of a family."""
    for item in exam():
        if item["family"] == family:
            yield item["prompt"], item["response"].rpartition(" so ")[0], item["answer"]


def test_steps_of_sums_are_true_one_by_one() -> None:
    for prompt, steps, answer in steps_of("modular"):
        base = int(prompt.split()[-1])
        first, *rest = steps.split("+")
        total = int(first)
        for part in rest:
            digit, result = map(int, part.split("="))
            assert (total + digit - result) % base == 0 and 0 <= result < base
            total = result
        assert str(total) == answer
        assert [first, *(part[0] for part in rest)] == prompt.split()[1:-2]


def test_steps_through_the_week_are_true_one_by_one() -> None:
    for _, steps, answer in steps_of("weekday"):
        day, *rest = steps.split("+")
        for part in rest:
            move, result = part.split("=")
            assert (WEEK * 3)[WEEK.index(day) + int(move)] == result
            day = result
        assert day == answer


def test_steps_of_traces_hold_the_program() -> None:
    for prompt, steps, answer in steps_of("tracing"):
        _, program, _, start = prompt.split()
        assert steps[0] == start and steps[1::2] == program and steps[-1] == answer


def test_steps_of_lists_hold_the_list() -> None:
    for prompt, steps, answer in steps_of("counting"):
        assert steps == "none" or len(steps) == int(answer)
        rest = iter(prompt.split()[-1])
        assert steps == "none" or all(item in rest for item in steps)
    for family in ("sorting", "reversal"):
        for _, steps, answer in steps_of(family):
            assert steps.replace(" ", "") == answer
    for prompt, steps, answer in steps_of("maximum"):
        best = steps.split()
        assert best == sorted(best) and best[-1] == answer
        assert set(best) <= set(prompt.split()[2:])


def test_steps_of_lookups_follow_pairs_of_the_prompt() -> None:
    for prompt, steps, answer in steps_of("lookup"):
        pairs = prompt.split()[4:]
        assert all(a + b in pairs for a, b in itertools.pairwise(steps))
        assert steps[0] == prompt.split()[2] and steps[-1] == answer


def test_steps_of_brackets_take_out_one_pair_at_a_time() -> None:
    for prompt, steps, _ in steps_of("brackets"):
        states = [prompt.split()[1], *steps.split()]
        for before, after in itertools.pairwise(states):
            cuts = [i for i in range(len(before) - 1) if before[i : i + 2] in ("()", "[]", "<>")]
            assert after == before[: cuts[0]] + before[cuts[0] + 2 :]
        assert set(states[-1]) <= set("([<")
