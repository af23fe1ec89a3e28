"""Kills process groups whose owner died without stopping them: `python guard.py OWNER_PID`.

Reads lines `+<group id>` and `-<group id>` from standard input. Its end means that the owner is gone, even by kill -9.
A process of its own, because the alternatives fall short: Linux's parent death signal reaches only the direct child,
not the pool of a worker or the Erlang port programs, is tied to the thread that forked, and macOS has none.
"""

import os
import select
import signal
import sys
from contextlib import suppress

STDIN = 0


def main(owner_pid: int) -> None:
    """Returns after the owner has died and every group still registered then has been killed."""
    groups: set[int] = set()
    unread = b""
    while True:
        if not select.select([STDIN], [], [], 1.0)[0]:
            # A copy of the pipe in a process that the owner forked hides its end; what was written is read by now.
            if os.getppid() != owner_pid:
                break
            continue
        received = os.read(STDIN, 65_536)
        if not received:
            break
        *lines, unread = (unread + received).split(b"\n")
        for line in lines:
            (groups.add if line.startswith(b"+") else groups.discard)(int(line[1:]))
    for group in groups:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]))
