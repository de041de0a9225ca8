"""The process that runs the generated program, and answers the checker's questions about it.

The checker treats everything that this process sends as plain data, because the program has full
control over this process and its memory.
"""

from __future__ import annotations

import builtins
import operator
import os
import sys
import types
from collections.abc import Callable
from functools import partial
from typing import Any

from pipelines.rewards.sandbox import wire

MODULE = "solution"
MUTABLE = (list, dict, set, bytearray)


def run(questions: int, answers: int) -> None:
    """Run the generated program, and answer the checker until it hangs up."""
    close_all_but(questions, answers)
    Program(questions, answers).serve()


class Program:
    """The generated program, and those of its objects that the checker refers to by number."""

    def __init__(self, questions: int, answers: int) -> None:
        self._questions = questions
        self._answers = answers
        self._held: list[Any] = []

    def serve(self) -> None:
        """Run the first message as a program, then answer calls until the checker hangs up."""
        source, names = wire.receive(self._questions)
        wire.send(self._answers, _reply(partial(self._defined, source, names)))
        self._listen()

    def _listen(self) -> Any:
        """Answer requests until a callback returns."""
        while True:
            name, *given = wire.receive(self._questions)
            if name == "return":
                return given
            wire.send(self._answers, _reply(partial(self._answer, name, *given)))

    def _defined(self, source: str, names: list[str]) -> dict[str, Any]:
        """Those of the names that the program defines; exception classes as their builtin bases."""
        module = types.ModuleType(MODULE)
        sys.modules[MODULE] = module
        exec(compile(source, f"{MODULE}.py", "exec"), module.__dict__)
        found = {name: module.__dict__[name] for name in names if name in module.__dict__}
        return {
            name: ["exception", _ancestry(value)]
            if isinstance(value, type) and issubclass(value, Exception)
            else wire.encode(value, self._reference)
            for name, value in found.items()
        }

    def _answer(self, name: str, given: Any, keywords: Any) -> Any:
        """Apply the operator or builtin of that name; also return mutable arguments it changed."""
        operation = getattr(operator, name, None) or getattr(builtins, name)
        arguments = wire.decode(given, self._resolve)
        result = operation(*arguments, **wire.decode(keywords, self._resolve))
        changes = [
            [at, encoded]
            for at, value in enumerate(arguments)
            if type(value) in MUTABLE
            and (encoded := wire.encode(value, self._reference)) != given[1][at]
        ]
        return [wire.encode(result, self._reference), changes]

    def _reference(self, value: Any) -> Any:
        self._held.append(value)
        return ["object", len(self._held) - 1]

    def _resolve(self, given: Any) -> Any:
        tag, number = given
        return self._held[number] if tag == "object" else self._callback(number)

    def _callback(self, number: int) -> Callable[..., Any]:
        """A function of the tests that runs in the checker."""

        def call(*arguments: Any, **keywords: Any) -> Any:
            given = [wire.encode(part, self._reference) for part in (list(arguments), keywords)]
            wire.send(self._answers, ["callback", [number, *given]])
            kind, content = self._listen()
            if kind == "error":
                raise RuntimeError(content)
            return wire.decode(content, self._resolve)

        return call


def _reply(run: Callable[[], Any]) -> Any:
    try:
        return ["value", run()]
    except BaseException as error:
        return ["error", [_ancestry(type(error)), _text(error)]]


def _ancestry(error: type[BaseException]) -> list[str]:
    return [base.__name__ for base in error.__mro__]


def _text(error: BaseException) -> str:
    try:
        return str(error)[:1000]
    except Exception:  # a program's own __str__
        return ""


def close_all_but(*needed: int) -> None:
    """Close all other descriptors, and redirect the standard ones to /dev/null."""
    null = os.open("/dev/null", os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    ordered = sorted({0, 1, 2, *needed})
    for low, high in zip(ordered, [*ordered[1:], 2**16], strict=True):
        os.closerange(low + 1, high)
