"""Seccomp filters (classic BPF) written by hand: a deny-list for programs, and refusals to try degraded hosts with."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
from collections.abc import Iterable

from verifier_app.judge.layers import syscalls

# name: (x86_64, aarch64); None where the architecture has no such call
_X86, _ARM = 0, 1
CALLS: dict[str, tuple[int | None, int | None]] = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "clone": (56, 220),
    "clone3": (435, 435),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "io_setup": (206, 0),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioperm": (173, None),
    "iopl": (172, None),
    "ioprio_set": (251, 30),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "kill": (62, 129),
    "landlock_create_ruleset": (444, 444),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "mlock": (149, 228),
    "mlock2": (325, 284),
    "mlockall": (151, 230),
    "modify_ldt": (154, None),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "mq_open": (240, 180),
    "msgget": (68, 186),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "prctl": (157, 167),
    "prlimit64": (302, 261),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "seccomp": (317, 277),
    "semget": (64, 190),
    "setdomainname": (171, 162),
    "setgid": (106, 144),
    "setgroups": (116, 159),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "setpriority": (141, 140),
    "setregid": (114, 143),
    "setresgid": (119, 149),
    "setresuid": (117, 147),
    "setreuid": (113, 145),
    "setrlimit": (160, 164),
    "settimeofday": (164, 170),
    "setuid": (105, 146),
    "setsockopt": (54, 208),
    "shmget": (29, 194),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "sync": (162, 81),
    "syncfs": (306, 267),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "vhangup": (153, 58),
}

# with an argument they are refused only in part, below; the groups of identity and of the filter itself stay allowed
_IN_PART = {"clone", "clone3", "kill", "prctl", "prlimit64", "setrlimit", "setsockopt", "socket", "socketpair"}
_ALLOWED = {"setgid", "setgroups", "setregid", "setresgid", "setresuid", "setreuid", "setuid", "seccomp"}
DENIED = sorted(set(CALLS) - _IN_PART - _ALLOWED - {"landlock_create_ruleset"})
_ABSENT = {"memfd_create", "io_uring_setup", "io_uring_enter", "io_uring_register", "memfd_secret"}

GROUPS = {
    "unshare": ["unshare"],
    "mount": ["mount", "umount2", "pivot_root", "mount_setattr"],
    "setuid": ["setuid", "setreuid", "setresuid", "setgid", "setregid", "setresgid", "setgroups"],
    "landlock": ["landlock_create_ruleset"],
    "seccomp": ["seccomp"],
}
# one limit each: rlimit_as, rlimit_core, ...
LIMIT_GROUPS = {name.lower(): getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}

_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_AT_LEAST = 0x35  # BPF_JGE
_ANY_BIT = 0x45  # BPF_JSET
_RETURN = 0x06
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_NOTIFY = 0x7FC00000  # ask who listens; ENOSYS where nobody does
_NUMBER, _ARCH, _ARG0, _ARG1, _ARG2 = (
    0,
    4,
    16,
    24,
    32,
)  # offsets in struct seccomp_data; the arguments' low halves (little endian)
_MACHINES = {"x86_64": (_X86, 0xC000003E), "aarch64": (_ARM, 0xC00000B7)}
_X32_BIT = 0x40000000
_NAMESPACES = 0x7E020000  # the CLONE_NEW* flags
AF_UNIX = 1
SOL_SOCKET = 1
_BUFFER_OPTIONS = (7, 8, 32, 33)  # SO_SNDBUF, SO_RCVBUF and those that force
SECCOMP_MODE_FILTER = 2
_SET_MODE_FILTER, _NEW_LISTENER = 1, 8

Instruction = tuple[int, int, int, int]


class _Filter(ctypes.Structure):
    _fields_ = [
        ("code", ctypes.c_ushort),
        ("jt", ctypes.c_ubyte),
        ("jf", ctypes.c_ubyte),
        ("k", ctypes.c_uint32),
    ]


class _Program(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.POINTER(_Filter))]


def column() -> int | None:
    """This machine's column of CALLS."""
    found = _MACHINES.get(os.uname().machine)
    return None if found is None else found[0]


def _number(name: str) -> int | None:
    at, _ = _MACHINES[os.uname().machine]
    return CALLS[name][at]


def refuse(name: str, error: int = errno.EPERM) -> list[Instruction]:
    """Refuse a call with this error."""
    number = _number(name)
    return [] if number is None else [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | error)]


def _refuse_if(name: str, test: Instruction, error: int = errno.EPERM) -> list[Instruction]:
    """Refuse a call when the test of its first argument (jt to the refusal, jf past it) says so."""
    number = _number(name)
    if number is None:
        return []
    back = (_LOAD, 0, 0, _NUMBER)
    return [(_EQUAL, 0, 4, number), (_LOAD, 0, 0, _ARG0), test, (_RETURN, 0, 0, _ERRNO | error), back]


