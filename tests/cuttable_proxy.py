"""A TCP forwarder whose connections a test can cut: the same broken network for every broker."""

import socket
import threading
from contextlib import suppress


class CuttableProxy:
    """Listens on a free loopback port and forwards to a server until `cut`, and again for new connections after it."""

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> int:
        """Ends all connections at once, as a dying network does; returns how many there were."""
        sockets, self._sockets = self._sockets, []
        for each in sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        return len(sockets) // 2

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # to close it alone would let one more connection in
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            server = socket.create_connection(self._server)
            self._sockets += [client, server]
            threading.Thread(target=_forward, args=(client, server), daemon=True).start()
            threading.Thread(target=_forward, args=(server, client), daemon=True).start()


def _forward(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
    for each in (source, target):
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
