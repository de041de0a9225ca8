"""Namespaces, a separate root, limits and a system call filter for generated programs (Linux).

`enclose` moves the server once into new namespaces, with a root filesystem that contains only the
interpreter's libraries. `isolate` gives each program new PID, mount, network and IPC namespaces,
and `confine` removes its remaining rights.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
import sysconfig
from functools import partial
from pathlib import Path

from pipelines.machine.process import start_child

# The uid of programs if started as root; it is in a range that systemd leaves unused.
UNPRIVILEGED_ID = 60700
WORK = "/tmp"  # of the sandbox
_ROOT = "/root"

_CLONE_NEWNS, _CLONE_NEWCGROUP, _CLONE_NEWUTS = 0x00020000, 0x02000000, 0x04000000
_CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWPID = 0x08000000, 0x10000000, 0x20000000
_CLONE_NEWNET = 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 0x2, 0x4, 0x8
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
_MNT_DETACH = 2
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_OPEN_TREE_CLONE, _MOVE_FROM_DESCRIPTOR = 1, 4
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 0x1, 0x2, 0x4
_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 4, 22, 24, 38
_CAPABILITY_VERSION_3 = 0x20080522
_RLIMIT_MSGQUEUE = 12

# Numbers above 423 are the same on every architecture.
_IO_URING_SETUP, _OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR, _MEMFD_SECRET = 425, 428, 429, 442, 447
# Machine type -> (AUDIT_ARCH, capset, pivot_root, refused calls). Refused are sockets, since
# network namespaces do not cover every family; memory that no rlimit counts; and calls that
# benchmark programs do not need and in which kernels have had vulnerabilities.
_MACHINES: dict[str, tuple[int, int, int, tuple[int, ...]]] = {
    # socket; shmget, semget, msgget, mq_open, memfd_create, vmsplice (a pipe keeps whole huge pages
    # that the program has given back); ptrace, process_vm_readv, process_vm_writev, kcmp;
    # mount, umount2, unshare, setns; add_key, request_key, keyctl; perf_event_open, bpf,
    # userfaultfd, open_by_handle_at
    "x86_64": (0xC000003E, 126, 155, (
        41, 29, 64, 68, 240, 319, 278, 101, 310, 311, 312, 165, 166, 272, 308, 248, 249, 250, 298,
        321, 323, 304,
    )),
    "aarch64": (0xC00000B7, 91, 41, (
        198, 194, 190, 186, 180, 279, 75, 117, 270, 271, 272, 40, 39, 97, 268, 217, 218, 219, 241,
        280, 282, 265,
    )),
}  # fmt: skip

_libc = ctypes.CDLL(None, use_errno=True)


def enclose() -> None:
    """Move the server into its jail, before it accepts a program; it must have only one thread.

    If started as root, it becomes `UNPRIVILEGED_ID`, because RLIMIT_NPROC does not apply to root.
    An OSError names the step that the kernel or its configuration does not allow.
    """
    if platform.machine() not in _MACHINES:
        raise OSError(f"no system call filter for machine type {platform.machine()}")
    # If memory runs out, the kernel should kill a generated program rather than the training.
    Path("/proc/self/oom_score_adj").write_text("1000")
    is_root = os.geteuid() == 0 and _is_mapped(UNPRIVILEGED_ID)
    _enter_user_namespace(is_root)
    # Open the trees now: the interpreter may be in a private home that only this user can read.
    paths = (*_libraries(), "/dev/null")
    trees = {path: -1 if os.path.islink(path) else _open_tree(path) for path in paths}
    if is_root:
        os.setgroups([])
        os.setresgid(UNPRIVILEGED_ID, UNPRIVILEGED_ID, UNPRIVILEGED_ID)
        os.setresuid(UNPRIVILEGED_ID, UNPRIVILEGED_ID, UNPRIVILEGED_ID)
    _build_root(trees)
    capability = 0
    while _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:
        capability += 1


def isolate(file_bytes: int) -> None:
    """Create new namespaces for one program; this process's next child is its first process.

    Its working folder holds `file_bytes` at most.
    """
    _unshare(_CLONE_NEWNS | _CLONE_NEWPID | _CLONE_NEWNET | _CLONE_NEWIPC)
    _mount_tmpfs(WORK, f"size={file_bytes},nr_inodes=1024,mode=700")


def confine(
    *, memory_bytes: int, cpu_seconds: int, processes: int, file_bytes: int, open_files: int
) -> None:
    """Restrict this process and all its children permanently.

    Other processes cannot read its memory or descriptors. It has no capabilities and cannot gain
    any. It cannot make the system calls that `_MACHINES` lists, and its resources are limited.
    """
    os.chdir(WORK)
    most = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_NPROC: processes,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_NOFILE: open_files,
        resource.RLIMIT_CORE: 0,
        _RLIMIT_MSGQUEUE: 0,
    }
    for limit, value in most.items():
        resource.setrlimit(limit, (value, value))
    # The soft limit sends SIGXCPU, which names the cause; the hard limit sends SIGKILL.
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
    _drop_capabilities()
    _prctl(_PR_SET_DUMPABLE, 0)
    _filter_calls()


def _libraries() -> list[str]:
    """The folders of shared libraries and of the interpreter's standard library."""
    stdlib = [os.path.dirname(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")]
    found: list[str] = []
    for path in ("/usr/lib", "/usr/lib64", "/lib", "/lib64", *stdlib):
        if os.path.isdir(path) and not any(f"{path}/".startswith(f"{at}/") for at in found):
            found.append(path)
    return found


def _is_mapped(uid: int) -> bool:
    """Whether the uid is mapped here; a container may map only one uid, with few rights."""
    lines = Path("/proc/self/uid_map").read_text().splitlines()
    ranges = [map(int, line.split()) for line in lines]
    return any(first <= uid < first + count for first, _, count in ranges)


def _enter_user_namespace(is_root: bool) -> None:
    flags = (
        _CLONE_NEWUSER | _CLONE_NEWNS | _CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWUTS
        | _CLONE_NEWCGROUP
    )  # fmt: skip
    if not is_root:
        uid, gid = os.geteuid(), os.getegid()
        _unshare(flags)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
        return
    # Only a process outside the namespace may map a uid other than its own.
    gone, tell = os.pipe()
    outside = start_child(partial(_map_ids, os.getpid(), gone, tell))
    _unshare(flags)
    os.close(tell)
    os.close(gone)
    if os.waitpid(outside, 0)[1]:
        raise OSError(f"uid {UNPRIVILEGED_ID} cannot be mapped into a user namespace")


def _map_ids(pid: int, gone: int, tell: int) -> None:
    """Map the uid and gid of another process once it has closed its end of the pipe."""
    os.close(tell)
    os.read(gone, 1)
    for name in ("uid_map", "gid_map"):
        Path(f"/proc/{pid}/{name}").write_text(f"{UNPRIVILEGED_ID} {UNPRIVILEGED_ID} 1")


def _build_root(trees: dict[str, int]) -> None:
    """Create a root with the trees, read-only, and an empty working folder; enter it.

    `trees` maps a path in the root to the descriptor of a detached mount, or -1 (a symbolic link).
    """
    _call(_libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None), "private mounts")
    _mount_tmpfs(WORK, "size=1m,nr_inodes=1024,mode=755")
    root = Path(WORK + _ROOT)
    for path, tree in trees.items():
        target = Path(f"{root}{path}")
        target.parent.mkdir(parents=True, exist_ok=True)
        if tree == -1:
            # Its target is also in the list, or holds nothing that is needed.
            target.symlink_to(os.readlink(path))
            continue
        is_device = path == "/dev/null"
        if is_device:
            target.touch()
        else:
            target.mkdir()
        to = (_AT_FDCWD, str(target).encode(), _MOVE_FROM_DESCRIPTOR)
        _call(_libc.syscall(_MOVE_MOUNT, tree, b"", *to), f"move_mount to {target}")
        os.close(tree)
        _make_read_only(str(target), devices=is_device)
    (root / WORK.lstrip("/")).mkdir()
    _make_read_only(WORK, devices=False, recursive=False)
    os.chdir(WORK)
    pivot = _MACHINES[platform.machine()][2]
    _call(_libc.syscall(pivot, b".", b"."), "pivot_root")
    _call(_libc.umount2(b".", _MNT_DETACH), "umount of the old root")
    # After a chroot, the kernel does not allow new user namespaces, where a program would be root.
    os.chroot(_ROOT)
    os.chdir("/")


def _call(result: int, step: str) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{step}: {os.strerror(number)}")
    return result


def _unshare(flags: int) -> None:
    _call(_libc.unshare(flags), "unshare (new namespaces)")


def _prctl(option: int, first: int, second: object = 0) -> None:
    _call(_libc.prctl(option, first, second, 0, 0), f"prctl {option}")


def _mount_tmpfs(target: str, options: str) -> None:
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    done = _libc.mount(b"tmpfs", target.encode(), b"tmpfs", flags, options.encode())
    _call(done, f"mount of a tmpfs on {target}")


def _open_tree(path: str) -> int:
    flags = _OPEN_TREE_CLONE | _AT_RECURSIVE | os.O_CLOEXEC
    return _call(_libc.syscall(_OPEN_TREE, _AT_FDCWD, path.encode(), flags), f"open_tree {path}")


def _make_read_only(target: str, *, devices: bool, recursive: bool = True) -> None:
    wanted = _ATTR_RDONLY | _ATTR_NOSUID | (0 if devices else _ATTR_NODEV)
    attributes = struct.pack("=QQQQ", wanted, 0, 0, 0)
    at = (_AT_FDCWD, target.encode(), _AT_RECURSIVE if recursive else 0)
    done = _libc.syscall(_MOUNT_SETATTR, *at, attributes, len(attributes))
    _call(done, f"mount_setattr of {target}")


def _drop_capabilities() -> None:
    capset = _MACHINES[platform.machine()][1]
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _call(_libc.syscall(capset, header, struct.pack("=6I", *[0] * 6)), "capset")
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


class _Program(ctypes.Structure):
    """struct sock_fprog: a classic BPF program."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def _filter_calls() -> None:
    """Refuse the listed system calls with EPERM; kill a process that uses another ABI."""
    architecture, _, _, own = _MACHINES[platform.machine()]
    refused = (*own, _OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR, _IO_URING_SETUP, _MEMFD_SECRET)
    load, equal, at_least, end = 0x20, 0x15, 0x35, 0x06
    allow, refuse, kill = 0x7FFF0000, 0x00050001, 0x80000000
    count = len(refused)
    # (code, jump if true, jump if false, operand); struct seccomp_data: nr at 0, arch at 4.
    program = [
        (load, 0, 0, 4), (equal, 1, 0, architecture), (end, 0, 0, kill),
        (load, 0, 0, 0), (at_least, count + 1, 0, 0x40000000),
        *((equal, count - at, 0, number) for at, number in enumerate(refused)),
        (end, 0, 0, allow), (end, 0, 0, refuse),
    ]  # fmt: skip
    instructions = b"".join(struct.pack("=HBBI", *line) for line in program)
    wanted = _Program(len(program), instructions)
    _prctl(_PR_SET_SECCOMP, 2, ctypes.byref(wanted))
