"""What keeping traces costs: taking exports apart, the bytes that stay, the rows that the writer brings to PostgreSQL.

    .venv/bin/python benchmarks/traces.py

The spans have the names, attributes and groups of a real photo's; each service exports those of ten photos at once.
"""

import secrets
import tempfile
import threading
import time
import zlib
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from sqlalchemy import func, select

from darkroom.database.engine import migrate, sync_engine
from darkroom.database.tables import trace_rows
from darkroom.database.traces import read_rows
from darkroom.settings import DatabaseSettings
from darkroom_cli.servers import PostgresServer
from gateway.otlp import rows_of, spans_of
from gateway.trace_store import TraceStore

PHOTOS, AT_ONCE = 2000, 10
STEPS = {
    "gateway": ("POST /v1/images", "receive upload", "commit upload", "wait dispatch", "dispatch", "publish prepare"),
    "thumbnailer": (
        *("wait prepare", "process prepare", "get blob", "decode", "encode large", "encode proxy", "put blob"),
        *("put blob", "publish thumbnails", "publish embed", "wait thumbnails", "process thumbnails", "get blob"),
        *("get blob", "decode", "encode medium", "encode small", "describe", "put blob", "put blob", "put blob"),
    ),
    "embedder": (
        *("wait embed", "process embed", "wait batch", "compute batch", "get blob", "preprocess", "forward"),
        *("put blob", "wait turn", "publish finalize"),
    ),
    "scheduler": (
        *("wait finalize", "process finalize", "get blob", "get blob", "transaction", "publish image.ready"),
        "publish batch.completed",
    ),
}


def exports() -> list[bytes]:
    """What the services send of all photos."""
    made = []
    for _ in range(PHOTOS // AT_ONCE):
        photos = [(secrets.token_bytes(16), secrets.token_hex(32)) for _ in range(AT_ONCE)]
        for service, steps in STEPS.items():
            request = ExportTraceServiceRequest()
            resource = request.resource_spans.add()
            for key, value in (("service.namespace", "darkroom"), ("service.name", service)):
                resource.resource.attributes.add(key=key).value.string_value = value
            spans = resource.scope_spans.add().spans
            for trace_id, sha256 in photos:
                for step in steps:
                    start_ns = time.time_ns() + secrets.randbelow(1_000_000_000)
                    span = spans.add(
                        trace_id=trace_id,
                        span_id=secrets.token_bytes(8),
                        parent_span_id=secrets.token_bytes(8),
                        name=step,
                        start_time_unix_nano=start_ns,
                        end_time_unix_nano=start_ns + secrets.randbelow(100_000_000),
                    )
                    about = {"darkroom.image.sha256": sha256}
                    if "blob" in step:
                        about["darkroom.blob.key"] = f"derived/{sha256[:2]}/{sha256}/webp-1/proxy.jpg"
                    if step.startswith(("publish", "process")):
                        about["messaging.system"] = "rabbitmq"
                        about["messaging.destination.name"] = step.partition(" ")[2]
                        about["messaging.message.id"] = secrets.token_hex(16)
                    for key, value in about.items():
                        span.attributes.add(key=key).value.string_value = value
            made.append(request.SerializeToString())
    return made


def main() -> None:
    sent = exports()
    spans = sum(map(len, STEPS.values()))
    print(
        f"{PHOTOS} photos, {spans} spans each, {len(sent)} exports, {sum(map(len, sent)) / PHOTOS:,.0f} bytes a photo"
    )
    plain = [zlib.decompress(row.payload) for export in sent[: 4 * AT_ONCE] for row in rows_of(export)[0]]
    for level in (1, 6, 9):
        started = time.process_time()
        size = sum(len(zlib.compress(each, level)) for each in plain)
        spent_ms = (time.process_time() - started) * 1000
        photos = AT_ONCE * AT_ONCE
        print(f"  zlib level {level}: {size / photos:,.0f} bytes and {spent_ms / photos:.2f} ms a photo")
    with tempfile.TemporaryDirectory(prefix="dr-") as folder:
        server = PostgresServer(Path(folder) / "postgres")
        server.start()
        try:
            engine = sync_engine(DatabaseSettings(database_url=server.url))
            migrate(engine)
            store = TraceStore(engine, queue_bytes=1 << 30)
            started = time.process_time()
            for export in sent:
                store.keep(export)
            print(f"taking apart and compressing: {PHOTOS / (time.process_time() - started):,.0f} photos/s of one core")
            stop = threading.Event()
            stop.set()
            started, cpu = time.monotonic(), time.process_time()
            store.run(stop)
            took, cpu = time.monotonic() - started, time.process_time() - cpu
            with engine.connect() as connection:
                rows, payload = connection.execute(
                    select(func.count(), func.sum(func.octet_length(trace_rows.c.payload)))
                ).one()
                on_disk = connection.scalars(select(func.pg_total_relation_size("trace_rows"))).one()
                speed = f"{rows / took:,.0f} rows/s, {PHOTOS / took:,.0f} photos/s"
                print(f"writing: {speed}; {cpu / PHOTOS * 1e3:.2f} ms of one core a photo")
                print(f"kept: {payload / PHOTOS:,.0f} bytes a photo, {on_disk / PHOTOS:,.0f} on disk with indexes")
                trace_id = connection.scalars(select(trace_rows.c.trace_id).limit(1)).one()
                started = time.monotonic()
                found = spans_of(read_rows(connection, [trace_id], 1 << 20)[0])
                print(f"reading one of them: {len(found)} spans in {(time.monotonic() - started) * 1e3:.1f} ms")
            engine.dispose()
        finally:
            server.stop()


if __name__ == "__main__":
    main()
