"""The seal: from here on this process and its children open no socket and reach no address.

What is open stays open, and nothing else can be opened: the kernel refuses it (a seccomp filter, on every thread, kept
by children), whichever library asks. An audit hook refuses Python's own calls before that, to say who tried. Neither
can be taken back, so only a process that ends afterwards may call `seal`.
"""

import ctypes
import errno
import os
import platform
import socket
import struct
import sys
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

EVENTS = frozenset(
    {
        "socket.__new__",
        "socket.bind",
        "socket.connect",
        "socket.getaddrinfo",
        "socket.gethostbyaddr",
        "socket.gethostbyname",
        "socket.getnameinfo",
        "socket.sendto",
    }
)
"""What Python announces before it opens a socket or reaches an address."""

PR_SET_NO_NEW_PRIVS = 38
SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC = 1, 1
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
NUMBER, ARCHITECTURE, FIFTH_ARGUMENT = 0, 4, 16 + 4 * 8
"""Offsets in the kernel's struct seccomp_data; every argument takes 8 bytes, the lower half first."""
X32 = 0x40000000
"""x86-64 has a second set of numbers for the same calls from here on."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A processor's audit number and its numbers of system calls."""

    audit: int
    seccomp: int
    sendto: int
    refused: tuple[int, ...]


# socket, connect, bind and listen; and two ways around them: io_uring_setup, pidfd_getfd.
MACHINES = {
    "x86_64": Machine(audit=0xC000003E, seccomp=317, sendto=44, refused=(41, 42, 49, 50, 425, 438)),
    "aarch64": Machine(audit=0xC00000B7, seccomp=277, sendto=206, refused=(198, 203, 200, 201, 425, 438)),
}


class NetworkForbidden(PermissionError):
    """Something wanted a socket in a process that may open none."""


@dataclass(slots=True)
class Seal:
    """What holds: `gap` says why the kernel does not help here, None when it does; `tried` names who was refused."""

    gap: str | None = None
    tried: list[str] = field(default_factory=list[str])

    def __str__(self) -> str:
        if self.gap is None:
            return "no socket can be opened (seccomp filter and audit hook)"
        return f"Python can open no socket, but libraries in C could: {self.gap}"


def seal() -> Seal:
    """Forbid this process every new socket and every address; there is no way back."""
    holding = Seal()
    holding.gap = _filter()
    if holding.gap is None and (opened := _try_in_c()) is not None:
        os.close(opened)
        holding.gap = "the filter is installed, but the kernel does not obey it"
    sys.addaudithook(_refusing(holding))
    return holding


def program(machine: Machine) -> bytes:
    """The filter: EPERM for the refused calls, for sendto with an address and for foreign numbers; else allowed."""
    steps: list[tuple[int, int, int | None, int | None]] = []  # operation, operand, where to if so, where to if not
    refused = len(machine.refused) + 10
    steps += [(LOAD, ARCHITECTURE, None, None), (EQUAL, machine.audit, None, refused)]
    steps += [(LOAD, NUMBER, None, None), (AT_LEAST, X32, refused, None)]
    steps += [(EQUAL, number, refused, None) for number in machine.refused]
    steps += [(EQUAL, machine.sendto, None, refused - 1)]
    for half in (FIFTH_ARGUMENT, FIFTH_ARGUMENT + 4):
        steps += [(LOAD, half, None, None), (EQUAL, 0, None, refused)]
    steps += [(RETURN, ALLOW, None, None), (RETURN, REFUSE, None, None)]
    return b"".join(
        # A jump counts from the next step; the kernel wants it before the operand.
        struct.pack("=HBBI", code, *(0 if to is None else to - at for to in (yes, no)), operand)
        for at, (code, operand, yes, no) in enumerate(steps, start=1)
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))


def _filter() -> str | None:
    """Install the filter on all threads; the reason when that is not possible."""
    machine = MACHINES.get(platform.machine())
    if sys.platform != "linux" or machine is None or sys.maxsize < 2**32:
        return f"no filter is known for {platform.system()} on {platform.machine()}"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return f"prctl: {os.strerror(ctypes.get_errno())}"
    steps = program(machine)
    given = _Program(len(steps) // 8, steps)
    number = ctypes.c_long(machine.seccomp)
    left = libc.syscall(number, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, ctypes.byref(given))
    if left != 0:
        return f"seccomp: {os.strerror(ctypes.get_errno()) if left < 0 else f'thread {left} has a filter of its own'}"
    return None


def _try_in_c() -> int | None:
    """A socket made past Python: its descriptor, or None as it should be."""
    opened = ctypes.CDLL(None, use_errno=True).socket(socket.AF_INET, socket.SOCK_STREAM, 0)
    return opened if opened >= 0 else None


def _refusing(holding: Seal) -> Any:
    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event not in EVENTS:
            return
        if event == "socket.__new__" and arguments[1] in (socket.AF_UNIX, -1):
            return  # Python's wrapper around what is open already, an event loop's own pair; the kernel guards the rest
        who = _caller(sys._getframe(1))  # pyright: ignore[reportPrivateUsage]
        holding.tried.append(f"{who}: {event}")
        raise NetworkForbidden(errno.EPERM, f"no socket may be opened here; {who} tried ({event})")

    return hook


def _caller(frame: FrameType | None) -> str:
    """Module and line of the nearest caller outside the standard library."""
    while frame is not None:
        name = str(frame.f_globals.get("__name__", "?"))
        if name.partition(".")[0] not in sys.stdlib_module_names or name == "__main__":
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return "the standard library"
