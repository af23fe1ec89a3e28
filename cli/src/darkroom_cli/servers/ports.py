"""Free loopback TCP ports for servers that this machine starts."""

import errno
import random
import socket

LOOPBACK = "127.0.0.1"

# Below the first ephemeral port of Linux (32768): the kernel never hands one of these to an outgoing connection, so a
# server that is restarted finds its port still free.
FIRST_PORT, LAST_PORT = 20_000, 32_767

_reservations: dict[int, socket.socket] = {}


def reserve_port() -> int:
    """A free TCP port of 127.0.0.1 in 20000-32767 that no other caller on this machine is given meanwhile.

    The reservation is a UDP socket on the same number: it leaves TCP to the server, the kernel refuses it to a second
    caller in any process, and it goes away with this process. Raises OSError when the whole range is taken.
    """
    candidates = range(FIRST_PORT, LAST_PORT + 1)
    for port in random.sample(candidates, len(candidates)):
        if _reserve(port):
            return port
    raise OSError(errno.EADDRINUSE, f"no free port between {FIRST_PORT} and {LAST_PORT} on {LOOPBACK}")


def release_port(port: int) -> None:
    """Gives a reserved port back; does nothing for a port that is not reserved here."""
    reservation = _reservations.pop(port, None)
    if reservation is not None:
        reservation.close()


def is_free(port: int) -> bool:
    """Whether a server could listen on this TCP port of 127.0.0.1 now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: connections of an earlier server that are still in TIME_WAIT do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return _bind(probe, port)


def _reserve(port: int) -> bool:
    reservation = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    if _bind(reservation, port) and is_free(port):
        _reservations[port] = reservation
        return True
    reservation.close()
    return False


def _bind(sock: socket.socket, port: int) -> bool:
    try:
        sock.bind((LOOPBACK, port))
    except OSError as exc:
        if exc.errno in (errno.EADDRINUSE, errno.EACCES):
            return False
        raise
    return True
