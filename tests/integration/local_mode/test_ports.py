"""Reserved ports: free, below the ephemeral range, and never given twice."""

import socket
import subprocess
import sys

from darkroom_cli.servers.ports import FIRST_PORT, is_free, release_port, reserve_port


def test_a_reserved_port_is_below_the_ephemeral_ones_and_free_for_a_server() -> None:
    port = reserve_port()
    try:
        assert FIRST_PORT <= port < 32_768
        with socket.create_server(("127.0.0.1", port)):
            assert not is_free(port)
        assert is_free(port)
    finally:
        release_port(port)


def test_parallel_callers_are_never_given_the_same_port() -> None:
    # A narrow range, so that callers without a common reservation would certainly collide.
    script = """
import sys
from darkroom_cli.servers import ports
ports.FIRST_PORT, ports.LAST_PORT = 29_000, 29_099
print(*[ports.reserve_port() for _ in range(15)], flush=True)
sys.stdin.read()
"""
    callers = [
        subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    ports: list[str] = []
    for caller in callers:
        assert caller.stdout is not None
        ports += caller.stdout.readline().split()
    for caller in callers:
        caller.communicate()
    assert len(ports) == 60
    assert len(set(ports)) == 60


def test_a_port_on_which_somebody_listens_is_not_given() -> None:
    port = reserve_port()
    release_port(port)
    with socket.create_server(("127.0.0.1", port)):
        script = f"""
from darkroom_cli.servers import ports
ports.FIRST_PORT, ports.LAST_PORT = {port}, {port}
try:
    ports.reserve_port()
except OSError as exc:
    print(exc.strerror)
"""
        said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said == f"no free port between {port} and {port} on 127.0.0.1\n"
