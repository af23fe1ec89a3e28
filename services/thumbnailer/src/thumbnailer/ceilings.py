"""Ceilings of memory and CPU time for a stretch of work in this process, kept by the kernel.

Limits that are read from a header hold only for a file that tells the truth. Under these, one that unpacks to more than
it said meets a `MemoryError`, in Python as in a codec, long before the system looks for a process to kill.
"""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STATUS = Path("/proc/self/status")


@contextmanager
def of_memory(more_bytes: int) -> Iterator[None]:
    """Lets this process get `more_bytes` of memory beyond what it has now; what asks for more gets a `MemoryError`.

    Counted is the memory that can be written and is nobody else's, in use or not. The address space (RLIMIT_AS) would
    count libraries and the reservations of threads as well.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    ceiling = private_bytes() + more_bytes
    lowest = min(limit for limit in (ceiling, soft, hard) if limit != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_DATA, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@contextmanager
def of_cpu(limit_s: float) -> Iterator[None]:
    """Has the kernel end this process when it computes for longer than that.

    This is the net under Celery's time limits, which a worker's parent keeps: it may be stopped, or gone. A timer and
    not RLIMIT_CPU, whose signal leaves a core dump as large as the memory.
    """
    signal.setitimer(signal.ITIMER_PROF, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def private_bytes() -> int:
    """What RLIMIT_DATA counts of this process now."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} does not tell VmData: memory ceilings need Linux 4.7 or newer")
