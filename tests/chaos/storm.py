"""The storm: clients upload while one fault after the other strikes, then everything must come right by itself."""

import hashlib
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from queue import PriorityQueue

import httpx
from darkroom_house import House, OverdueError
from faults import KINDS, Fault, Struck, missed
from storm_photos import StormPhoto, storm_photo
from storm_plan import Strike, plan, share

CLIENTS = 6

RETRIED = frozenset({500, 502, 503, 504, 507})
"""What a good client sends again, under the same key. 500 is an error that nobody foresaw: the verdict counts them."""

MAX_PAUSE_S = 2.0
"""However long `Retry-After` is: causes last for seconds here."""

ACCEPTED_WITHIN_S = 240.0

COMPANY = 2
COMPANY_WITHIN_S = 1.5
"""A strike waits so long for more than one photo to harm; then one is enough."""

ANOTHER_AFTER_S = 2.0
"""One more upload is let in when all of a strike's share went by before it could strike."""

ARMED_AGAIN_AFTER_S = 10.0

SETTLED_WITHIN_S = 600.0

SAID_EVERY_S = 10.0


@dataclass(frozen=True)
class StormOptions:
    """`pace_s`: seconds between the beginnings of two strikes, at least, over which a strike's uploads are spread.

    Raises `ValueError` when there are not two uploads for each strike and two more.
    """

    broker: str
    seed: int
    uploads: int
    kinds: Sequence[str]
    strikes: int
    longest_hold_s: float = 3.0
    pace_s: float = 0.0

    def __post_init__(self) -> None:
        enough = 2 * (self.strikes + 1)
        if self.uploads < enough:
            raise ValueError(f"{self.uploads} uploads are too few for {self.strikes} strikes: send {enough}")


@dataclass(frozen=True)
class Accepted:
    """A 202 as its client saw it."""

    number: int
    image_id: str
    sha256: str


class Clients:
    """Threads that upload one photo after the other, each until its 202; so many as were let in, when they are due."""

    def __init__(self, url: str, seed: int, uploads: int) -> None:
        self._url = url
        self._seed = seed
        self._uploads = uploads
        self._due: PriorityQueue[float] = PriorityQueue()
        self._abandoned = threading.Event()
        self._turn = threading.Lock()
        self._next = 0
        self._let_in = 0
        self.accepted: list[Accepted] = []
        self.answers: Counter[str] = Counter()
        """How often each status, or a broken connection, was met."""
        self._pool = ThreadPoolExecutor(CLIENTS, "client")
        self._runs: list[Future[None]] = [self._pool.submit(self._run) for _ in range(CLIENTS)]

    @property
    def left(self) -> int:
        """How many uploads were not let in yet."""
        return self._uploads - self._let_in

    def let_in(self, count: int, over_s: float = 0.0) -> int:
        """Lets so many more uploads begin, spread evenly over so many seconds; returns how many there still were."""
        count, now = min(count, self.left), time.monotonic()
        self._let_in += count
        for turn in range(count):
            self._due.put(now + over_s * turn / count)
        return count

    def finish(self) -> None:
        """Lets all others in; returns when every photo was accepted. Raises what came in a client's way."""
        self.let_in(self.left)
        for _ in range(CLIENTS):
            self._due.put(math.inf)  # each finds that there is nothing more to send
        for run in self._runs:
            run.result()
        self._pool.shutdown()

    def abandon(self) -> None:
        """Ends them wherever they are: the storm failed."""
        self._abandoned.set()
        for _ in range(CLIENTS):
            self._due.put(math.inf)
        self._pool.shutdown()

    def check(self) -> None:
        """Raises what came in a client's way so far."""
        for run in self._runs:
            if run.done():
                run.result()

    def _run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=20, trust_env=False) as http:
            while True:
                due = self._due.get()
                if math.isinf(due) or self._abandoned.wait(max(0.0, due - time.monotonic())):
                    return
                with self._turn:
                    number, self._next = self._next, self._next + 1
                photo = storm_photo(self._seed, number)
                image = self._upload(http, photo)
                with self._turn:
                    self.accepted.append(image)

    def _upload(self, http: httpx.Client, photo: StormPhoto) -> Accepted:
        deadline = time.monotonic() + ACCEPTED_WITHIN_S
        key = f"storm-{self._seed}-{photo.number}"
        while True:
            pause_s = 0.3
            try:
                answer = http.post(
                    "/v1/images",
                    files={"file": (photo.filename, photo.data)},
                    data={"lane": photo.lane},
                    headers={"Idempotency-Key": key},
                )
            except httpx.TransportError as error:
                self._count(type(error).__name__)
            else:
                self._count(str(answer.status_code))
                if answer.status_code == 202:
                    return Accepted(
                        photo.number, answer.json()["images"][0]["id"], hashlib.sha256(photo.data).hexdigest()
                    )
                if answer.status_code not in RETRIED:
                    raise RuntimeError(f"{photo.filename} was answered {answer.status_code}: {answer.text}")
                pause_s = float(answer.headers.get("Retry-After", pause_s))
            if time.monotonic() > deadline or self._abandoned.wait(min(pause_s, MAX_PAUSE_S)):
                raise OverdueError(f"{photo.filename} was not accepted within {ACCEPTED_WITHIN_S:g} s")

    def _count(self, answer: str) -> None:
        with self._turn:
            self.answers[answer] += 1


