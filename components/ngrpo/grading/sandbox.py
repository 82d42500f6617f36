"""A sandbox for a process that parses untrusted text: it keeps only what it needs to compute.

Each wall of the sandbox works by itself, so that a hole in one is not a hole in the grader; `docs/security.md` says what each of them
stops. They are put up after all libraries are loaded, and cannot be taken down again.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import sys
import warnings
from collections.abc import Collection
from typing import NamedTuple

REFUSED = 100
"""Exit status of a process that attempted the first of `REFUSALS`; those of the others follow."""

REFUSALS: dict[str, str] = {
    "exec": "run generated code",
    "compile": "run generated code",
    "code": "run generated code",
    "open": "open a file",
    "subprocess": "start a process",
    "socket": "use the network",
    "ctypes": "call a foreign function",
    "pickle": "load a pickle",
    "os": "use the operating system",
}
"""What a process attempted, by the audit event's name up to the first dot."""

_OTHER = "do what no grading needs"

_HARMLESS = frozenset(
    {
        "import",  # of a module that is not loaded; it fails by itself, because no finder of modules is left
        "array.__new__",  # memory: SymPy keeps primes in arrays
        "builtins.id",
        "object.__getattr__",
        "sys._getframe",
        "sys.excepthook",
        "sys.unraisablehook",
        "cpython._PySys_ClearAuditHooks",  # at the exit of the interpreter
    }
)
"""Audit events of ordinary computation."""


class _Machine(NamedTuple):
    """Constants of a processor for the system-call filter, from linux/audit.h and its table of system calls."""

    audit: int
    seccomp: int
    computing: tuple[int, ...]


# read, write, close, mmap, mprotect, munmap, brk, mremap, madvise, futex, clock_gettime, gettimeofday, getrandom, setitimer,
# restart_syscall, sched_yield, exit, exit_group: memory, time, and descriptors that are open already.
_MACHINES = {
    "x86_64": _Machine(
        audit=0xC000003E,
        seccomp=317,
        computing=(0, 1, 3, 9, 10, 11, 12, 25, 28, 202, 228, 96, 318, 38, 219, 24, 60, 231),
    ),
    "aarch64": _Machine(
        audit=0xC00000B7,
        seccomp=277,
        computing=(63, 64, 57, 222, 226, 215, 214, 216, 233, 98, 113, 169, 278, 103, 128, 124, 93, 94),
    ),
}

_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC = 1, 1
_KILL, _REFUSE, _ALLOW = 0x80000000, 0x00050000 | errno.EPERM, 0x7FFF0000
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # load a 32-bit word; compare with a constant; return a constant
_NUMBER, _ARCHITECTURE = 0, 4  # offsets in struct seccomp_data


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.POINTER(_Instruction)))


def seal(keep: Collection[int]) -> list[str]:
    """Put up all walls. All needed modules must be loaded.

    Args:
        keep: Descriptors that stay open.

    Returns:
        A line for each wall that this machine does not support.
    """
    close_descriptors(keep)
    refuse_imports()
    take_limits()
    missing = filter_system_calls()
    watch()
    return [missing] if missing else []


def close_descriptors(keep: Collection[int]) -> None:
    """Close all descriptors except these; printed text is discarded."""
    sys.stdin = sys.stdout = sys.stderr = None
    # A warning would read its source line from a file.
    warnings.simplefilter("ignore")
    start = 0
    for descriptor in sorted(keep):
        os.closerange(start, descriptor)
        start = descriptor + 1
    os.closerange(start, os.sysconf("SC_OPEN_MAX"))


def refuse_imports() -> None:
    """Make imports of modules that are not loaded fail."""
    sys.meta_path.clear()


def take_limits() -> None:
    """Set limits of zero on new descriptors, bytes in files, processes and core dumps."""
    for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC, resource.RLIMIT_CORE):
        resource.setrlimit(kind, (0, 0))


def filter_system_calls() -> str | None:
    """Make the kernel refuse all system calls that computing does not need, for all threads and permanently.

    Returns:
        None, or a line with the reason why this machine has no such filter.
    """
    machine = _MACHINES.get(platform.machine())
    if sys.platform != "linux" or machine is None:
        return f"no filter of system calls on {sys.platform} ({platform.machine()})"
    steps = [(_LOAD, 0, 0, _ARCHITECTURE), (_JUMP_IF_EQUAL, 1, 0, machine.audit), (_RETURN, 0, 0, _KILL)]
    steps += [(_LOAD, 0, 0, _NUMBER)]
    for number in machine.computing:
        steps += [(_JUMP_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    steps += [(_RETURN, 0, 0, _REFUSE)]
    instructions = (_Instruction * len(steps))(*(_Instruction(*step) for step in steps))
    program = _Program(len(steps), instructions)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.syscall(
        ctypes.c_long(machine.seccomp),
        ctypes.c_ulong(_SECCOMP_SET_MODE_FILTER),
        ctypes.c_ulong(_SECCOMP_FILTER_FLAG_TSYNC),
        ctypes.byref(program),
    ):
        return f"no filter of system calls: the kernel refuses it ({os.strerror(ctypes.get_errno())})"
    return None


def watch() -> None:
    """End the process as soon as Python is about to do anything but compute: run code, open a file, start a process."""
    statuses = {subject: REFUSED + index for index, subject in enumerate(REFUSALS)}
    other = REFUSED + len(REFUSALS)

    harmless, end = _HARMLESS, os._exit  # local names, which cannot be replaced

    def hook(event: str, _arguments: tuple[object, ...]) -> None:
        if event not in harmless:
            end(statuses.get(event.partition(".")[0], other))

    sys.addaudithook(hook)


def refusal(status: int) -> str | None:
    """Return what a process with this exit status had attempted when it was ended; None for other statuses."""
    attempts = [*REFUSALS.values(), _OTHER]
    return attempts[status - REFUSED] if REFUSED <= status < REFUSED + len(attempts) else None
