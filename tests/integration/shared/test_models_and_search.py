"""Models, their vectors and nearest neighbours, on a real PostgreSQL with pgvector."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from database_steps import accept, delete, finish, run, send, sha, together
from numpy.typing import NDArray
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import DBAPIError

from darkroom.contracts.messages import ModelReference, RegisterModel
from darkroom.database import dispatch, images, upkeep, vectors
from darkroom.database.images import ImageFilter

DIM = 16
OLD, NEW = "old@0123456789ab", "new@ba9876543210"
ROWS = 4000
RARE_EVERY = 400
FLOAT16 = 2e-3


def register(engine: Engine, model_id: str, dim: int = DIM) -> str:
    with engine.begin() as connection:
        registration = RegisterModel(model=ModelReference(id=model_id, source="bundled"), dim=dim)
        return vectors.register_model(connection, registration)


def states(engine: Engine) -> dict[str, str]:
    with engine.connect() as connection:
        return {row.id: row.state for row in vectors.all_models(connection)}


def store(engine: Engine, model_id: str, sha256: str, vector: Sequence[float]) -> bool:
    with engine.begin() as connection:
        return vectors.store_vector(connection, model_id, sha256, vector)


def axis(number: int, dim: int = DIM) -> list[float]:
    return [1.0 if each == number else 0.0 for each in range(dim)]


def ready(engine: Engine, *names: str, tags: Sequence[str] = ()) -> list[Any]:
    shas = [sha(name) for name in names]
    upload = accept(engine, *shas, tags=tags)
    send(engine)
    for sha256 in shas:
        finish(engine, sha256)
    return [file.image_id for file in upload.files]


def search(engine: Engine, vector: Sequence[float], limit: int = 10, **wanted: Any) -> list[Any]:
    with engine.begin() as connection:
        model = vectors.active_model(connection)
        assert model is not None
        return list(vectors.nearest(connection, model, vector, ImageFilter(**wanted), limit))


def test_the_first_model_is_active_and_a_later_one_fills(engine: Engine) -> None:
    assert register(engine, OLD) == "active"
    assert register(engine, NEW, dim=8) == "filling"
    assert register(engine, OLD) == "active"
    assert states(engine) == {OLD: "active", NEW: "filling"}


def test_of_two_first_models_that_register_at_once_one_is_active(engine: Engine) -> None:
    assert together(lambda: register(engine, OLD), lambda: register(engine, NEW)) == []

    assert sorted(states(engine).values()) == ["active", "filling"]


def test_a_model_id_that_could_break_out_of_the_index_is_refused(engine: Engine) -> None:
    registration = RegisterModel.model_construct(
        model=ModelReference.model_construct(id="x'; DROP TABLE images; --", source="bundled"), dim=3
    )
    with pytest.raises(ValueError, match="not a model id"), engine.begin() as connection:
        vectors.register_model(connection, registration)


def test_activating_retires_the_model_before_and_can_be_undone(engine: Engine) -> None:
    register(engine, OLD)
    register(engine, NEW)
    with engine.begin() as connection:
        vectors.activate_model(connection, NEW)
    assert states(engine) == {OLD: "retired", NEW: "active"}

    # Started again, the old one first has to catch up with what was uploaded since.
    assert register(engine, OLD) == "filling"
    with engine.begin() as connection:
        vectors.activate_model(connection, OLD)
    assert states(engine) == {OLD: "active", NEW: "retired"}


def test_activating_an_unknown_model_leaves_searches_as_they_are(engine: Engine) -> None:
    register(engine, OLD)
    with pytest.raises(LookupError, match="nowhere@000000000000"), engine.begin() as connection:
        vectors.activate_model(connection, "nowhere@000000000000")

    assert states(engine) == {OLD: "active"}


def test_a_backfill_gives_every_finished_original_a_vector_of_the_new_model(engine: Engine) -> None:
    ready(engine, "a", "b", "c", "d", "e")
    accept(engine, sha("unfinished"))
    register(engine, OLD)
    for name in "abcde":
        store(engine, OLD, sha(name), axis(1))
    register(engine, NEW)

    with engine.begin() as connection:
        # The limit bounds what is under way, whichever originals a plan comes upon first.
        for limit, planned in ((2, 2), (2, 2), (3, 3), (1, 3), (10, 5)):
            assert vectors.plan_backfill(connection, NEW, limit) == 5
            assert dispatch.backlog(connection).backfills == planned
        assert vectors.plan_backfill(connection, OLD, limit=2) == 0
    with engine.begin() as connection:
        leased = dispatch.lease_backfills(connection, 10, lease_s=60)
        assert dispatch.lease_backfills(connection, 10, lease_s=60) == []
    assert {one.sha256 for one in leased} == {sha(name) for name in "abcde"}
    assert {(one.model_id, one.generation, one.recipe) for one in leased} == {(NEW, 1, "r1-webp")}
    with engine.begin() as connection:
        dispatch.stamp_backfills(connection, leased)
    for one in leased[:-1]:
        store(engine, NEW, one.sha256, axis(2))
    with engine.begin() as connection:
        assert vectors.plan_backfill(connection, NEW, limit=10) == 1
        assert upkeep.requeue_backfills(connection, upkeep.database_now(connection)) == 1
        [again] = dispatch.lease_backfills(connection, 10, lease_s=60)
    assert (again.sha256, again.generation) == (leased[-1].sha256, 2)
    store(engine, NEW, again.sha256, axis(2))
    with engine.connect() as connection:
        assert {row.id: (row.covered, row.total) for row in vectors.all_models(connection)} == {
            OLD: (5, 5),
            NEW: (5, 5),
        }
        assert dispatch.backlog(connection).backfills == 0


def test_deleted_photos_are_not_filled_in(engine: Engine) -> None:
    [image] = ready(engine, "a")
    register(engine, OLD)
    register(engine, NEW)
    delete(engine, image)

    with engine.begin() as connection:
        assert vectors.plan_backfill(connection, NEW, limit=10) == 0


def test_two_dispatchers_never_lease_the_same_backfill(engine: Engine) -> None:
    names = [str(number) for number in range(20)]
    ready(engine, *names)
    register(engine, OLD)
    with engine.begin() as connection:
        vectors.plan_backfill(connection, OLD, limit=100)
    taken: list[str] = []

    def take() -> None:
        while True:
            with engine.begin() as connection:
                some = dispatch.lease_backfills(connection, 3, lease_s=60)
            if not some:
                return
            taken.extend(one.sha256 for one in some)

    assert together(take, take, take) == []
    assert sorted(taken) == sorted(sha(name) for name in names)


def test_a_vector_is_stored_once_and_read_back_as_float16(engine: Engine) -> None:
    [image] = ready(engine, "a")
    register(engine, OLD)
    vector = unit(np.arange(1, DIM + 1, dtype=np.float64)).tolist()

    assert store(engine, OLD, sha("a"), axis(3))
    assert store(engine, OLD, sha("a"), vector)

    with engine.connect() as connection:
        found = vectors.vector_of_image(connection, OLD, image)
        assert vectors.vector_of_image(connection, NEW, image) is None
        shown = images.find_image(connection, image)
    assert found == pytest.approx(vector, abs=FLOAT16)
    assert shown is not None
    assert shown.embeddings == [{"model": OLD, "dim": DIM}]


def test_a_vector_of_an_unknown_model_or_photo_is_not_stored(engine: Engine) -> None:
    ready(engine, "a")
    register(engine, OLD)

    assert not store(engine, NEW, sha("a"), axis(0))
    assert not store(engine, OLD, sha("nobody"), axis(0))


def test_a_vector_of_the_wrong_length_is_refused(engine: Engine) -> None:
    ready(engine, "a")
    register(engine, OLD)

    with pytest.raises(DBAPIError, match="dimensions"):
        store(engine, OLD, sha("a"), axis(0, DIM + 1))


def test_two_models_of_different_lengths_live_side_by_side(engine: Engine) -> None:
    [image] = ready(engine, "a")
    register(engine, OLD)
    register(engine, NEW, dim=8)
    store(engine, OLD, sha("a"), axis(0))
    store(engine, NEW, sha("a"), axis(7, 8))

    assert [row.id for row in search(engine, axis(0))] == [image]
    with engine.begin() as connection:
        vectors.activate_model(connection, NEW)
    [found] = search(engine, axis(7, 8))
    assert found.score == pytest.approx(1, abs=FLOAT16)


def test_the_nearest_come_first_with_their_cosine(engine: Engine) -> None:
    ids = dict(zip("abc", ready(engine, "a", "b", "c"), strict=True))
    register(engine, OLD)
    store(engine, OLD, sha("a"), axis(0))
    store(engine, OLD, sha("b"), unit(np.array([1.0, 1.0] + [0.0] * (DIM - 2))).tolist())
    store(engine, OLD, sha("c"), axis(1))

    found = search(engine, axis(0))

    assert [row.id for row in found] == [ids["a"], ids["b"], ids["c"]]
    assert [row.score for row in found] == pytest.approx([1, 0.5**0.5, 0], abs=FLOAT16)


def test_a_deleted_image_and_one_in_flight_are_not_found(engine: Engine) -> None:
    kept, gone = ready(engine, "a", "b")
    register(engine, OLD)
    accept(engine, sha("c"))
    for name in "abc":
        store(engine, OLD, sha(name), axis(0))
    delete(engine, gone)

    assert [row.id for row in search(engine, axis(0))] == [kept]


def unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    return vector / np.linalg.norm(vector, axis=-1, keepdims=True)


def fill(engine: Engine) -> NDArray[np.float64]:
    """Many ready photos with clustered vectors, every RARE_EVERY-th tagged `rare`; returns the vectors, (ROWS, DIM)."""
    chance = np.random.default_rng(7)
    centres = chance.normal(size=(40, DIM))
    made = unit(centres[chance.integers(0, 40, ROWS)] + 0.4 * chance.normal(size=(ROWS, DIM)))
    numbers = {"n": ROWS, "rare": RARE_EVERY}
    with engine.begin() as connection:
        for statement in (
            "INSERT INTO originals (sha256, bytes, lane, status, recipe) "
            "SELECT lpad(to_hex(n), 64, '0'), 1, 'bulk', 'ready', 'r1-webp' FROM generate_series(0, :n - 1) n",
            "INSERT INTO batches (id, total, ready, pending) VALUES (gen_random_uuid(), :n, :n, 0)",
            "INSERT INTO images (id, sha256, batch_id, state, lane, tags, duplicate) "
            "SELECT lpad(to_hex(n), 32, '0')::uuid, lpad(to_hex(n), 64, '0'), b.id, 'ready', 'bulk', "
            "CASE n % :rare WHEN 0 THEN '{rare}' ELSE '{common}' END::text[], false "
            "FROM generate_series(0, :n - 1) n, batches b",
        ):
            connection.execute(text(statement), numbers)
    register(engine, OLD)
    rows = [{"sha": f"{n:064x}", "vector": json.dumps(vector.tolist())} for n, vector in enumerate(made)]
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO embeddings (model_id, sha256, vector) SELECT :model, r.sha, r.vector::halfvec "
                "FROM json_to_recordset(:rows) AS r (sha text, vector text)"
            ),
            {"model": OLD, "rows": json.dumps(rows)},
        )
    for table in ("originals", "images", "embeddings"):
        run(engine, f"ANALYZE {table}")
    return made


def plan_of_search(engine: Engine, vector: Sequence[float], **wanted: Any) -> str:
    """The plan of the very statement that `nearest` sends."""
    sent: list[tuple[str, Any]] = []

    def keep(connection: object, cursor: object, statement: str, parameters: object, *_: object) -> None:
        sent.append((statement, parameters))

    with engine.begin() as connection:
        model = vectors.active_model(connection)
        assert model is not None
        event.listen(connection, "before_cursor_execute", keep)
        vectors.nearest(connection, model, vector, ImageFilter(**wanted), 10)
        event.remove(connection, "before_cursor_execute", keep)
        statement, parameters = sent[-1]
        return "\n".join(row[0] for row in connection.exec_driver_sql(f"EXPLAIN {statement}", parameters))


@pytest.mark.parametrize("exact_within", [0, 100], ids=["by the index", "exactly"])
def test_a_search_through_many_photos_uses_the_index_of_its_model_and_finds_rare_tags(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, exact_within: int
) -> None:
    monkeypatch.setattr(vectors, "EXACT_WITHIN", exact_within)
    made = fill(engine)
    queries = unit(made[::500] + 0.05)

    index = "embeddings_hnsw_0123456789ab"
    assert index in plan_of_search(engine, queries[0].tolist())
    if exact_within:
        assert index not in plan_of_search(engine, queries[0].tolist(), tags=("rare",))

    overlaps = []
    for query in queries:
        best = np.argsort(-(made @ query))[:10]
        found = [row.id.int for row in search(engine, query.tolist())]
        overlaps.append(len(set(found) & set(best.tolist())))
        # A tag that one photo in 400 has: all of them are found, in the right order.
        rare = np.arange(0, ROWS, RARE_EVERY)
        expected = rare[np.argsort(-(made[rare] @ query))]
        found_rare = search(engine, query.tolist(), tags=("rare",))
        assert sorted(row.id.int for row in found_rare) == sorted(expected.tolist())
        scores = [row.score for row in found_rare]
        assert scores == sorted(scores, reverse=True)
    assert np.mean(overlaps) >= 9
    assert len(search(engine, queries[0].tolist(), limit=50, tags=("common",))) == 50
    assert search(engine, queries[0].tolist(), tags=("rare", "common")) == []
