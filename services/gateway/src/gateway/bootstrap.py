"""Everything that a running gateway consists of, made once and ended in order."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from anyio.to_thread import run_sync
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from darkroom.celery_app import bound_publishing, create_app
from darkroom.contracts.base import Lane
from darkroom.database.engine import async_engine, sync_engine
from darkroom.database.events import NUMBERED_CHANNEL
from darkroom.settings import TracingSettings
from darkroom.storage import BlobStore, FileStore, open_blob_store
from darkroom.telemetry import tracing
from gateway.broker import BrokerLink
from gateway.dead_letters import DeadLetters
from gateway.dispatcher import CHANNEL as DISPATCH_CHANNEL
from gateway.dispatcher import Dispatcher
from gateway.events import EventHub, PostgresEvents
from gateway.figures import SystemFigures
from gateway.notifications import Bell, Bells, listen
from gateway.pressure import Face, Pressure, UploadLimits
from gateway.probes import Probes
from gateway.queues import BrokerDepths, QueueView
from gateway.receiving import Receiving
from gateway.relay import CHANNEL as EVENTS_CHANNEL
from gateway.relay import Relay
from gateway.search import Search
from gateway.settings import GatewaySettings
from gateway.trace_store import StoreExporter, TraceStore
from gateway.uploads import Acceptance

THREADS_WITH_CONNECTION = 4
"""Of the gateway's own that share a pool with its uploads: the dispatcher's, the relay's two, the trace store's."""

STOP_S = 10.0
"""For all threads together: the longest publish of one that is asked to end, and some."""

LAST_SPANS_S = 1.0
"""For what the other threads have recorded in the end, however long they took."""


@dataclass(frozen=True)
class Gateway:
    """One process's parts."""

    settings: GatewaySettings
    engine: AsyncEngine
    acceptance: Acceptance
    store: BlobStore
    results: Redis
    search: Search
    probes: Probes
    dispatch_bell: Bell
    relay: Relay
    broker: BrokerLink
    """The link of the dispatcher of everything."""
    events: EventHub
    dead_letters: DeadLetters
    queues: QueueView
    pressure: Pressure
    receiving: Receiving
    figures: SystemFigures
    traces: TraceStore | None
    """None where this gateway keeps no traces."""

    def wake(self) -> None:
        """Has new rows dispatched and new events published at once."""
        self.dispatch_bell.set()
        self.relay.bell.set()


@asynccontextmanager
async def running(settings: GatewaySettings) -> AsyncIterator[Gateway]:
    """A gateway whose threads run inside the block. Needs no server to be there at the start."""
    app = create_app("gateway", settings, settings)
    bound_publishing(app)
    users = ("dispatcher", "interactive-dispatcher", "relay", "search", "replaying", "depths", "probes")
    links = {name: BrokerLink(app) for name in users}
    engine, thread_engine = async_engine(settings), sync_engine(settings)
    store = open_blob_store(settings.blob_url)
    # No timeout for reads: a search waits for its answer as long as its own limit allows.
    results = Redis.from_url(settings.result_url.get_secret_value(), socket_connect_timeout=0.5, socket_timeout=None)
    dispatchers = {
        name: Dispatcher(
            thread_engine,
            app,
            links[name],
            settings.recipe,
            batch=settings.dispatch_batch,
            lease_s=settings.dispatch_lease_s,
            lane=lane,
        )
        for name, lane in (("dispatcher", None), ("interactive-dispatcher", Lane.INTERACTIVE))
    }
    dispatch_bell = Bells(*(dispatcher.bell for dispatcher in dispatchers.values()))
    relay = Relay(thread_engine, links["relay"])
    search = Search(engine, app, links["search"], results, store, timeout_s=settings.search_timeout_ms / 1000)
    probes = Probes(engine, app, links["probes"], settings)
    hub = EventHub(PostgresEvents(engine))
    has_dead_letters = settings.broker_url.get_secret_value().startswith("amqp")
    letters = DeadLetters(engine, links["replaying"], has_dead_letters=has_dead_letters)
    depths = BrokerDepths(links["depths"], has_dead_letters=has_dead_letters)
    queues = QueueView(engine, depths, results, has_dead_letters=has_dead_letters)
    at_once = {Face.REST: settings.max_uploads_at_once, Face.GRPC: settings.max_grpc_uploads_at_once}
    pressure = Pressure(engine, store, UploadLimits(settings.min_free_bytes, settings.max_backlog, at_once))
    bells: dict[str, Bell] = {
        DISPATCH_CHANNEL: dispatch_bell,
        EVENTS_CHANNEL: relay.bell,
        NUMBERED_CHANNEL: Bells(hub, relay.numbered),
    }
    stop = threading.Event()
    listening = (settings.database_url.get_secret_value(), bells, stop)
    threads = [threading.Thread(target=listen, args=listening, name="notifications", daemon=True)]
    if settings.dispatcher_enabled:
        for name, dispatcher in dispatchers.items():
            threads.append(threading.Thread(target=dispatcher.run, args=(stop,), name=name, daemon=True))
    if settings.relay_enabled:
        for name, run in (("numbering", relay.run_numbering), ("relay", relay.run_publishing)):
            threads.append(threading.Thread(target=run, args=(stop,), name=name, daemon=True))
    traces = TraceStore(thread_engine, settings.trace_queue_bytes) if settings.trace_store_enabled else None
    stop_keeping = threading.Event()
    keeping = [threading.Thread(target=traces.run, args=(stop_keeping,), name="traces", daemon=True)] if traces else []
    tracing.start("gateway", exporter=StoreExporter(traces) if traces and _is_sent_to_itself(settings) else None)
    for thread in (*threads, *keeping):
        thread.start()
    following = asyncio.create_task(hub.run(), name="events")

    def end() -> None:
        deadline = time.monotonic() + STOP_S
        stop.set()
        for bell in bells.values():
            bell.set()
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        tracing.stop()  # what it has recorded may still go to the store
        stop_keeping.set()
        if traces is not None:
            traces.wake()
        for thread in keeping:
            thread.join(max(LAST_SPANS_S, deadline - time.monotonic()))
        search.close()
        letters.close()
        depths.close()
        probes.close()
        for link in links.values():
            link.close()
        thread_engine.dispose()

    try:
        yield Gateway(
            settings=settings,
            engine=engine,
            acceptance=Acceptance(
                thread_engine,
                threads=max(1, settings.database_pool_size - THREADS_WITH_CONNECTION),
                # Naming a blob in an object store is a request, for which nobody else should wait.
                is_gathering=isinstance(store, FileStore),
            ),
            store=store,
            results=results,
            search=search,
            probes=probes,
            dispatch_bell=dispatch_bell,
            relay=relay,
            broker=links["dispatcher"],
            events=hub,
            dead_letters=letters,
            queues=queues,
            pressure=pressure,
            receiving=Receiving(store),
            figures=SystemFigures(engine, queues, results, traces),
            traces=traces,
        )
    finally:
        hub.close()
        await run_sync(end)
        following.cancel()  # it may be waiting for a database that hangs
        await asyncio.gather(following, return_exceptions=True)
        await results.aclose()
        await engine.dispose()


def _is_sent_to_itself(settings: GatewaySettings) -> bool:
    """Whether spans go to this gateway: its own need no network, on which the last of them would find nobody."""
    return TracingSettings().exporter_otlp_endpoint == f"http://{settings.http_host}:{settings.http_port}/otlp"