@dataclass
class Course:
    """How a storm went."""

    struck: list[Struck] = field(default_factory=list)
    accepted: list[Accepted] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    took_s: float = 0.0
    """Until the last cause was gone, with every process running again, and the last upload was accepted."""
    recovered_s: float = 0.0
    """From then until every photo was ready or failed."""
    whole_s: float = 0.0
    """From then until every blob of every ready photo had been looked at and found whole."""
    overdue: list[str] = field(default_factory=list)
    """What did not come right in time, in sentences."""


def run_storm(house: House, options: StormOptions, say: Callable[[str], None] = print) -> Course:
    """Uploads and strikes as planned, then waits until all has settled; what does not is in the course's `overdue`."""
    strikes = plan(options.seed, options.kinds, options.strikes, options.longest_hold_s)
    clients = Clients(house.url, options.seed, options.uploads)
    course = Course(accepted=clients.accepted, answers=clients.answers)
    begun = time.monotonic()
    try:
        for strike in strikes:
            time.sleep(max(0.0, begun + (strike.number - 1) * options.pace_s - time.monotonic()))
            struck = _strike(house, strike, len(strikes), clients, options.pace_s, begun)
            course.struck.append(struck)
            say(f"{strike.number:>4}/{len(strikes)}  {len(course.accepted):>5} accepted  {line_of(struck)}")
        clients.finish()
    except BaseException:
        clients.abandon()
        raise
    house.await_all()
    over_at, ended = datetime.now(UTC), time.monotonic()
    course.took_s = ended - begun
    say(f"the storm is over after {course.took_s:.0f} s, {len(course.accepted)} photos were accepted")
    _settle(lambda: unfinished(house), "photos and events are unfinished", ended, course, say)
    course.recovered_s = time.monotonic() - ended
    _settle(lambda: unchecked(house, over_at), "photos have blobs that were not looked at since", ended, course, say)
    course.whole_s = time.monotonic() - ended
    return course


def _settle(count: Callable[[], int], what: str, ended: float, course: Course, say: Callable[[str], None]) -> None:
    begun = said = time.monotonic()
    while left := count():
        now = time.monotonic()
        if now > said + SAID_EVERY_S:
            say(f"{now - ended:6.0f} s after the end: {left} {what}")
            said = now
        if now > begun + SETTLED_WITHIN_S:
            course.overdue.append(f"{left} {what}, {now - ended:.0f} s after the end")
            return
        time.sleep(0.5)
    say(f"{time.monotonic() - ended:6.0f} s after the end: 0 {what}")


def line_of(struck: Struck) -> str:
    """A strike as a line of a table."""
    work = ", ".join(f"{count} {what}" for what, count in sorted(struck.in_flight.items()))
    return f"{struck.at_s:6.1f} s  {struck.kind:<34} {work:<32} {struck.hit}"


def _strike(house: House, strike: Strike, strikes: int, clients: Clients, pace_s: float, begun: float) -> Struck:
    fault = KINDS[strike.kind](house, random.Random(strike.seed), strike.hold_s)
    since = datetime.now(UTC)
    fault.arm()
    clients.let_in(share(clients.left, strikes - strike.number + 1) - 1, pace_s)
    while True:
        work = _await_work(fault, since, clients)
        at = time.monotonic()
        try:
            hit = fault.strike(lambda: clients.let_in(1))
        except missed(house):
            continue
        return Struck(round(at - begun, 1), strike.kind, dict(work), hit, round(time.monotonic() - at, 1))


def _await_work(fault: Fault, since: datetime, clients: Clients) -> Counter[str]:
    """What is in flight when the fault may strike. Raises `RuntimeError` when nothing is left that it could harm."""
    begun = now = time.monotonic()
    another_at, armed_at = begun + ANOTHER_AFTER_S, begun + ARMED_AGAIN_AFTER_S
    while (work := fault.work(since)).total() < (COMPANY if now < begun + COMPANY_WITHIN_S else 1):
        clients.check()
        now = time.monotonic()
        if now > another_at:
            another_at = now + ANOTHER_AFTER_S
            if not clients.let_in(1) and now > begun + SETTLED_WITHIN_S / 2:
                raise RuntimeError(f"no upload was left that {fault} could harm")
        if now > armed_at:
            armed_at = now + ARMED_AGAIN_AFTER_S
            fault.arm()
        time.sleep(fault.poll_s)
    return work


UNFINISHED = """
    SELECT 1 FROM images WHERE state = 'in_flight'
    UNION ALL SELECT 1 FROM originals WHERE status NOT IN ('ready', 'failed')
    UNION ALL SELECT 1 FROM events WHERE published_at IS NULL
"""

UNCHECKED = """
    SELECT 1 FROM originals WHERE status <> 'failed' AND (status <> 'ready' OR checked_at < %s)
"""


def unfinished(house: House) -> int:
    """How much is under way: also a photo that is rebuilt and an event that was not published."""
    return _count(house, UNFINISHED)


def unchecked(house: House, since: datetime) -> int:
    """How many ready photos' blobs were not found whole since then."""
    return _count(house, UNCHECKED, since)


def _count(house: House, found: str, *parameters: object) -> int:
    rows = house.rows(f"SELECT count(*) FROM ({found}) AS left_over", *parameters)
    return int(str(rows[0][0])) if rows else 1  # while the database is away, nothing is said to be over
