"""Attacks on the sandbox: none passes, none harms, none stalls the others."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.rewards import sandbox
from pipelines.rewards.sandbox import Limits, Sandbox, check_all

pytestmark = pytest.mark.skipif(bool(sandbox.unavailable()), reason=sandbox.unavailable())
ROOT = Path(__file__).resolve().parents[2]
QUICK = Limits(wall_seconds=2, cpu_seconds=1, memory_bytes=128 * 2**20)
RIGHT = "def f(): return 42"
TESTS = "assert f() == 42"
UNPRIVILEGED = 54321


@pytest.fixture(scope="module")
def cell() -> Iterator[Sandbox]:
    """One server for all tests: it has to survive every attack."""
    with Sandbox() as made:
        yield made
        assert made.check(RIGHT, TESTS).passed


def descendants(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:  # it has just ended
        return []
    return [found for child in map(int, children) for found in (child, *descendants(child))]


def left_over(cell: Sandbox) -> list[int]:
    """Processes that a program left behind, once its keeper had a second to go."""
    for _ in range(50):
        if not descendants(cell.pid):
            return []
        time.sleep(0.02)
    return descendants(cell.pid)


def report(cell: Sandbox, program: str, limits: Limits = QUICK) -> str:
    """What the program's `f` gives back, by the checker's message."""
    outcome = cell.check(program, "raise KeyError(f())", limits)
    assert outcome.reason.startswith("KeyError: "), outcome
    return outcome.reason.removeprefix("KeyError: ")


def test_fifty_harmless_children_meet_the_limit(cell: Sandbox) -> None:
    limited = report(cell, sandbox.CANARY.replace("children", "f"), Limits(processes=8))
    assert limited == "7"
    assert left_over(cell) == []


ATTACKS = {
    "endless loop": ("while True: pass", "timeout"),
    "endless loop in the call": ("def f():\n while True: pass", "timeout"),
    "endless sleep": ("import time\ntime.sleep(1000)", "timeout"),
    "fork bomb": (
        "import os\nwhile True:\n try: os.fork()\n except OSError: pass", "timeout",
    ),
    "thread bomb": (
        "import threading, time\n"
        "while True: threading.Thread(target=time.sleep, args=(99,)).start()", "failed",
    ),
    "memory balloon": ("x = []\nwhile True: x.append(bytearray(2**20))", "memory"),
    "memory balloon in children": (
        "import os\nos.fork(); os.fork()\nx = []\nwhile True: x.append(bytearray(2**20))", None,
    ),
    "balloon as the answer": ("def f():\n while True: yield from [[0] * 10**5]", "failed"),
    "huge answer": ("def f(): return 'x' * 2**26", "failed"),
    "deep answer": ("def f():\n x = []\n for _ in range(10**5): x = [x]\n return x", "failed"),
    "huge output": (
        "import os\nwhile True:\n print('42' * 10**6)\n os.write(2, b'42' * 10**6)", "timeout",
    ),
    "huge file": ("with open('x', 'w') as x:\n while True: x.write('x' * 10**6)", "failed"),
    "many files": ("for i in range(10**5): open(str(i), 'w').close()", "failed"),
    "signals ignored": (
        "import signal, time\n"
        "for s in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:\n"
        " signal.signal(s, signal.SIG_IGN)\n"
        "while True: time.sleep(1)", "timeout",
    ),
    "exit 0": ("import os; os._exit(0)", "failed"),
    "exit 0 in the call": ("def f():\n import os; os._exit(0)", "failed"),
    "sys.exit": ("import sys; sys.exit(0)", "failed"),
    "token and exit": (
        "import os, json\n"
        "said = json.dumps({'status': 'passed', 'reason': ''}).encode() + b'\\n'\n"
        "for d in range(64):\n"
        " for text in (b'42\\n', b'passed\\n', said, len(said).to_bytes(4, 'little') + said):\n"
        "  try: os.write(d, text)\n"
        "  except OSError: pass\n"
        "os._exit(0)", "failed",
    ),
    "patched builtins": (
        "import builtins, operator, json, sys\n"
        "builtins.AssertionError = Warning\n"
        "builtins.compile = builtins.exec = builtins.isinstance = lambda *a: True\n"
        "operator.eq = lambda *a: True\n"
        "json.dumps = lambda *a: '{\"status\": \"passed\", \"reason\": \"\"}'\n"
        "for name, module in list(sys.modules.items()):\n"
        " if 'checker' in name:\n"
        "  module.verdict = lambda *a: {'status': 'passed', 'reason': ''}\n"
        "  module.Remote.__eq__ = module.Child.ask = lambda *a: True\n"
        "def f(): return 41", None,
    ),
    "equal to all": (
        "class Yes(int):\n __eq__ = lambda s, o: True\n __hash__ = int.__hash__\n"
        "def f(): return Yes(0)", "failed",
    ),
    "object equal to all": (
        "class Yes:\n __eq__ = lambda s, o: True\n __ne__ = lambda s, o: False\n"
        "def f(): return Yes()", "failed",
    ),
    "daemons": (
        "import os, time\n"
        "for _ in range(3):\n"
        " if os.fork() == 0:\n"
        "  os.setsid()\n"
        "  if os.fork() == 0: time.sleep(1000)\n"
        "  time.sleep(1000)\n"
        "def f(): return 41", "failed",
    ),
    "daemon that keeps the pipe": (
        "import os, time\nif os.fork() == 0: time.sleep(1000)\nos._exit(0)", "failed",
    ),
    "stopped": ("import os, signal\ndef f(): os.kill(os.getpid(), signal.SIGSTOP)", "timeout"),
    "killed": ("import os, signal\ndef f(): os.kill(os.getpid(), signal.SIGSEGV)", "crashed"),
    "no program": ("def f(:", "failed"),
    "nothing": ("", "failed"),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_attack(cell: Sandbox, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    program, status = ATTACKS[name]
    started = time.monotonic()
    outcome = cell.check(program, TESTS, QUICK)
    assert not outcome.passed and outcome.status == (status or outcome.status), outcome
    assert outcome.reason
    assert time.monotonic() - started < QUICK.wall_seconds + 3
    assert left_over(cell) == []
    assert capfd.readouterr() == ("", "")
    assert cell.check(RIGHT, TESTS, QUICK).passed


@pytest.mark.parametrize("long", ["program", "tests"])
def test_what_is_too_long_to_send_fails_alone(cell: Sandbox, long: str) -> None:
    given = {"program": RIGHT, "tests": TESTS}
    given[long] += "\n#" + "x" * 2**24
    outcome = cell.check(**given, limits=QUICK)
    assert outcome.status == "failed" and "at most 16777216" in outcome.reason
    assert cell.check(RIGHT, TESTS, QUICK).passed


def test_open_files_are_limited(cell: Sandbox) -> None:
    program = """
