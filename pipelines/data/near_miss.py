"""Near misses: worked solutions with a wrong result, the rejected answers of preference pairs."""

from __future__ import annotations

import random
import re
from decimal import Decimal

# A number, with or without thousands separators. Digits in words (x2, 5th), denominators, powers
# and indices are excluded: changing 0/4 to 0/5 would not change the value.
_NUMBER = re.compile(
    r"(?<![\w.,/^])(?<![\^_}]\{)(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?!\w|,\d)"
)
# Text that may follow the final number: no digits, except its denominator or power.
_TAIL = re.compile(r"(?:\s*/\s*|\}\{|\^\{?)?[\d.,]*\D*")
_AFTER_EQUALS = re.compile(r"=\s*[$(]?\s*-?$")


def near_miss(response: str, rng: random.Random) -> str | None:
    """Change the final number of a response and, if it has one, an intermediate result.

    The last number counts as the final result, and a number after an equals sign as an intermediate
    result. The changed value also replaces later occurrences of the old one, as in a real mistake.

    Returns:
        The changed text, whose final number always differs from the right one; None if the response
        has no number, or its last number is ambiguous (`\\frac34`, `72km`).
    """
    found = list(_NUMBER.finditer(response))
    if not found or not _TAIL.fullmatch(response, found[-1].end()):
        return None
    numbers = [match.group() for match in found]
    values = [_value(number) for number in numbers]
    results = [i for i, m in enumerate(found) if _AFTER_EQUALS.search(response, 0, m.start())]
    # The first place of each value that changes, with the number whose form the new one has.
    changes = []
    if intermediates := [i for i in results if values[i] != values[-1]]:
        chosen = rng.choice(intermediates)
        changes.append((chosen, numbers[chosen]))
    first_final = next((i for i in results if values[i] == values[-1]), len(found) - 1)
    changes.append((first_final, numbers[-1]))
    for start, number in changes:
        wrong = _plausible(number, rng)
        for i in range(start, len(found)):
            if values[i] == values[start]:
                numbers[i] = wrong
    rest = iter(numbers)
    return _NUMBER.sub(lambda _: next(rest), response)


def _value(number: str) -> Decimal:
    return Decimal(number.replace(",", ""))


def _plausible(number: str, rng: random.Random) -> str:
    """Pick a different number of the same form: off by one, a wrong digit or a wrong factor."""
    value = _value(number)
    decimals = len(number.partition(".")[2])
    unit = Decimal(1).scaleb(-decimals)
    near = max(Decimal(1), (value / 10).to_integral_value())
    wrong = [value + unit, value - unit, value + near, value - near, value + 10, value - 10]
    wrong += [value * 2, (value / 2).quantize(unit)]
    candidates = sorted({x.quantize(unit) for x in wrong if x >= 0} - {value})
    return f"{rng.choice(candidates):{',' if ',' in number else ''}.{decimals}f}"
