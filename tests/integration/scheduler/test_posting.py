"""One POST over real sockets: to checked addresses only, within its time, and what is told when it fails."""

import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from callback_receivers import HANG, Receiver, receiving

from darkroom.outbound import OutboundPolicy, parse_networks
from scheduler.posting import Answer, Poster

LOOPBACK = OutboundPolicy(parse_networks("127.0.0.0/8"))
PUBLIC = OutboundPolicy()
TIMEOUT_S = 30.0
BODY = b'{"a": 1}'


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


class Names:
    """A resolver that answers with one list of addresses after the other, and then with the last."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self._answers = list(answers)
        self.asked: list[str] = []

    def __call__(self, name: str, port: int) -> Sequence[str]:
        self.asked.append(name)
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


def post(
    url: str, policy: OutboundPolicy = LOOPBACK, names: Names | None = None, timeout_s: float = TIMEOUT_S
) -> Answer:
    poster = Poster(policy, timeout_s, look_up=names) if names else Poster(policy, timeout_s)
    return poster.post(url, BODY, {"webhook-id": "7"})


def test_a_post_arrives_whole_and_its_status_is_told(receiver: Receiver) -> None:
    assert post(receiver.url + "?a=%20b") == Answer(200)
    (got,) = receiver.received
    assert (got.path, got.body) == ("/hook?a=%20b", BODY)
    assert (got.headers["webhook-id"], got.headers["host"]) == ("7", f"127.0.0.1:{receiver.port}")


def test_the_name_stays_in_the_request_and_the_address_is_looked_up_once(receiver: Receiver) -> None:
    names = Names(["127.0.0.1"], ["10.0.0.1"])
    assert post(f"http://hooks.test:{receiver.port}/", names=names) == Answer(200)
    assert receiver.received[0].headers["host"] == f"hooks.test:{receiver.port}"
    assert names.asked == ["hooks.test"]


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1"])
def test_a_name_that_leads_inside_is_not_connected_to(receiver: Receiver, address: str) -> None:
    answer = post(f"https://hooks.test:{receiver.port}/", PUBLIC, Names([address]))
    assert answer.status is None
    assert answer.error is not None
    assert "not on the public internet" in answer.error
    assert receiver.received == []


def test_a_name_that_leads_outside_at_first_and_inside_later_is_checked_each_time(receiver: Receiver) -> None:
    """Rebinding: the check at the upload and every attempt see what the resolver says then."""
    names = Names(["127.0.0.1"], ["10.0.0.7"])
    poster = Poster(LOOPBACK, TIMEOUT_S, look_up=names)
    url = f"http://hooks.test:{receiver.port}/"
    assert poster.post(url, b"{}", {}).status == 200
    answer = poster.post(url, b"{}", {})
    assert answer.error is not None
    assert "10.0.0.7" in answer.error
    assert len(receiver.received) == 1


def test_of_several_addresses_the_first_that_is_allowed_and_answers_is_taken(receiver: Receiver) -> None:
    names = Names(["10.0.0.1", "127.0.0.99", "127.0.0.1"])  # nobody listens on the second
    assert post(f"http://hooks.test:{receiver.port}/", names=names) == Answer(200)


def test_a_redirect_is_told_and_not_followed(receiver: Receiver) -> None:
    receiver.answers, receiver.answer_headers = [307], {"Location": receiver.url}
    assert post(receiver.url) == Answer(307)
    assert len(receiver.received) == 1


def test_what_a_receiver_asks_for_is_told(receiver: Receiver) -> None:
    receiver.answers, receiver.answer_headers = [429], {"retry-AFTER": "60"}
    assert post(receiver.url) == Answer(429, retry_after="60")


def test_a_receiver_that_hangs_is_left_after_the_time_limit(receiver: Receiver) -> None:
    receiver.answers = [HANG]
    assert post(receiver.url, timeout_s=0.3) == Answer(None, "no answer within 0.3 s")


def test_an_answer_that_drips_is_left_after_the_time_limit() -> None:
    """Each byte comes in time; the limit is for all of them."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stop = threading.Event()

        def drip() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nx: ")
                while not stop.wait(0.02):
                    try:
                        connection.sendall(b"y")
                    except OSError:
                        return

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        answer = post(f"http://127.0.0.1:{listener.getsockname()[1]}/", timeout_s=0.5)
        stop.set()
        thread.join(60)
    assert answer == Answer(None, "no answer within 0.5 s")


