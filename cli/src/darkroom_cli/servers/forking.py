"""The process behind a `Nursery`, on Linux: `python -P forking.py MODULE...`.

It imports the modules, then forks whenever it is asked to on its standard input, a socket; each request brings the end
of another socket for the fork alone. Only there the fork reads what it is to become: no command's environment is ever
in the memory of a nursery, and so in none of what is forked later. It ends when nobody can ask any more.
"""

import ctypes
import gc
import importlib
import json
import os
import runpy
import selectors
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

STDIN = 0
CHUNK_BYTES = 65_536


def main(modules: list[str]) -> None:
    """Returns when nobody can ask any more; in a fork, when its command has ended."""
    for module in modules:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # the collector of a fork leaves the memory alone that it shares with us
    told = serve()
    if told is None:
        return
    with told:
        request = introduce(told)
    if request is not None:
        become(*request)


def serve() -> socket.socket | None:
    """Forks whenever it is asked to, and tells how each fork ended. Returns in a fork, with the socket for it."""
    control = socket.socket(fileno=STDIN)
    running: dict[int, tuple[int, socket.socket]] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd != control.fileno():
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    pid, told = running.pop(key.fd)
                    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                    with told, suppress(OSError):
                        told.sendall(b"%d\n" % status)
                    continue
                asked, descriptors, _, _ = socket.recv_fds(control, 1, 1)
                if not asked:
                    return None
                told = socket.socket(fileno=descriptors[0])
                pid = os.fork()
                if pid == 0:
                    control.detach()  # until something else is our standard input
                    for pidfd, (_, other) in running.items():
                        os.close(pidfd)
                        other.close()
                    return told
                pidfd = os.pidfd_open(pid)
                running[pidfd] = pid, told
                selector.register(pidfd, selectors.EVENT_READ)


def introduce(told: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Tells who we are; returns what to run and where to read and write, None when there is nobody to say so."""
    os.setsid()
    pidfd = os.pidfd_open(os.getpid())
    socket.send_fds(told, [b"%d\n" % os.getpid()], [pidfd])
    os.close(pidfd)
    request, descriptors = b"", []
    while not request.endswith(b"\n"):
        part, received, _, _ = socket.recv_fds(told, CHUNK_BYTES, 2)
        if not part:
            return None
        request += part
        descriptors += received
    return json.loads(request), descriptors


def become(request: dict[str, Any], descriptors: list[int]) -> None:
    """Runs a Python script as if this process had been started for it."""
    stdin, output = descriptors
    for source, target in ((stdin, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.close(stdin)
    os.close(output)
    argv = request["argv"]
    if request["env"] is not None:
        os.environ.clear()
        os.environ.update(request["env"])
    show_as(argv)
    sys.argv = argv
    sys.path.insert(0, str(Path(argv[0]).parent))
    runpy.run_path(argv[0], run_name="__main__")


def show_as(argv: list[str]) -> None:
    """Lets `ps` and `top` show this script and its words, without the folders where there is no room for them."""
    name = Path(argv[0]).name
    Path("/proc/self/comm").write_text(name)
    # The kernel keeps no copy: fields 48 and 49 of proc_pid_stat(5) say where in our own memory it looks.
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    begin, end = int(fields[45]), int(fields[46])
    whole, short = (b"\0".join(map(os.fsencode, words)) for words in ([sys.executable, *argv], [name, *argv[1:]]))
    shown = whole if len(whole) < end - begin else short[: end - begin - 1]
    ctypes.memmove(begin, shown.ljust(end - begin, b"\0"), end - begin)


if __name__ == "__main__":
    main(sys.argv[1:])