def f():
    held = []
    try:
        while True: held.append(open('/dev/null'))
    except OSError as error:
        return error.errno, len(held) < 64
"""
    assert report(cell, program) == "(24, True)"


def test_a_program_costs_less_than_two_starts_of_an_interpreter(cell: Sandbox) -> None:
    """The aim, 50 programs a second on two cores, as a ratio that a busy machine leaves alone."""

    def seconds(run: Any) -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    bare = [sys.executable, "-I", "-S", "-c", "pass"]
    ratios = sorted(
        seconds(lambda: cell.check(RIGHT, TESTS)) / seconds(lambda: subprocess.run(bare))
        for _ in range(15)
    )
    assert ratios[len(ratios) // 2] < 2, ratios


def test_attacks_do_not_stall_the_others() -> None:
    bad = [ATTACKS[name][0] for name in ("endless loop", "fork bomb", "daemons", "endless sleep")]
    programs = [p for attack in bad for p in (attack, *[RIGHT] * 5)]
    started = time.monotonic()
    outcomes = check_all([(program, TESTS) for program in programs], QUICK, workers=2)
    assert [o.passed for o in outcomes] == [p == RIGHT for p in programs]
    assert time.monotonic() - started < 15


def test_memory_that_no_limit_counts(cell: Sandbox) -> None:
    """Memory of a descriptor is no part of an address space: each way to it is refused."""
    program = """
import ctypes, os, platform
libc = ctypes.CDLL(None, use_errno=True)
def filled():
    held, size = [], 0
    try:
        while size < 256:
            held.append(os.memfd_create('m'))
            for _ in range(16):
                size += os.write(held[-1], bytes(2**20)) >> 20
    except OSError:
        pass
    return size