def test_an_endless_answer_is_not_read() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sent = 0

        def flood() -> None:
            nonlocal sent
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                try:
                    while sent < 2**30:
                        sent += connection.send(b"x" * 65_536)
                except OSError:
                    return

        thread = threading.Thread(target=flood, daemon=True)
        thread.start()
        assert post(f"http://127.0.0.1:{listener.getsockname()[1]}/") == Answer(200)
        thread.join(60)
    assert sent < 2**26


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"", "disconnected"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "illegal status line"),
        (b"HTTP/1.1 200\r\n" + b"a: b\r\n" * 99_999, ""),
    ],
)
def test_what_is_not_http_is_told_as_that(answer: bytes, told: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def respond() -> None:
            connection, _ = listener.accept()
            with connection:
                received = b""
                while not received.endswith(BODY):  # closing with something unread would be a reset
                    received += connection.recv(65_536) or BODY
                connection.sendall(answer)

        thread = threading.Thread(target=respond, daemon=True)
        thread.start()
        got = post(f"http://127.0.0.1:{listener.getsockname()[1]}/")
        thread.join(60)
    assert got.status is None
    assert got.error is not None
    assert told in got.error


def test_a_port_where_nobody_listens_and_a_name_that_is_unknown_are_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    refused = post(f"http://127.0.0.1:{port}/")
    assert refused.error is not None
    assert "refused" in refused.error
    unknown = post("http://no-such-host.invalid:9000/")
    assert unknown.error is not None
    assert "no-such-host.invalid cannot be looked up" in unknown.error


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of hooks.test and its key, in one file, signed by itself."""
    folder = tmp_path_factory.mktemp("tls")
    request = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    name = ["-subj", "/CN=hooks.test", "-addext", "subjectAltName=DNS:hooks.test", "-days", "2"]
    files = ["-keyout", folder / "key.pem", "-out", folder / "certificate.pem"]
    subprocess.run([*request, *name, *files], check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_bytes((folder / "key.pem").read_bytes() + (folder / "certificate.pem").read_bytes())
    return both


def test_over_tls_the_name_is_asked_for_and_its_certificate_checked(certificate: Path) -> None:
    asked: list[str | None] = []
    of_server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    of_server.load_cert_chain(certificate)
    of_server.sni_callback = lambda _, name, __: asked.append(name)
    trusting = ssl.create_default_context(cafile=str(certificate))
    with receiving(of_server) as receiver:
        poster = Poster(LOOPBACK, TIMEOUT_S, trusting, Names(["127.0.0.1"]))
        assert poster.post(f"https://hooks.test:{receiver.port}/", b"{}", {}) == Answer(200)
        wrong_name = poster.post(f"https://other.test:{receiver.port}/", b"{}", {})
        strict = Poster(LOOPBACK, TIMEOUT_S, look_up=Names(["127.0.0.1"]))
        untrusted = strict.post(f"https://hooks.test:{receiver.port}/", b"{}", {})
        assert len(receiver.received) == 1
    assert asked[:2] == ["hooks.test", "other.test"]
    for answer in (wrong_name, untrusted):
        assert answer.status is None
        assert answer.error is not None
        assert "certificate verify failed" in answer.error


def test_time_spent_on_a_name_counts(receiver: Receiver) -> None:
    names = Names(["127.0.0.1"])
    answer = post(f"http://hooks.test:{receiver.port}/", names=names, timeout_s=1e-9)
    assert answer == Answer(None, "no answer within 1e-09 s")
    assert names.asked == ["hooks.test"]
    assert receiver.received == []
