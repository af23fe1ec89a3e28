"""Which requests are computed together, and when."""

import pytest

from embedder.batching import QUERY_TURNS, Buffer, Kind, Outcomes, Sizes

SIZES = Sizes(batch=16, query=4, interactive=32, bulk=32)


def filled(sizes: Sizes = SIZES, *, query: int = 0, interactive: int = 0, bulk: int = 0) -> Buffer[str]:
    buffer: Buffer[str] = Buffer(sizes, wait_s=0.01)
    for kind, count in ((Kind.BULK, bulk), (Kind.INTERACTIVE, interactive), (Kind.QUERY, query)):
        for number in range(count):
            buffer.add(kind, f"{kind.value} {number}", now_s=100.0)
    return buffer


def counts(batch: list[str]) -> tuple[int, int, int]:
    """How many queries, interactive and bulk pictures are in a batch."""
    query, interactive, bulk = (sum(item.startswith(kind.value) for item in batch) for kind in Kind)
    return query, interactive, bulk


@pytest.mark.parametrize(
    ("waiting", "batch"),
    [
        pytest.param({}, (0, 0, 0), id="nothing"),
        pytest.param({"bulk": 3}, (0, 0, 3), id="what is there"),
        pytest.param({"bulk": 40}, (0, 0, 16), id="a full batch of bulk when nobody else waits"),
        pytest.param({"interactive": 40}, (0, 16, 0), id="a full batch of interactive"),
        pytest.param({"interactive": 40, "bulk": 40}, (0, 12, 4), id="a share is kept for bulk"),
        pytest.param({"interactive": 1, "bulk": 40}, (0, 1, 4), id="bulk shrinks to its share while one waits"),
        pytest.param({"interactive": 40, "bulk": 1}, (0, 15, 1), id="what bulk does not need is not kept"),
        pytest.param({"query": 2, "interactive": 40, "bulk": 40}, (2, 0, 0), id="searches go first and alone"),
    ],
)
def test_a_batch_takes_searches_then_interactive_then_bulk(waiting, batch):
    assert counts(filled(**waiting).take()) == batch


def test_each_kind_keeps_its_order_and_nothing_is_lost_or_taken_twice():
    buffer = filled(query=5, interactive=20, bulk=20)
    taken = [item for _ in range(10) for item in buffer.take()]
    assert sorted(taken) == sorted(
        [f"{kind} {n}" for kind, count in (("query", 5), ("interactive", 20), ("bulk", 20)) for n in range(count)]
    )
    for kind in Kind:
        numbers = [int(item.split()[1]) for item in taken if item.startswith(kind.value)]
        assert numbers == sorted(numbers)
    assert buffer.due_at() is None


def test_bulk_goes_on_beside_a_model_that_takes_one_picture_at_a_time():
    buffer = filled(Sizes(batch=1, query=4, interactive=2, bulk=2), interactive=20, bulk=20)
    batches = [counts(buffer.take()) for _ in range(8)]
    assert sum(bulk for _, _, bulk in batches) == 2
    assert all(sum(batch) == 1 for batch in batches)


def test_a_flood_of_searches_cannot_stop_photos():
    buffer = filled(query=100, interactive=1)
    batches = [counts(buffer.take()) for _ in range(QUERY_TURNS + 2)]
    assert batches == [(4, 0, 0)] * QUERY_TURNS + [(0, 1, 0), (4, 0, 0)]


@pytest.mark.parametrize(
    ("waiting", "due_at"),
    [
        pytest.param({}, None, id="nothing is due when nothing waits"),
        pytest.param({"bulk": 1}, 100.01, id="the first waits for company"),
        pytest.param({"interactive": 8, "bulk": 7}, 100.01, id="almost full still waits"),
        pytest.param({"interactive": 8, "bulk": 8}, 100.0, id="a full batch is due at once"),
        pytest.param({"query": 1, "bulk": 1}, 100.0, id="a search is due at once"),
    ],
)
def test_a_batch_is_due_when_it_is_full_or_its_oldest_has_waited(waiting, due_at):
    assert filled(**waiting).due_at() == (pytest.approx(due_at) if due_at else None)