def refusal(call):
    ctypes.set_errno(0)
    return call() == -1 and ctypes.get_errno() == 1
def f():
    read, write = os.pipe()
    page = ctypes.create_string_buffer(4096)
    given = (ctypes.c_size_t * 2)(ctypes.addressof(page), 4096)
    calls = (lambda: libc.memfd_create(b'm', 0), lambda: libc.syscall(447, 0),
             lambda: libc.vmsplice(write, given, 1, 0), lambda: libc.shmget(0, 4096, 0o1600),
             lambda: libc.msgget(0, 0o1600))
    return filled(), [refusal(call) for call in calls], os.path.exists('/dev/shm')
"""
    assert report(cell, program) == f"(0, {[True] * 5}, False)"


def test_writing_outside(cell: Sandbox, tmp_path: Path) -> None:
    places = ["/", "/root", "/usr", "/usr/lib", "/etc", "/dev", "/dev/shm", "/var/tmp", "/proc",
              str(ROOT), str(Path.home()), str(tmp_path), sys.prefix, sys.base_prefix + "/lib",
              os.path.dirname(os.__file__)]  # fmt: skip
    program = f"""
import os
def f():
    done = []
    for place in {places}:
        for step in (lambda p: open(p + '/attack', 'w'), lambda p: os.mkdir(p + '/attacks'),
                     lambda p: os.chmod(p, 0o777), lambda p: os.rename(p, p + '2')):
            try:
                step(place)
                done.append(place)
            except OSError:
                pass
    open('mine', 'w').close()
    return done + os.listdir('.')
"""
    assert report(cell, program) == "['mine']"
    assert not any(os.path.exists(f"{place}/attack") for place in places)
    assert report(cell, "import os\ndef f(): return os.listdir('.')") == "[]"


def test_reading_secrets(cell: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text("secret")
    places = ["/etc/passwd", "/etc/shadow", "/etc/hostname", "/proc/self/environ",
              "/proc/1/environ", f"/proc/{os.getpid()}/environ", "/dev/mem", "/dev/vda",
              str(tmp_path / "secret"), str(ROOT / "README.md"), str(Path.home()),
              "/proc/1/root/etc/passwd", "../etc/passwd"]  # fmt: skip
    program = f"""
import os
def f():
    seen = [dict(os.environ)] if os.environ else []
    for place in {places}:
        try:
            seen.append(open(place).read(20))
        except OSError:
            pass
    return seen + sorted(os.listdir('/dev'))
"""
    assert report(cell, program) == "['null']"
    monkeypatch.setenv("REMIT_SECRET", "do-not-tell")
    libc = "import ctypes, os\ndef f():\n libc = ctypes.CDLL(None)\n"
    ask = " libc.getenv.restype = ctypes.c_char_p\n return libc.getenv(b'REMIT_SECRET')"
    with Sandbox() as fresh:
        assert report(fresh, libc + ask) == "None"


def test_the_program_never_holds_the_tests(cell: Sandbox) -> None:
    program = """
import gc, sys
def f():
    needle = ''.join(reversed('stset-eht-fo-rekram'))
    frame, held = sys._getframe(), gc.get_objects()
    while frame:
        held.append(list(frame.f_locals.values()))
        frame = frame.f_back
    texts = (t for o in held if isinstance(o, (list, tuple, set)) for t in o if isinstance(t, str))
    return sum(needle in text for text in texts)
"""
    tests = "marker = 'marker-of-the-tests'\nraise KeyError(f())"
    for _ in range(2):
        # Its own needle is one.
        assert cell.check(program, tests, QUICK).reason == "KeyError: 1"


def test_sockets(cell: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        program = f"""
import socket
def f():
    made = []
    for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK,
                   socket.AF_PACKET, socket.AF_VSOCK):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
            try:
                made.append(socket.socket(family, kind).connect(('127.0.0.1', {listener.getsockname()[1]})))
            except PermissionError:
                pass
    return made
"""  # noqa: E501
        assert report(cell, program) == "[]"
        with pytest.raises(TimeoutError):
            listener.accept()


def test_killing_others(cell: Sandbox) -> None:
    program = f"""
