"""Finding the nearest of 100,000 pictures: how long it takes and how many of the true nearest are found.

    python benchmarks/search.py [--vectors 1000000]

The query is the gateway's own (`darkroom.database.vectors.nearest`), through pgvector's HNSW, with and without filters
by a tag that few pictures have. Beside it an exact scan in NumPy and an HNSW in this process (hnswlib), which filter
nothing and know no pictures, only vectors. Then a text query from end to end, over HTTP, with an embedder whose text
tower has ViT-B/32's shapes: gateway, broker, worker, database.

Vectors have 512 numbers and lie as those of pictures do, near a surface of few dimensions: isotropic noise has no
neighbours worth finding. Recall is against the exact ten nearest among those that the filter lets through.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for NumPy: a server that searches has other searches to do, too
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import hnswlib
import httpx
import numpy as np
import psycopg
from embeddings import make_model
from numpy.typing import NDArray
from pgvector import HalfVector
from pgvector.psycopg import register_vector
from rounds import Comparison, Ratio, arguments, interleaved, publish
from sqlalchemy import Engine, Row, text

from darkroom.contracts.messages import ModelReference, RegisterModel
from darkroom.database import vectors
from darkroom.database.engine import migrate, sync_engine
from darkroom.database.images import ImageFilter
from darkroom.settings import DatabaseSettings
from darkroom_cli.servers import ChildProcess, PostgresServer, RedisServer, reserve_port

DIM, LATENT = 512, 24
"""Numbers of a vector, and of what decides them."""
NEAREST, QUERIES = 10, 60
"""How many are asked for, and how often in a round."""
TAGS = {"1 in 10": 10, "1 in 150": 150, "1 in 1,000": 1000}
TEXTS = 40

Vectors = NDArray[np.float32]


def made(count: int, seed: int) -> Vectors:
    """Unit vectors, float32, (count, 512), on a curved surface of few dimensions, with some noise."""
    shape = np.random.default_rng(0)
    bend, out = shape.normal(size=(LATENT, 4 * LATENT)), shape.normal(size=(4 * LATENT, DIM))
    random, blocks = np.random.default_rng(seed), []
    for start in range(0, count, 50_000):
        size = min(50_000, count - start)
        points = np.tanh(random.normal(size=(size, LATENT)) @ bend / 4) @ out
        points += 0.5 * points.std() * random.normal(size=points.shape)
        blocks.append((points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32))
    return np.concatenate(blocks)


def fill(dsn: str, model: ModelReference, stored: Vectors) -> float:
    """Writes that many ready pictures with their vectors, and has the index made; returns the seconds of the latter."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        register_vector(connection)
        connection.execute(f"DROP INDEX embeddings_hnsw_{model.id[-12:]}")
        connection.execute(
            "INSERT INTO batches (id, total, ready, pending) VALUES (gen_random_uuid(), %s, %s, 0)", [len(stored)] * 2
        )
        connection.execute(
            """
            INSERT INTO originals (sha256, bytes, lane, status)
            SELECT lpad(to_hex(n), 64, '0'), 1, 'bulk', 'ready' FROM generate_series(0, %s) AS n
            """,
            [len(stored) - 1],
        )
        tags = ", ".join(f"CASE WHEN n %% {every} = 0 THEN '{tag}' END" for tag, every in TAGS.items())
        connection.execute(
            f"""
            INSERT INTO images (id, sha256, batch_id, state, lane, tags, duplicate)
            SELECT gen_random_uuid(), lpad(to_hex(n), 64, '0'), (SELECT id FROM batches), 'ready', 'bulk',
                array_remove(ARRAY[{tags}], NULL), false FROM generate_series(0, %s) AS n
            """,
            [len(stored) - 1],
        )
        command = "COPY embeddings (model_id, sha256, vector) FROM STDIN WITH (FORMAT BINARY)"
        with connection.cursor() as cursor, cursor.copy(command) as copy:
            copy.set_types(["text", "text", "halfvec"])
            for number, vector in enumerate(stored):
                copy.write_row((model.id, f"{number:064x}", HalfVector(vector)))
    engine = sync_engine(DatabaseSettings(database_url=dsn.replace("postgresql://", "postgresql+psycopg://")))
    begun = time.monotonic()
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL maintenance_work_mem = '2GB'"))
        vectors.register_model(connection, RegisterModel(model=model, dim=DIM))
    took_s = time.monotonic() - begun
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
    engine.dispose()
    return took_s


def exact(stored: Vectors, queries: Vectors, every: int = 1) -> list[set[int]]:
    """The numbers of the nearest to each query, among every so many."""
    kept = stored[::every]
    return [set(np.argsort(-(kept @ query))[:NEAREST] * every) for query in queries]


def timed(search: Callable[[Vectors], Sequence[int]], queries: Vectors, truth: list[set[int]]) -> Mapping[str, float]:
    """Milliseconds of a query, and the share of the true nearest that were found."""
    took_ms, hits = [], 0
    for query, wanted in zip(queries, truth, strict=True):
        begun = time.monotonic()
        found = search(query)
        took_ms.append(1000 * (time.monotonic() - begun))
        hits += len(wanted.intersection(map(int, found)))
    return _cuts(took_ms) | {"recall": hits / sum(map(len, truth))}


def _cuts(took_ms: Sequence[float]) -> dict[str, float]:
    cuts = statistics.quantiles(took_ms, n=20, method="inclusive")
    return {"p50": cuts[9], "p95": cuts[18]}


