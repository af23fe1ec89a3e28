"""What the fences prove, and when the next ones are sent."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest

from darkroom.contracts.base import Lane
from darkroom.database.upkeep import FenceRecord
from scheduler.reconciler import BACKFILL_PATH, WORK_QUEUES, Deadlines, due_fences, overdue_before, path_of

START = datetime(2026, 5, 4, 12, tzinfo=UTC)
DEADLINE = Deadlines(timedelta(seconds=40), timedelta(seconds=40))
NOW_S = 1000


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def fences(queue: str, *way: tuple[float, float | None]) -> list[FenceRecord]:
    """Fences of a queue, each as the seconds of its sending and its return."""
    return [
        FenceRecord(number, queue, at(sent), None if returned is None else at(returned))
        for number, (sent, returned) in enumerate(way, start=1)
    ]


def every_tick(queue: str, until_s: float = NOW_S, wait_s: float = 0.1) -> list[FenceRecord]:
    """A queue whose fences were sent every 15 s and came back at once."""
    return fences(queue, *((sent, sent + wait_s) for sent in range(0, int(until_s), 15)))


def flowing(*but: str) -> list[FenceRecord]:
    """Every queue but these, with its fences coming back at once."""
    return [one for queue in WORK_QUEUES if queue not in but for one in every_tick(queue)]


# With ticks of 15 s, each of the three stages looks back over its deadline and up to one tick.
FLOWING_OVERDUE_S = 855


@dataclass(frozen=True)
class Case:
    name: str
    lane: Lane
    history: Sequence[FenceRecord]
    overdue_s: float | None


CASES = [
    Case("nothing is known before the first fences", Lane.INTERACTIVE, [], None),
    Case("everything flows", Lane.INTERACTIVE, flowing(), FLOWING_OVERDUE_S),
    Case("the bulk lane has fences of its own", Lane.BULK, flowing(), FLOWING_OVERDUE_S),
    Case(
        "a stopped bulk worker says nothing about the interactive lane",
        Lane.INTERACTIVE,
        flowing("prepare.bulk", "thumbnails.bulk") + fences("prepare.bulk", (0, None)),
        FLOWING_OVERDUE_S,
    ),
    Case(
        "a worker stopped for ten minutes holds the fence: what waits is not lost",
        Lane.INTERACTIVE,
        flowing("prepare") + fences("prepare", (385, 386), (400, None), (430, None), (490, None)),
        385,
    ),
    Case(
        "a worker that never ran proves nothing",
        Lane.INTERACTIVE,
        flowing("embed") + fences("embed", (0, None), (30, None)),
        None,
    ),
    Case(
        "a stopped finalize worker holds the bulk lane",
        Lane.BULK,
        flowing("finalize.bulk") + fences("finalize.bulk", (0, 1), (300, None)),
        None,
    ),
    Case(
        "and the interactive lane",
        Lane.INTERACTIVE,
        flowing("finalize") + fences("finalize", (0, 1), (300, None)),
        None,
    ),
    Case(
        "the slower one of two queues side by side decides",
        Lane.INTERACTIVE,
        flowing("embed") + fences("embed", (300, 890), (891, None)),
        255,
    ),
    Case(
        "a fence that has just come back says nothing before the deadline: the one before it counts",
        Lane.INTERACTIVE,
        flowing("finalize") + fences("finalize", (100, 101), (500, 961)),
        0,
    ),
    Case(
        "the same fence counts when the deadline has passed",
        Lane.INTERACTIVE,
        flowing("finalize") + fences("finalize", (100, 101), (500, 960)),
        405,
    ),
    Case(
        "a purged queue lets the next fence through, after the one that went with the purge",
        Lane.INTERACTIVE,
        flowing("prepare")
        + fences("prepare", (400, None), (430, 430.1), *((s, s + 0.1) for s in range(445, 1000, 15))),
        850,
    ),
    Case(
        "after a flush only fences of later count: everything older than them is overdue",
        Lane.INTERACTIVE,
        [
            one
            for queue in WORK_QUEUES
            for one in fences(queue, (400, None), (430, None), *((s, s + 0.1) for s in range(500, 1000, 15)))
        ],
        860,
    ),
    Case(
        "a long backlog: the fence sent before it came back late, and everything before that fence is judged",
        Lane.INTERACTIVE,
        flowing("prepare") + fences("prepare", (60, 800), (801, None)),
        60,
    ),
    Case(
        "the fence before the backlog is the newest one that came back in time for the next stage",
        Lane.INTERACTIVE,
        flowing("prepare") + fences("prepare", (15, 20), (60, 880), (881, None)),
        15,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_only_what_all_fences_have_passed_is_overdue(case: Case) -> None:
    found = overdue_before(path_of(case.lane), case.history, at(NOW_S), DEADLINE)
    assert found == (None if case.overdue_s is None else at(case.overdue_s))


def test_the_order_of_the_history_does_not_matter() -> None:
    history = flowing()
    path = path_of(Lane.INTERACTIVE)
    assert overdue_before(path, history[::-1], at(NOW_S), DEADLINE) == at(FLOWING_OVERDUE_S)


def test_a_backfill_passes_the_bulk_embedder_and_finalize() -> None:
    history = every_tick("embed.bulk") + every_tick("finalize.bulk")
    assert overdue_before(BACKFILL_PATH, history, at(NOW_S), DEADLINE) == at(900)
    assert overdue_before(BACKFILL_PATH, every_tick("finalize.bulk"), at(NOW_S), DEADLINE) is None


def test_fences_go_through_every_queue_of_the_workflow_and_no_other() -> None:
    assert set(WORK_QUEUES) == {
        *("prepare", "prepare.bulk", "thumbnails", "thumbnails.bulk"),
        *("embed", "embed.bulk", "finalize", "finalize.bulk"),
    }


@pytest.mark.parametrize(
    ("name", "way", "now_s", "is_due"),
    [
        ("the first fence", [], 0, True),
        ("the one before is back", [(0, 1)], 15, True),
        ("one is on its way", [(0, None)], 29, False),
        ("one is lost after 30 s", [(0, None)], 30, True),
        ("the second is given twice as long", [(0, None), (30, None)], 89, False),
        ("and then counts as lost", [(0, None), (30, None)], 90, True),
        ("a slow queue: twice its last wait", [(0, 100), (115, None)], 314, False),
        ("a slow queue: and then lost", [(0, 100), (115, None)], 315, True),
        ("one came back after it was given up: the newer one is still on its way", [(0, 70), (30, None)], 169, False),
        ("and is lost after twice that wait", [(0, 70), (30, None)], 170, True),
        ("all came back at last", [(0, 700), (30, 700), (90, 700)], 705, True),
        ("an old lost one does not count once a newer is back", [(0, None), (30, 31)], 45, True),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_one_fence_is_on_its_way_at_most(
    name: str, way: list[tuple[float, float | None]], now_s: float, is_due: bool
) -> None:
    assert due_fences(fences("prepare", *way), ["prepare"], at(now_s)) == (["prepare"] if is_due else [])


@pytest.mark.parametrize(
    ("name", "way", "now_s", "empty", "is_due"),
    [
        ("gone from empty queues: after 10 s", [(0, None)], 10, {"prepare", "finalize"}, True),
        ("on its way: not before", [(0, None)], 9, {"prepare", "finalize"}, False),
        ("it waits in its queue", [(0, None)], 29, {"finalize"}, False),
        ("it waits on its way back", [(0, None)], 29, {"prepare"}, False),
        (
            "gone after a stop of ten minutes",
            [(0, None), (30, None), (90, None), (210, None), (450, None)],
            600,
            {"prepare", "finalize"},
            True,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_fence_that_waits_nowhere_is_lost(
    name: str, way: list[tuple[float, float | None]], now_s: float, empty: set[str], is_due: bool
) -> None:
    found = due_fences(fences("prepare", *way), ["prepare"], at(now_s), empty=empty)
    assert found == (["prepare"] if is_due else [])


def test_while_nothing_is_late_fences_are_sent_at_every_third_tick() -> None:
    every = timedelta(seconds=13)
    sent: list[FenceRecord] = []
    for now_s in range(0, 61, 5):
        if due_fences(sent, ["prepare"], at(now_s), every=every):
            sent.append(FenceRecord(len(sent) + 1, "prepare", at(now_s), at(now_s + 0.1)))
    assert [one.sent_at for one in sent] == [at(0), at(15), at(30), at(45), at(60)]


def test_finalize_has_a_deadline_of_its_own() -> None:
    deadlines = Deadlines(timedelta(seconds=30), timedelta(seconds=10))
    assert overdue_before(path_of(Lane.INTERACTIVE), flowing(), at(NOW_S), deadlines) == at(885)


@pytest.mark.parametrize(("stop_s", "most"), [(600, 5), (36_000, 11), (86_400, 12)])
def test_a_stopped_worker_gets_a_handful_of_fences_however_long_it_stands(stop_s: int, most: int) -> None:
    history: list[FenceRecord] = []
    numbers = count(1)
    for now_s in range(0, stop_s, 15):
        for queue in due_fences(history, ["prepare"], at(now_s)):
            history.append(FenceRecord(next(numbers), queue, at(now_s), None))
    assert 3 <= len(history) <= most


def test_a_worker_that_stood_for_ten_minutes_has_nothing_sent_again() -> None:
    """Photos were dispatched before and during the stop; the clock runs on, the fences wait with the photos."""
    history = flowing("prepare") + every_tick("prepare", until_s=400)
    numbers = count(1000)
    overdue = []
    for now_s in range(400, 1000, 15):
        for queue in due_fences(history, ["prepare"], at(now_s)):
            history.append(FenceRecord(next(numbers), queue, at(now_s), None))
        known = [one for one in history if one.sent_at <= at(now_s)]
        overdue.append(overdue_before(path_of(Lane.INTERACTIVE), known, at(now_s), DEADLINE))
    assert max(moment for moment in overdue if moment is not None) <= at(390)