import os, signal
def f():
    for target in (1, -1, os.getppid(), {os.getpid()}, {cell.pid}, {os.getppid()}):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGSTOP, signal.SIGKILL):
            try:
                os.kill(target, number)
            except OSError:
                pass
    return os.getpid(), os.getppid()
"""
    before = cell.pid
    assert report(cell, program) == "(2, 1)"
    assert cell.pid == before and cell.check(RIGHT, TESTS).passed


def test_more_rights_than_given(cell: Sandbox) -> None:
    program = """
import ctypes, os, platform
def f():
    libc = ctypes.CDLL(None)
    clone = 56 if platform.machine() == 'x86_64' else 220
    calls = (lambda: libc.unshare(0x10000000), lambda: libc.mount(b'x', b'/tmp', b'tmpfs', 0, None),
             lambda: libc.shmget(0, 4096, 0o1600), lambda: libc.ptrace(16, 1, 0, 0),
             lambda: libc.setuid(0) - (os.getuid() == 0), lambda: libc.chroot(b'/tmp'),
             lambda: libc.syscall(clone, 0x10000011, 0, 0, 0, 0))
    limits = []
    import resource
    for limit in (resource.RLIMIT_NPROC, resource.RLIMIT_AS, resource.RLIMIT_CPU):
        try:
            resource.setrlimit(limit, (-1, -1))
            limits.append(limit)
        except (OSError, ValueError):
            pass
    return [call() for call in calls], limits, os.getuid()
"""
    uid = os.getuid() or 60700
    assert report(cell, program) == f"([-1, -1, -1, -1, -1, -1, -1], [], {uid})"


def test_a_process_that_speaks_for_the_checker(cell: Sandbox) -> None:
    """It answers with names that it was not asked for: `all` would make a list, which is true."""
    program = """
import json, os
def say(message):
    body = json.dumps(message).encode()
    for d in range(3, 64):
        try: os.write(d, len(body).to_bytes(4, 'little') + body)
        except OSError: pass
say(['value', {'f': ['type', 'int'], 'all': ['type', 'list'], '__builtins__': ['dict', []]}])
while True: pass
"""
    tests = "assert all([f() == 42])"
    assert cell.check(program, tests, QUICK).reason == "AssertionError"
    assert cell.check(program.replace("'int'", "'__loader__'"), tests, QUICK).status == "failed"


LIES = {
    "difference": ("__sub__ = lambda s, o: 0.0", "assert abs(f() - 42) < 1e-6"),
    "order": ("__lt__ = __gt__ = lambda s, o: True", "assert 41 < f() < 43"),
    "containment": ("__contains__ = lambda s, o: True", "assert 42 in f()"),
    "hash": ("__hash__ = lambda s: hash(42)", "assert f() in {42}"),
    "inside": ("", "assert [f()] == [42]"),
    "number": ("__float__ = lambda s: 42.0", "import math\nassert math.isclose(f(), 42)"),
    "end of the loop": (
        "__eq__ = lambda s, o: True\ndef f(): raise StopIteration",
        "assert all(map(lambda x: f() == x, [42]))",
    ),
    "abs": ("__sub__ = lambda s, o: 0.0\ndef abs(x): return 0", "assert abs(f() - 42) < 1e-6"),
    "assertion": ("AssertionError = 1\nAssertionError = ValueError\ndef f(): return 1", TESTS),
}


@pytest.mark.parametrize("name", LIES)
def test_objects_that_lie(cell: Sandbox, name: str) -> None:
    body, tests = LIES[name]
    method, _, rest = body.partition("\n")
    program = f"class Lie:\n __eq__ = lambda s, o: True\n {method}\ndef f(): return Lie()\n{rest}"
    assert cell.check(program, tests, QUICK).status == "failed"


HONEST = {
    "data": (
        "def f(): return [None, True, 2**300, -1j, float('inf'), b'x', {1: (2,)}, {3}, '\\ud800']",
        "assert f() == [None, True, 2**300, -1j, float('inf'), b'x', {1: (2,)}, {3}, '\\ud800']",
    ),
    "classes": (
        "class P:\n def __init__(s, x): s.x = x\n def __eq__(s, o): return s.x == o.x\n"
        " def __add__(s, o): return P(s.x + o.x)",
        "p = P(1)\np.x += 1\nassert p.x == 2 and p + P(1) == P(3) and p != P(3)\n"
        "assert isinstance(p.x, int) and max([p], key=lambda o: o.x) is p",
    ),
    "subclasses of data": (
        "from collections import Counter, namedtuple\nT = namedtuple('T', 'a')\n"
        "def f(): return Counter('aab'), T(1)",
        "from collections import Counter\nassert f() == (Counter('aab'), (1,))",
    ),
    "exceptions": (
        "class Own(KeyError): pass\ndef f(x):\n if x: raise Own('x')\n return 1 / x",
        "for value, kind in ((1, Own), (1, KeyError), (0, ZeroDivisionError)):\n"
        " try: f(value)\n except kind: continue\n assert False",
    ),
    "generators": ("def f(): yield from range(3)", "assert list(f()) == [0, 1, 2]"),
    "arguments changed in place": (
        "def f(x, y): x.sort(); y.add(1)",
        "x, y = [2, 1], set()\nf(x, y)\nassert (x, y) == ([1, 2], {1})",
    ),
    "functions as arguments": (
        "def f(g, x): return [g(a) for a in x]",
        "assert f(lambda a: a + 1, [1]) == [2] and f(str, [1]) == ['1']",
    ),
    "a builtin's name": ("def sum(a, b): return a + b", "assert sum(1, 2) == 3"),
    "main is not run": ("def f(): return 42\nif __name__ == '__main__': f = 0", TESTS),
    "dataclass": (
        "from dataclasses import dataclass\n@dataclass\nclass D:\n x: int\ndef f(): return D(42).x",
        TESTS,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HONEST)
def test_honest_program(cell: Sandbox, name: str) -> None:
    assert cell.check(*HONEST[name]) == sandbox.Outcome("passed")
    assert cell.check("", HONEST[name][1]).status == "failed"


def test_a_server_that_was_killed_is_replaced() -> None:
    with Sandbox() as cell:
        killed = cell.pid
        os.kill(killed, signal.SIGKILL)
        assert cell.check(RIGHT, TESTS).passed and cell.pid != killed


def test_all_ends_with_the_parent() -> None:
    code = """
