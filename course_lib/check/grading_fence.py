"""What the grader lets a notebook do: files of its own folder, one process, no network.

An audit hook (PEP 578) sees what Python code asks for, and a limit of the system bounds memory
where there is one. Both keep accidents away from the grader's files. Neither holds an attacker:
compiled code opens files without asking, and whoever wants to can find a way out.
"""

from __future__ import annotations

import contextlib
import os
import site
import sys
import sysconfig
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
import torch

import course_lib

__all__ = ["audit_hook", "fence", "limit_memory"]

# Where a system keeps what programs need; a name that another system uses does no harm.
SYSTEM = (
    *("/usr", "/bin", "/lib", "/lib64", "/etc", "/proc", "/sys", "/dev", "/run", "/nix", "/snap"),
    *("/System", "/Library", "/private/etc", "/var/cache/fontconfig"),
)
VARIABLES = ("COURSE_DATA_DIR", "SYSTEMROOT", "PROGRAMFILES")

# Events of Python's audit table, and which of their arguments are paths.
WRITES = {
    "os.chmod": (0,),
    "os.chown": (0,),
    "os.link": (0, 1),
    "os.mkdir": (0,),
    "os.remove": (0,),
    "os.rename": (0, 1),
    "os.rmdir": (0,),
    "os.symlink": (1,),
    "os.truncate": (0,),
    "os.utime": (0,),
    "shutil.rmtree": (0,),
    "sqlite3.connect": (0,),
}
READS = ("os.listdir", "os.scandir")
PROCESSES = (
    *("subprocess.Popen", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn"),
    *("os.startfile", "os.system", "pty.spawn", "os.killpg"),
)
NETWORK = {
    "socket.connect": 1,
    "socket.sendto": 1,
    "socket.getaddrinfo": 0,
    "socket.gethostbyname": 0,
}
HERE = ("localhost", "127.0.0.1", "::1", "", None)
CHANGING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def fence(folder: Path) -> None:
    """Refuse, from now on and for good, what a notebook has no business with.

    Args:
        folder: see `audit_hook`.
    """
    sys.addaudithook(audit_hook(folder))
    _ask_before_saving()


def audit_hook(folder: Path) -> Callable[[str, tuple[Any, ...]], None]:
    """Return a hook that raises PermissionError where a notebook goes beyond what it may do.

    Args:
        folder: the only one in which files may be written. Reading is allowed there, in Python's
            own folders, in `course_lib`, in COURSE_DATA_DIR and in the folders of the system.
    """
    writable = _real([folder])
    readable = _real([folder, *_readable()])

    def write(*paths: Any) -> None:
        _inside(paths, writable, "write")

    def read(*paths: Any) -> None:
        _inside(paths, readable, "read")

    rules: dict[str, Callable[..., None]] = {
        "open": lambda args: (write if args[2] & CHANGING else read)(args[0]),
        "os.kill": lambda args: None if args[0] == os.getpid() else _no_process(args),
        **dict.fromkeys(READS, lambda args: read(args[0])),
        **dict.fromkeys(PROCESSES, _no_process),
    }

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in rules:
            rules[event](args)
        elif event in WRITES:
            write(*(args[i] for i in WRITES[event]))
        elif event in NETWORK:
            _no_network(args[NETWORK[event]])

    return hook


def limit_memory(more: int) -> None:
    """Let this process take no more than so many further bytes, where the system can see to it.

    The bound also holds for the size of each file that it writes. Windows and macOS have no such
    limit; there, only the grader's own watch remains.
    """
    try:
        import resource
    except ImportError:  # Windows
        return
    taken = psutil.Process().memory_info().vms
    bounds = {"RLIMIT_AS": taken + more, "RLIMIT_FSIZE": more, "RLIMIT_CORE": 0}
    for name, bound in bounds.items():
        with contextlib.suppress(ValueError, OSError):  # macOS; or a stricter limit is set
            resource.setrlimit(getattr(resource, name), (bound, bound))


def _readable() -> list[str | Path]:
    given = [os.environ[name] for name in VARIABLES if os.environ.get(name)]
    python = [sys.prefix, sys.base_prefix, sys.exec_prefix, *sysconfig.get_paths().values()]
    python += [*site.getsitepackages(), site.getusersitepackages()]
    return [*given, *python, *SYSTEM, Path(course_lib.__file__).parent]


def _real(paths: Iterable[str | Path]) -> tuple[str, ...]:
    """The paths in the one form in which they are compared."""
    return tuple({os.path.normcase(os.path.realpath(path)) for path in paths})


def _inside(paths: Iterable[Any], roots: tuple[str, ...], verb: str) -> None:
    for path in paths:
        if isinstance(path, int) or path == os.devnull:  # a file that is open already
            continue
        (real,) = _real([os.fsdecode(path or ".")])
        if not any(real == root or real.startswith(root + os.sep) for root in roots):
            message = (
                "the grader lets a notebook {} files only in its own temporary folder, not {!r}"
            )
            raise PermissionError(message.format(verb, os.fsdecode(path or ".")))


def _no_process(args: tuple[Any, ...]) -> None:
    raise PermissionError("the grader lets a notebook run only as one process, and stop no other")


def _no_network(address: Any) -> None:
    host = address[0] if isinstance(address, tuple) else address
    if host not in HERE:
        raise PermissionError(f"the grader lets a notebook have no network, asked for {host!r}")


def _ask_before_saving() -> None:
    """`torch.save` opens its file in compiled code, which no hook sees."""
    plain = torch.save

    def save(obj: object, f: Any, *args: Any, **options: Any) -> None:
        if isinstance(f, str | os.PathLike):
            sys.audit("open", f, "wb", CHANGING)
        plain(obj, f, *args, **options)

    torch.save = save