def test_the_wait_counts_from_the_oldest_whatever_its_kind():
    buffer: Buffer[str] = Buffer(SIZES, wait_s=0.01)
    buffer.add(Kind.BULK, "first", 100.0)
    buffer.add(Kind.INTERACTIVE, "second", 100.009)
    assert buffer.due_at() == pytest.approx(100.01)


def test_a_cleared_buffer_holds_nothing():
    buffer = filled(query=1, interactive=1, bulk=1)
    buffer.clear()
    assert buffer.due_at() is None
    assert buffer.take() == []


@pytest.mark.parametrize(("picture_s", "batch"), [(0.002, 16), (0.13, 16), (1.0, 3), (20.0, 1)])
def test_a_slow_model_gets_smaller_batches(picture_s, batch):
    sizes = Sizes.fitting(16, picture_s, held_s=30)
    assert sizes == Sizes(batch, query=4, interactive=2 * batch, bulk=2 * batch)


def test_no_bulk_picture_is_held_longer_than_allowed_beside_a_steady_interactive_load():
    picture_s, held_s = 0.5, 30
    sizes = Sizes.fitting(16, picture_s, held_s)
    buffer = filled(sizes, interactive=sizes.interactive, bulk=sizes.bulk)
    passed_s = 0.0
    while f"bulk {sizes.bulk - 1}" not in (batch := buffer.take()):
        passed_s += len(batch) * picture_s
        for _ in range(counts(batch)[1]):
            buffer.add(Kind.INTERACTIVE, "interactive again", passed_s)
    assert passed_s < held_s


@pytest.mark.parametrize(
    ("waiting", "is_urgent"),
    [({}, False), ({"bulk": 16}, False), ({"interactive": 1, "bulk": 16}, True), ({"query": 1}, True)],
)
def test_only_bulk_may_wait_until_what_is_finished_has_been_handed_over(waiting, is_urgent):
    assert filled(**waiting).is_urgent is is_urgent


def computed(**counts: int) -> Outcomes[str]:
    outcomes: Outcomes[str] = Outcomes()
    for kind in reversed(Kind):
        for number in range(counts.get(kind.value, 0)):
            outcomes.add(kind, f"{kind.value[0]}{number}")
    return outcomes


@pytest.mark.parametrize(
    ("waiting", "order"),
    [
        pytest.param({"bulk": 3}, "b0 b1 b2", id="bulk when nobody else waits"),
        pytest.param({"interactive": 1, "bulk": 3}, "i0 b0 b1 b2", id="an interactive picture does not wait for bulk"),
        pytest.param({"query": 2, "interactive": 1, "bulk": 1}, "q0 q1 i0 b0", id="searches first"),
        pytest.param({"interactive": 7, "bulk": 2}, "i0 i1 i2 b0 i3 i4 i5 b1 i6", id="every fourth turn is bulk's"),
        pytest.param({"interactive": 5}, "i0 i1 i2 i3 i4", id="and nobody's while there is none"),
    ],
)
def test_what_is_computed_is_handed_over_in_the_order_of_the_lanes(waiting, order):
    outcomes = computed(**waiting)
    handed_over = []
    while outcomes:
        handed_over.append(outcomes.take())
    assert " ".join(handed_over) == order


def test_a_picture_that_is_computed_last_is_handed_over_next():
    outcomes = computed(bulk=16)
    outcomes.take()
    outcomes.add(Kind.INTERACTIVE, "interactive")
    assert outcomes.take() == "interactive"


def test_cleared_outcomes_are_told_and_gone():
    outcomes = computed(query=1, interactive=1, bulk=1)
    assert outcomes.clear() == ["q0", "i0", "b0"]
    assert not outcomes