import os, signal, threading, time
from pathlib import Path
from pipelines.rewards.sandbox import Sandbox
s = Sandbox()
threading.Thread(target=s.check, args=("import time; time.sleep(99)", "f()"), daemon=True).start()
pids = [s.pid]
while len(pids) < 4:
    children = [Path(f"/proc/{p}/task/{p}/children").read_text().split() for p in pids]
    pids = [s.pid, *(int(child) for found in children for child in found)]
print(*pids, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    pids = done.stdout.split()
    assert len(pids) == 4, done.stderr
    deadline = time.monotonic() + 5
    while left := [pid for pid in pids if os.path.exists(f"/proc/{pid}")]:
        assert time.monotonic() < deadline, f"{left} outlived the parent"
        time.sleep(0.02)


@pytest.mark.skipif(os.getuid() != 0 or not os.path.exists("/usr/bin/python3"), reason="needs root")
def test_an_ordinary_user_has_it_too() -> None:
    code = (
        "from pipelines.rewards import sandbox as s\n"
        "assert not s.unavailable(), s.unavailable()\n"
        "program = 'import os\\ndef f(): return os.getuid()'\n"
        f"(outcome,) = s.check_all([(program, 'assert f() == {UNPRIVILEGED}')])\n"
        "assert outcome.passed, outcome"
    )
    done = subprocess.run(
        ["/usr/bin/python3", "-B", "-c", code], user=UNPRIVILEGED, group=UNPRIVILEGED,
        extra_groups=[], cwd="/", env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    if "ModuleNotFoundError" in done.stderr or "Permission" in done.stderr:
        pytest.skip("the checkout cannot be read by other users")
    assert done.returncode == 0, done.stderr


def test_a_kernel_without_user_namespaces_is_refused_by_name(cli_env: dict[str, str]) -> None:
    forbid = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", forbid, "sh", sys.executable, "-m",
         "remit_cli", "flywheel", "--config", "world-tiny", "rlvr.sources.world.reward=code"],
        cwd=ROOT, env=cli_env | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    said: Any = " ".join(done.stderr.split())
    assert "rlvr.sources.world: reward code needs the sandbox" in said
    assert "unshare (new namespaces)" in said
