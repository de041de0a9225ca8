"""The first process of a program's PID namespace: runs the tests, and writes the verdict.

The tests come from the benchmark and are trusted. The generated program runs in a child process. A
name that the tests use and the program defines is a `Remote` here: its calls and attributes are
forwarded to the child, and the results return as data. This process therefore compares them with
Python's own `==`, and no `__eq__` of the program takes part in a comparison with data of the tests.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import os
import select
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

from pipelines.machine.process import start_child
from pipelines.rewards.sandbox import solution, wire

Verdict = dict[str, str]


def verdict(child: Child, program: str, tests: str) -> Verdict:
    """Run the tests on what the program defines in the child.

    Returns:
        `status` (passed, failed, timeout, memory or crashed) and a short `reason`.
    """
    try:
        code = compile(tests, "tests.py", "exec")
        names = needed_names(ast.parse(tests))
    except (SyntaxError, ValueError) as error:
        return {"status": "failed", "reason": f"the tests are not valid Python: {error}"}
    try:
        namespace = {"__name__": "tests", **child.load(program, names)}
        exec(code, namespace)
    except wire.WireError as error:
        return child.fate() or {"status": "failed", "reason": str(error)}
    except MemoryError:
        return {"status": "memory", "reason": "out of memory"}
    except BaseException as error:
        return {"status": "failed", "reason": _line(error)}
    return {"status": "passed", "reason": ""}


def needed_names(tests: ast.Module) -> list[str]:
    """Names that the program must define: the tests use them but do not define them.

    A builtin counts only if there is no other such name (MBPP tests a function `sum`), so that a
    program cannot replace the `abs` that tests use for comparison.
    """
    named = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.ExceptHandler)
    used: set[str] = set()
    defined: set[str] = set()
    for node in ast.walk(tests):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else defined).add(node.id)
        elif isinstance(node, named) and node.name:
            defined.add(node.name)
        elif isinstance(node, ast.arg):
            defined.add(node.arg)
        elif isinstance(node, ast.alias):
            defined.add((node.asname or node.name).partition(".")[0])
    free = used - defined
    return sorted({name for name in free if not hasattr(builtins, name)} or free)


class Child:
    """The process of the generated program, and requests to it."""

    def __init__(self) -> None:
        self._hear, answers = os.pipe()
        questions, self._ask = os.pipe()
        self._errors: dict[str, type[Exception]] = {}
        self._lent: list[Callable[..., Any]] = []
        self._pid = start_child(partial(solution.run, questions, answers))
        os.close(answers)
        os.close(questions)
        self._ended = os.pidfd_open(self._pid)

    def load(self, program: str, names: list[str]) -> dict[str, Any]:
        """Run the program, and return those of the names that it defines."""
        defined = self._exchange([program, names])
        if not isinstance(defined, dict):
            raise wire.WireError("no answer to the program")
        # Names that were not requested could replace values that the tests compare with.
        return {name: self._definition(name, defined[name]) for name in names if name in defined}

    def ask(self, name: str, *arguments: Any, **keywords: Any) -> Any:
        """Have the child apply the operator or builtin of that name."""
        given = [wire.encode(part, self._reference) for part in (list(arguments), keywords)]
        said = self._exchange([name, *given])
        try:
            answer, changes = said
            for at, encoded in changes:
                _replace(arguments[at], wire.decode(encoded, self._resolve))
            return wire.decode(answer, self._resolve)
        except (TypeError, ValueError, IndexError) as error:
            raise wire.WireError(f"no answer: {error}") from error

    def fate(self) -> Verdict | None:
        """Why the child has ended; None if it still runs."""
        if not select.select([self._ended], [], [], 0.2)[0]:
            return None
        _, status = os.waitpid(self._pid, 0)
        if os.WIFSIGNALED(status):
            name = signal.Signals(os.WTERMSIG(status)).name
            if name == "SIGXCPU":
                return {"status": "timeout", "reason": "its CPU time is used up"}
            return {"status": "crashed", "reason": f"the program ended by {name}"}
        return {"status": "failed", "reason": f"the program exited ({os.WEXITSTATUS(status)})"}

    def _exchange(self, message: Any) -> Any:
        wire.send(self._ask, message)
        while True:
            # Other processes of the program may keep the pipe open after the first one has ended.
            ready, _, _ = select.select([self._hear, self._ended], [], [])
            if self._hear not in ready:
                raise wire.WireError("the program has ended")
            try:
                kind, content = wire.receive(self._hear)
                if kind == "value":
                    return content
                if kind == "error":
                    ancestry, text = content
                    error = self._error(ancestry, may_stop=message[0] == "next")
                    break
                function = self._lent[content[0]]
                arguments, keywords = [wire.decode(part, self._resolve) for part in content[1:]]
            except (TypeError, ValueError, IndexError) as malformed:
                raise wire.WireError("no answer") from malformed
            self._return(function, arguments, keywords)
        raise error(text)

    def _error(self, ancestry: list[str], may_stop: bool) -> type[Exception]:
        """The nearest exception type known here. Only an iterator may end a loop of the tests."""
        known = (self._errors.get(name) or _builtin(name) for name in ancestry)
        error = next((found for found in known if found), RuntimeError)
        return RuntimeError if issubclass(error, StopIteration) and not may_stop else error

    def _return(self, function: Callable[..., Any], arguments: Any, keywords: Any) -> None:
        """Call a function of the tests for the program."""
        try:
            result = wire.encode(function(*arguments, **keywords), self._reference)
            wire.send(self._ask, ["return", "value", result])
        except wire.WireError:
            raise
        except Exception as error:
            wire.send(self._ask, ["return", "error", _line(error)])

    def _definition(self, name: str, given: Any) -> Any:
        if isinstance(given, list) and given[0] == "exception":
            base = next((found for each in given[1] if (found := _builtin(each))), Exception)
            self._errors[name] = type(name, (base,), {})
            return self._errors[name]
        return wire.decode(given, self._resolve)

    def _resolve(self, given: Any) -> Any:
        if given[0] != "object" or type(given[1]) is not int:
            raise wire.WireError(f"no value: {given[0]!r}")
        return Remote(self, given[1])

    def _reference(self, value: Any) -> Any:
        if isinstance(value, Remote):
            return ["object", object.__getattribute__(value, "_number")]
        if callable(value):
            self._lent.append(value)
            return ["callback", len(self._lent) - 1]
        raise TypeError(f"a test cannot hand a {type(value).__name__} to the program")


class Remote:
    """An object of the generated program, which stays in its process."""

    def __init__(self, child: Child, number: int) -> None:
        object.__setattr__(self, "_child", child)
        object.__setattr__(self, "_number", number)


def _unary(name: str) -> Callable[..., Any]:
    def method(self: Remote, *arguments: Any, **keywords: Any) -> Any:
        return object.__getattribute__(self, "_child").ask(name, self, *arguments, **keywords)

    return method


def _binary(name: str) -> Callable[[Remote, Any], Any]:
    """Compare two objects of the program; the program must not decide comparisons with data."""
    forward = _unary(name)

    def method(self: Remote, other: Any) -> Any:
        return forward(self, other) if isinstance(other, Remote) else NotImplemented

    return method


for _name in ("call", "getattr", "setattr", "delattr", "iter", "next", "len", "getitem", "setitem",
              "delitem", "str", "repr", "hash", "bool", "neg", "abs"):  # fmt: skip
    setattr(Remote, f"__{_name}__", _unary(_name))
for _name in ("eq", "ne", "lt", "le", "gt", "ge", "add", "sub", "mul", "matmul", "truediv",
              "floordiv", "mod", "pow", "and_", "or_", "xor"):  # fmt: skip
    setattr(Remote, f"__{_name.rstrip('_')}__", _binary(_name))


def _builtin(name: Any) -> type[Exception] | None:
    """The builtin exception of that name, if it can be created from a text alone."""
    found = getattr(builtins, name, None) if isinstance(name, str) else None
    if not (isinstance(found, type) and issubclass(found, Exception)):
        return None
    return None if issubclass(found, (UnicodeError, ExceptionGroup)) else found


def _replace(target: Any, value: Any) -> None:
    """Update a list, dict, set or bytearray of the tests with the program's changes to it."""
    if type(target) not in solution.MUTABLE or type(target) is not type(value):
        raise ValueError("an argument changed its type")
    if isinstance(target, (list, bytearray)):
        target[:] = value
    else:
        target.clear()
        target.update(value)


def _line(error: BaseException) -> str:
    text = ""
    with contextlib.suppress(Exception):  # str() of a program's object, which may have ended
        text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300].rstrip(": ")
