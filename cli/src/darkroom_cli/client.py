"""A small client for Darkroom's REST interface."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, NotRequired, Self, TypedDict, cast
from urllib.parse import urlsplit
from uuid import uuid4

import httpx

DEFAULT_URL = "http://127.0.0.1:8000"

# A restarted gateway is back within that time.
RETRY_PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 8.0)
# What a proxy, or a gateway without its database, answers.
TRANSIENT_STATUSES = frozenset({502, 503, 504})

LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})

POLL_S = 0.25

# A type by the file's name would be a guess: Darkroom looks at the bytes.
BYTES = "application/octet-stream"


class Thumbnail(TypedDict):
    """One rendition: where it is served, its size in pixels and in bytes."""

    url: str
    width: int
    height: int
    bytes: int


class Image(TypedDict):
    """One image, as `GET /v1/images/{id}` answers; what is not known yet is None."""

    id: str
    status: str
    sha256: str
    filename: str | None
    format: str | None
    bytes: int
    width: int | None
    height: int | None
    taken_at: str | None
    tags: list[str]
    external_id: str | None
    lane: str
    thumbhash: str | None
    palette: list[dict[str, Any]] | None
    thumbnails: dict[str, Thumbnail]
    embeddings: list[dict[str, Any]]
    error: dict[str, Any] | None
    attempts: int
    created_at: str
    ready_at: str | None
    batch_id: str
    duplicate: bool
    tasks: dict[str, str]


class Batch(TypedDict):
    """The images of one upload, counted by state; `images` only in the answer to `GET /v1/batches/{id}`."""

    id: str
    total: int
    ready: int
    failed: int
    deleted: int
    pending: int
    created_at: str
    completed_at: str | None
    images: NotRequired[list[Image]]


class Upload(TypedDict):
    """The answer to an accepted upload."""

    batch: Batch
    images: list[Image]


class Hit(TypedDict):
    """One found image; the score is the cosine between query and picture."""

    image: Image
    score: float


class Found(TypedDict):
    """The answer to a search: the best first, and the model that compared."""

    results: list[Hit]
    model: str | None


class Task(TypedDict):
    """One task, as `GET /v1/tasks/{id}` answers; what is not known is None."""

    task_id: str
    name: str
    state: str
    result: Any
    progress: dict[str, Any] | None
    error: dict[str, str] | None
    queue: str | None
    worker: str | None
    issued_at: str
    started_at: str | None
    finished_at: str | None


ENDED = frozenset({"SUCCESS", "FAILURE", "REVOKED"})
"""The states in which nothing more becomes of a task."""


class Picture(NamedTuple):
    """Bytes of a picture file and their media type."""

    data: bytes
    media_type: str


class DarkroomError(Exception):
    """Darkroom could not be asked, or refused; the message says why."""


class UnreachableError(DarkroomError):
    """No gateway answers at the URL."""


class ProblemError(DarkroomError):
    """Darkroom refused; `problem` is its problem document (RFC 9457)."""

    def __init__(self, problem: Mapping[str, Any]) -> None:
        super().__init__(problem.get("detail") or problem.get("title") or "refused")
        self.problem = dict(problem)

    @property
    def status(self) -> int:
        """The HTTP status."""
        return int(self.problem["status"])


class Darkroom:
    """A connection to one gateway; use it as a context manager.

    A connection that breaks is tried again after each of `retry_pauses_s`, but not one that is refused before the
    gateway has answered at all: then it is not running. `transport` replaces the network in tests. Every method raises
    UnreachableError or ProblemError.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        api_key: str | None = None,
        *,
        timeout_s: float = 60.0,
        retry_pauses_s: Sequence[float] = RETRY_PAUSES_S,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._retry_pauses_s = tuple(retry_pauses_s)
        self._has_answered = False
        self._http = httpx.Client(
            base_url=self.url,
            headers={} if api_key is None else {"Authorization": f"Bearer {api_key}"},
            timeout=httpx.Timeout(timeout_s, connect=5.0),
            transport=transport,
            # A proxy of the environment leads elsewhere than to this machine.
            trust_env=urlsplit(self.url).hostname not in LOOPBACK_HOSTS,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def upload(
        self,
        paths: Sequence[Path],
        *,
        lane: str = "interactive",
        tags: Sequence[str] = (),
        external_id: str | None = None,
        idempotency_key: str | None = None,
        on_sent: Callable[[int], None] | None = None,
    ) -> Upload:
        """Uploads files in one request that is accepted or refused as a whole; they are streamed, never held in memory.

        A broken connection is tried again with the same idempotency key, so that nothing is accepted twice. `on_sent`
        is told the number of bytes of each piece sent, and a negative number when they are sent again.
        """
        form: dict[str, Any] = {"lane": lane, "tags": list(tags)}
        if external_id is not None:
            form["external_id"] = external_id
        headers = {"Idempotency-Key": idempotency_key or uuid4().hex}

        sent = _Sent(on_sent)

        def send() -> httpx.Response:
            sent.take_back()  # what an earlier try has sent counts no more
            with ExitStack() as opened:
                files = [(path.name, _Tracked(opened.enter_context(path.open("rb")), sent), BYTES) for path in paths]
                parts: Any = [("file", file) for file in files]
                return self._http.post("/v1/images", data=form, files=parts, headers=headers)

        return cast(Upload, self._json(self._persistently(send)))

    def image(self, image_id: str) -> Image:
        """One image."""
        return cast(Image, self._get(f"/v1/images/{image_id}"))

    def images(self, *, status: str | None = None, tag: str | None = None, page_size: int = 100) -> Iterator[Image]:
        """All images of a status and with a tag, the newest first, fetched page by page."""
        wanted = {"status": status, "tag": tag, "limit": page_size}
        parameters: dict[str, Any] = {name: value for name, value in wanted.items() if value is not None}
        while True:
            page = self._get("/v1/images", parameters)
            yield from cast(list[Image], page["images"])
            if not page.get("next_page_token"):
                return
            parameters["page_token"] = page["next_page_token"]

    def trace(self, image_id: str) -> dict[str, Any]:
        """One image's spans as a tree, and where its time went."""
        return cast(dict[str, Any], self._get(f"/v1/images/{image_id}/trace"))

    def delete(self, image_id: str) -> None:
        """Deletes one image."""
        self._checked(self._persistently(lambda: self._http.delete(f"/v1/images/{image_id}")))

    def retry(self, image_id: str) -> None:
        """Has the work on one failed image done again."""
        self._checked(self._once(lambda: self._http.post(f"/v1/images/{image_id}:retry")))

    def batch(self, batch_id: str) -> Batch:
        """One upload's counters and images."""
        return cast(Batch, self._get(f"/v1/batches/{batch_id}"))

    def wait(
        self,
        batch_ids: Sequence[str],
        *,
        on_change: Callable[[dict[str, Batch]], None] | None = None,
        timeout_s: float | None = None,
        poll_s: float = POLL_S,
    ) -> dict[str, Batch]:
        """The batches by id once all their images are ready, failed or deleted; `on_change` is shown them on the way.

        Raises TimeoutError with those that still wait.
        """
        seen: dict[str, Batch] = {}
        waiting = list(dict.fromkeys(batch_ids))
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            asked = time.monotonic()
            seen |= {batch_id: self.batch(batch_id) for batch_id in waiting}
            if on_change is not None:
                on_change(seen)
            waiting = [batch_id for batch_id in waiting if seen[batch_id]["pending"] > 0]
            if not waiting:
                return seen
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"after {timeout_s:g} s still not done: {', '.join(waiting)}")
            # Many batches take long to ask for: at least half of the time is the gateway's own.
            time.sleep(max(poll_s, time.monotonic() - asked))

    def search(self, text: str, *, limit: int = 10, tags: Sequence[str] = ()) -> Found:
        """The images nearest to a text, the best first."""
        return self._search({"text": text}, limit, tags)

    def search_similar(self, image_id: str, *, limit: int = 10, tags: Sequence[str] = ()) -> Found:
        """The images nearest to one that Darkroom has."""
        return self._search({"image_id": image_id}, limit, tags)

    def search_image(self, path: Path, *, limit: int = 10, tags: Sequence[str] = ()) -> Found:
        """The images nearest to a picture file, which is not kept."""

        def send() -> httpx.Response:
            with path.open("rb") as file:
                form: dict[str, Any] = {"limit": str(limit)}
                if tags:
                    form["filter"] = json.dumps({"tags": list(tags)})
                return self._http.post("/v1/search:image", data=form, files={"file": (path.name, file)})

        return cast(Found, self._json(self._once(send)))

    def thumbnail(self, image_id: str, size: str = "small") -> Picture:
        """A rendition: `small`, `medium` or `large`."""
        response = self._checked(self._persistently(lambda: self._http.get(f"/v1/images/{image_id}/thumbnails/{size}")))
        return Picture(response.content, response.headers["Content-Type"])

    def probe(self, kind: str, **options: Any) -> str:
        """Sends a probe and returns its task's id. `options` are the fields of `POST /v1/probes/{kind}`; not None."""
        given = {name: value for name, value in options.items() if value is not None}
        sent = self._once(lambda: self._http.post(f"/v1/probes/{kind}", json=given))
        return str(self._json(sent)["task_id"])

    def task(self, task_id: str) -> Task:
        """One task."""
        return cast(Task, self._get(f"/v1/tasks/{task_id}"))

    def ended_task(
        self, task_id: str, *, on_change: Callable[[Task], None] | None = None, poll_s: float = POLL_S
    ) -> Task:
        """One task once it has ended; `on_change` is shown it on the way."""
        while True:
            task = self.task(task_id)
            if on_change is not None:
                on_change(task)
            if task["state"] in ENDED:
                return task
            time.sleep(poll_s)

    def ledger(self) -> dict[str, int]:
        """How many images were accepted and what became of them."""
        return cast(dict[str, int], self._get("/v1/ledger"))

    def status(self) -> dict[str, Any]:
        """The state of the whole system."""
        return cast(dict[str, Any], self._get("/v1/status"))

    def reports(self) -> list[dict[str, Any]]:
        """The usage reports, the newest first."""
        return cast(list[dict[str, Any]], self._get("/v1/reports")["reports"])

    def queues(self) -> dict[str, Any]:
        """How every queue stands."""
        return cast(dict[str, Any], self._get("/v1/queues"))

    def dead_letters(self, *, outcome: str | None = None, limit: int = 50) -> dict[str, Any]:
        """The newest dead letters, of one outcome if given, the counts of all, and whether the broker has any."""
        wanted = {"limit": limit} | ({"outcome": outcome} if outcome else {})
        return cast(dict[str, Any], self._get("/v1/dead-letters", wanted))

    def dead_letter(self, number: int) -> dict[str, Any]:
        """One dead letter with its headers and its body."""
        return cast(dict[str, Any], self._get(f"/v1/dead-letters/{number}"))

    def replay_dead_letter(self, number: int) -> dict[str, Any]:
        """Has a dead letter's work done; twice is once."""
        path = f"/v1/dead-letters/{number}:replay"
        return cast(dict[str, Any], self._json(self._persistently(lambda: self._http.post(path))))

    def replay_dead_letters(self) -> dict[str, int]:
        """Replays all that wait for a person; how many, and how many could not be."""
        return cast(dict[str, int], self._json(self._persistently(lambda: self._http.post("/v1/dead-letters:replay"))))

    def drop_dead_letter(self, number: int) -> None:
        """Forgets a dead letter."""
        self._checked(self._once(lambda: self._http.delete(f"/v1/dead-letters/{number}")))

    def drop_dead_letters(self) -> int:
        """Forgets all that wait for a person; returns how many."""
        return int(self._json(self._once(lambda: self._http.delete("/v1/dead-letters")))["dropped"])

    def readiness(self) -> dict[str, Any]:
        """What `/readyz` answers, also while the gateway is not ready."""
        return cast(dict[str, Any], self._once(lambda: self._http.get("/readyz")).json())

    def _search(self, query: dict[str, Any], limit: int, tags: Sequence[str]) -> Found:
        body = query | {"limit": limit} | ({"filter": {"tags": list(tags)}} if tags else {})
        return cast(Found, self._json(self._once(lambda: self._http.post("/v1/search", json=body))))

    def _get(self, path: str, parameters: Mapping[str, Any] | None = None) -> Any:
        return self._json(self._persistently(lambda: self._http.get(path, params=parameters)))

    def _once(self, send: Callable[[], httpx.Response]) -> httpx.Response:
        try:
            response = send()
        except httpx.TransportError as exc:
            raise UnreachableError(f"no answer from {self.url}: {exc}") from exc
        self._has_answered = True
        return response

    def _persistently(self, send: Callable[[], httpx.Response]) -> httpx.Response:
        """The answer, after as many tries as it takes; only for requests that may be sent twice."""
        for pause_s in self._retry_pauses_s:
            try:
                response = self._once(send)
            except UnreachableError as exc:
                if isinstance(exc.__cause__, httpx.ConnectError) and not self._has_answered:
                    raise
            else:
                if response.status_code not in TRANSIENT_STATUSES:
                    return response
            time.sleep(pause_s)
        return self._once(send)

    def _json(self, response: httpx.Response) -> Any:
        return self._checked(response).json()

    def _checked(self, response: httpx.Response) -> httpx.Response:
        if response.is_success:
            return response
        try:
            problem = response.json()
        except ValueError:
            problem = None
        if not isinstance(problem, dict) or "title" not in problem:
            problem = {"title": response.reason_phrase, "detail": response.text[:500] or response.reason_phrase}
        raise ProblemError({"status": response.status_code} | problem)


class _Sent:
    """Counts what one try has sent."""

    def __init__(self, tell: Callable[[int], None] | None) -> None:
        self._tell = tell
        self._bytes = 0

    def add(self, count: int) -> None:
        self._bytes += count
        if self._tell is not None:
            self._tell(count)

    def take_back(self) -> None:
        if self._bytes:
            self.add(-self._bytes)


class _Tracked:
    """A file that counts what is read of it; as much of the file interface as httpx uses."""

    def __init__(self, file: BinaryIO, sent: _Sent) -> None:
        self._file = file
        self._sent = sent

    def read(self, size: int = -1) -> bytes:
        piece = self._file.read(size)
        self._sent.add(len(piece))
        return piece

    def fileno(self) -> int:
        return self._file.fileno()

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()