def through_database(engine: Engine, model: Row[Any], tag: str | None, query: Vectors) -> list[int]:
    """What the gateway would answer, as numbers."""
    with engine.connect() as connection:
        wanted = ImageFilter(tags=(tag,) if tag else ())
        found = vectors.nearest(connection, model, query.tolist(), wanted, NEAREST)
    return [int(row.sha256, 16) for row in found]


def by_text(http: httpx.Client) -> Mapping[str, float]:
    """Milliseconds of a text query over HTTP."""
    took_ms = []
    for number in range(TEXTS):
        begun = time.monotonic()
        answer = http.post("/v1/search", json={"text": f"a red circle and {number} stars", "limit": NEAREST})
        took_ms.append(1000 * (time.monotonic() - begun))
        if len(answer.raise_for_status().json()["results"]) != NEAREST:
            raise RuntimeError("a search found too little")
    return _cuts(took_ms)


@contextmanager
def services(folder: Path, postgres: PostgresServer) -> Iterator[httpx.Client]:
    """Gateway, embedder and finalize with a model of ViT-B/32's shapes; ends when the model is registered."""
    with ExitStack() as ends:
        redis = RedisServer(folder / "redis")
        redis.start()
        ends.callback(redis.stop)
        make_model(folder / "vit-b-32")
        port = reserve_port()
        env = {name: value for name, value in os.environ.items() if not name.startswith(("DARKROOM_", "OTEL_"))}
        env |= {
            "DARKROOM_DATABASE_URL": postgres.url,
            "DARKROOM_RESULT_URL": redis.url,
            "DARKROOM_BROKER_URL": redis.url,
            "DARKROOM_BLOB_URL": (folder / "blobs").as_uri(),
            "DARKROOM_HTTP_PORT": str(port),
            "DARKROOM_GRPC_PORT": "0",
            "DARKROOM_MODEL": str(folder / "vit-b-32"),
            "DARKROOM_MODEL_THREADS": "1",
        }
        for number, command in enumerate(
            (["darkroom-gateway"], ["darkroom-embedder"], ["darkroom-scheduler", "finalize"])
        ):
            program, *rest = command
            argv = [str(Path(sys.executable).with_name(program)), *rest]
            process = ChildProcess(argv, log=folder / f"{number}.log", env=env, grace_s=40)
            process.start()
            ends.callback(process.stop)
        yield ends.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60))


def registered(engine: Engine) -> ModelReference:
    """The embedder's model, when it has registered."""
    while True:
        with engine.connect() as connection:
            if model := vectors.active_model(connection):
                return ModelReference(id=model.id, source=model.source)
        time.sleep(0.5)


def main() -> None:
    """Prints milliseconds and recall of each way, and the text query's."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--vectors", type=int, default=100_000)
    chosen = arguments(__doc__, parser)
    stored, queries = made(chosen.vectors, 1), made(QUERIES, 2)
    with tempfile.TemporaryDirectory(prefix="dr-", ignore_cleanup_errors=True) as name, ExitStack() as ends:
        folder = Path(name)
        postgres = PostgresServer(folder / "postgres")
        postgres.start()
        ends.callback(postgres.stop)
        engine = sync_engine(DatabaseSettings(database_url=postgres.url))
        ends.callback(engine.dispose)
        migrate(engine)
        http = ends.enter_context(services(folder, postgres))
        built_s = fill(postgres.dsn, registered(engine), stored)
        with engine.connect() as connection:
            model = vectors.active_model(connection)
        if model is None:
            raise RuntimeError("no model is active")
        index = hnswlib.Index("cosine", DIM)
        index.init_index(chosen.vectors, ef_construction=64, M=16)
        index.set_num_threads(os.cpu_count() or 1)
        index.add_items(stored)
        index.set_ef(100)
        index.set_num_threads(1)
        truth = exact(stored, queries)
        ways: dict[str, Callable[[], Mapping[str, float]]] = {
            "ours, no filter": partial(timed, partial(through_database, engine, model, None), queries, truth)
        }
        for tag, every in TAGS.items():
            search = partial(through_database, engine, model, tag)
            ways[f"ours, a tag of {tag}"] = partial(timed, search, queries, exact(stored, queries, every))
        ways["exact scan, NumPy"] = partial(
            timed, lambda query: list(np.argsort(-(stored @ query))[:NEAREST]), queries, truth
        )
        ways["HNSW in process, hnswlib"] = partial(
            timed, lambda query: list(index.knn_query(query, NEAREST)[0][0]), queries, truth
        )
        ways["ours, text over HTTP, encode included"] = partial(by_text, http)
        interleaved(ways, 1)
        rounds = interleaved(ways, chosen.rounds)
    count = f"{chosen.vectors:,} vectors"
    faster = (Ratio("exact / ours, no filter", "exact scan, NumPy", "ours, no filter"),)
    comparisons = [
        Comparison.of(f"Median of a query over {count}", "ms", rounds, "p50", faster),
        Comparison.of(f"95 of 100 queries over {count} take less than", "ms", rounds, "p95"),
        Comparison.of(f"Share of the {NEAREST} nearest that are found, {count}", "of 1", rounds, "recall"),
    ]
    facts = {"index built in, s": round(built_s, 1), "vectors": chosen.vectors}
    publish("search" if chosen.vectors <= 100_000 else "search-large", comparisons, chosen.results, facts)


if __name__ == "__main__":
    main()