def _refuse_when(name: str, arguments: dict[int, int], error: int = errno.EPERM) -> list[Instruction]:
    """Refuse a call whose arguments (by offset) all have these values; error 0: say that it was done."""
    number = _number(name)
    if number is None:
        return []
    rules: list[Instruction] = [(_RETURN, 0, 0, _ERRNO | error), (_LOAD, 0, 0, _NUMBER)]
    for offset, value in reversed(arguments.items()):
        rules = [(_LOAD, 0, 0, offset), (_EQUAL, 0, len(rules) - 1, value), *rules]
    return [(_EQUAL, 0, len(rules), number), *rules]


def _refuse_limit(which: int) -> list[Instruction]:
    """Refuse to set one resource limit; to read it stays allowed."""
    number, back = _number("prlimit64"), (_LOAD, 0, 0, _NUMBER)
    assert number is not None
    refusal = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    rules = [(_EQUAL, 0, 6, number), (_LOAD, 0, 0, _ARG1), (_EQUAL, 0, 3, which)]
    rules += [(_LOAD, 0, 0, _ARG2), (_EQUAL, 1, 0, 0), refusal, back]  # argument 2: the new limit, or null
    return rules + _refuse_if("setrlimit", (_EQUAL, 0, 1, which))


def program_rules(protect_judge: bool) -> list[Instruction]:
    """The deny-list for programs. protect_judge: refuse kill(-1), where nothing else keeps it from the judge."""
    rules = [step for name in DENIED for step in refuse(name, errno.ENOSYS if name in _ABSENT else errno.EPERM)]
    rules += refuse("clone3", errno.ENOSYS)  # its flags lie in memory; the C library then falls back to clone
    rules += _refuse_if("clone", (_ANY_BIT, 0, 1, _NAMESPACES))
    rules += refuse("socket", errno.EACCES)  # one of the host's may be reached, whatever its family
    rules += _refuse_if("socketpair", (_EQUAL, 1, 0, AF_UNIX), errno.EACCES)
    # The watch counts a socket with the buffer that the kernel gives it: asking for more goes well and does nothing.
    for option in _BUFFER_OPTIONS:
        rules += _refuse_when("setsockopt", {_ARG1: SOL_SOCKET, _ARG2: option}, 0)
    rules += _refuse_if("prlimit64", (_EQUAL, 1, 0, 0))  # another process's limits
    rules += _refuse_when("prctl", {_ARG0: syscalls.PR_SET_DUMPABLE, _ARG1: 0})  # it hides a process from the watch
    if protect_judge:
        rules += _refuse_if("kill", (_EQUAL, 0, 1, 0xFFFFFFFF))
    return rules


def refusal_rules(groups: Iterable[str]) -> list[Instruction]:
    """Rules that make a host look poorer: names of GROUPS and of LIMIT_GROUPS."""
    limits = [LIMIT_GROUPS[group] for group in groups if group in LIMIT_GROUPS]
    rules = [step for which in limits for step in _refuse_limit(which)]
    rules += [step for group in groups if group not in LIMIT_GROUPS for name in GROUPS[group] for step in refuse(name)]
    if "seccomp" in groups:
        rules += _refuse_if("prctl", (_EQUAL, 0, 1, syscalls.PR_SET_SECCOMP))
    return rules


def with_notices(rules: list[Instruction]) -> list[Instruction]:
    """The same rules, but who listens is asked about a call that they refuse as forbidden; not about one that they call
    absent or done."""
    asked = (_ERRNO | errno.EPERM, _ERRNO | errno.EACCES)
    return [(code, yes, no, _NOTIFY if code == _RETURN and k in asked else k) for code, yes, no, k in rules]


def install(rules: list[Instruction], listen: bool = False) -> int:
    """Put the filter on this process and all its descendants, for good. OSError where the host has no seccomp.

    Returns:
        With `listen`, the descriptor on which calls that `with_notices` names wait for an answer; else -1.
    """
    machine = os.uname().machine
    if machine not in _MACHINES:
        raise OSError(errno.ENOSYS, f"no seccomp table for {machine}")
    _, arch = _MACHINES[machine]
    denied = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    steps: list[Instruction] = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, arch), denied, (_LOAD, 0, 0, _NUMBER)]
    if machine == "x86_64":
        steps += [(_AT_LEAST, 0, 1, _X32_BIT), denied]
    steps += [*rules, (_RETURN, 0, 0, _ALLOW)]
    array = (_Filter * len(steps))(*(_Filter(*step) for step in steps))
    program = _Program(len(steps), array)
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    if listen:
        number = _number("seccomp")
        assert number is not None
        return syscalls.syscall("seccomp", number, _SET_MODE_FILTER, _NEW_LISTENER, ctypes.byref(program))
    syscalls.prctl(syscalls.PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.cast(ctypes.byref(program), ctypes.c_void_p))
    return -1
