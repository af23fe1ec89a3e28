"""The client: what it sends, what it tries again, and how a refusal looks."""

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from darkroom_cli.client import Darkroom, ProblemError, UnreachableError

ACCEPTED = {"batch": {"id": "b", "total": 1, "pending": 1}, "images": [{"id": "i"}]}

Handler = Callable[[httpx.Request], httpx.Response]


def client_of(handler: Handler, **options) -> Darkroom:
    return Darkroom("http://gateway", transport=httpx.MockTransport(handler), retry_pauses_s=(0, 0, 0), **options)


class Script:
    """Answers or raises one thing after the other, and keeps the requests."""

    def __init__(self, *steps: httpx.Response | Exception) -> None:
        self.steps = list(steps)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        step = self.steps.pop(0)
        if isinstance(step, Exception):
            raise step
        return step


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "a photo.jpg"
    path.write_bytes(bytes(range(256)) * 1000)
    return path


def test_an_upload_carries_the_files_and_all_that_is_said_about_them(photo):
    script = Script(httpx.Response(202, json=ACCEPTED))
    answer = client_of(script, api_key="secret").upload([photo, photo], lane="bulk", tags=["one", "two"])
    assert answer == ACCEPTED
    [request] = script.requests
    assert (request.method, request.url.path) == ("POST", "/v1/images")
    assert request.headers["Authorization"] == "Bearer secret"
    body = request.content
    assert body.count(b'name="file"; filename="a photo.jpg"') == 2
    assert body.count(photo.read_bytes()) == 2
    assert body.count(b'name="tags"') == 2
    assert b"bulk" in body


def test_a_file_is_streamed_in_pieces_and_counted(photo):
    pieces: list[int] = []
    client_of(Script(httpx.Response(202, json=ACCEPTED))).upload([photo], on_sent=pieces.append)
    assert sum(pieces) == photo.stat().st_size
    assert max(pieces) <= 65_536


def test_a_broken_connection_is_tried_again_under_the_same_key_and_counted_once(photo):
    script = Script(httpx.ReadError("reset"), httpx.Response(503), httpx.Response(202, json=ACCEPTED))
    pieces: list[int] = []
    client_of(script).upload([photo], on_sent=pieces.append)
    assert len({request.headers["Idempotency-Key"] for request in script.requests}) == 1
    assert len(script.requests) == 3
    assert sum(pieces) == photo.stat().st_size


def test_two_uploads_have_two_keys_and_a_given_key_is_kept(photo):
    script = Script(*[httpx.Response(202, json=ACCEPTED)] * 3)
    client = client_of(script)
    client.upload([photo])
    client.upload([photo])
    client.upload([photo], idempotency_key="mine")
    first, second, third = (request.headers["Idempotency-Key"] for request in script.requests)
    assert first != second
    assert third == "mine"


def test_a_gateway_that_never_answered_is_not_waited_for():
    script = Script(httpx.ConnectError("refused"))
    with pytest.raises(UnreachableError, match="http://gateway"):
        client_of(script).ledger()
    assert len(script.requests) == 1


def test_a_gateway_that_has_answered_is_waited_for_while_it_restarts():
    script = Script(
        httpx.Response(200, json={"accepted": 1}),
        httpx.ConnectError("refused"),
        httpx.ConnectError("refused"),
        httpx.Response(200, json={"accepted": 2}),
    )
    client = client_of(script)
    assert client.ledger() == {"accepted": 1}
    assert client.ledger() == {"accepted": 2}


def test_the_patience_ends():
    script = Script(*[httpx.ReadError("reset")] * 4)
    with pytest.raises(UnreachableError):
        client_of(script).ledger()
    assert script.steps == []


def test_a_search_that_timed_out_is_not_asked_again():
    script = Script(httpx.Response(503, json={"title": "No worker answered", "status": 503}))
    with pytest.raises(ProblemError):
        client_of(script).search("a red circle")
    assert len(script.requests) == 1


def test_a_refusal_carries_the_problem_document():
    problem = {"type": "x", "title": "Too large", "status": 413, "detail": "big.jpg has 2 bytes", "remedy": "shrink"}
    with pytest.raises(ProblemError, match=r"big\.jpg has 2 bytes") as caught:
        client_of(Script(httpx.Response(413, json=problem))).image("i")
    assert caught.value.problem == problem
    assert caught.value.status == 413


@pytest.mark.parametrize("answer", [httpx.Response(500, text="<html>"), httpx.Response(500, json=["no", "problem"])])
def test_an_answer_that_is_no_problem_document_is_a_problem_too(answer):
    with pytest.raises(ProblemError) as caught:
        client_of(Script(answer)).image("i")
    assert caught.value.problem["title"] == "Internal Server Error"
    assert caught.value.status == 500


def test_images_are_fetched_page_by_page():
    script = Script(
        httpx.Response(200, json={"images": [{"id": "1"}, {"id": "2"}], "next_page_token": "more"}),
        httpx.Response(200, json={"images": [{"id": "3"}], "next_page_token": None}),
    )
    assert [image["id"] for image in client_of(script).images(status="ready")] == ["1", "2", "3"]
    assert script.requests[1].url.params["page_token"] == "more"
    assert script.requests[1].url.params["status"] == "ready"


def test_searches_send_their_limit_and_tags(photo):
    script = Script(*[httpx.Response(200, json={"results": [], "model": "m"})] * 2)
    client = client_of(script)
    client.search("red", limit=3, tags=["t"])
    client.search_image(photo, limit=4, tags=["t"])
    assert script.requests[0].content == b'{"text":"red","limit":3,"filter":{"tags":["t"]}}'
    assert b'{"tags": ["t"]}' in script.requests[1].content
    assert photo.read_bytes() in script.requests[1].content


def test_waiting_ends_when_every_batch_is_done():
    pending = iter([2, 1, 0])

    def handler(request: httpx.Request) -> httpx.Response:
        name = request.url.path.rsplit("/", 1)[1]
        return httpx.Response(200, json={"id": name, "total": 2, "pending": 0 if name == "done" else next(pending)})

    seen: list[int] = []
    batches = client_of(handler).wait(
        ["done", "busy"], on_change=lambda now: seen.append(sum(b["pending"] for b in now.values())), poll_s=0
    )
    assert list(batches) == ["done", "busy"]
    assert seen == [2, 1, 0]


def test_waiting_gives_up_after_its_time():
    client = client_of(lambda _: httpx.Response(200, json={"id": "b", "total": 1, "pending": 1}))
    with pytest.raises(TimeoutError, match="b"):
        client.wait(["b"], timeout_s=0, poll_s=0)
