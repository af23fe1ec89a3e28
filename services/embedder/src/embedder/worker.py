"""The embedder: a Celery solo worker around one model. `darkroom-embedder`."""

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from celery import Celery
from celery.signals import worker_ready, worker_shutdown
from redis import Redis
from transformers.utils import logging as transformers_logging

from darkroom.celery_app import create_app, ensure_topology, request
from darkroom.consumers import use_windows
from darkroom.contracts.base import Lane
from darkroom.contracts.messages import FenceAnswer, RegisterModel
from darkroom.contracts.tasks import EMBED, EMBED_TEXT, REGISTER_MODEL
from darkroom.errors import ConfigurationError
from darkroom.fences import answered
from darkroom.logs import configure_logs
from darkroom.probes import register_probe
from darkroom.settings import BrokerSettings, LogSettings, ModelSettings, StorageSettings, TaskSettings, WorkerSettings
from darkroom.storage import open_blob_store
from darkroom.telemetry.blobs import TracedBlobs
from darkroom.topology import Node
from darkroom.tries import TriesMarkers
from darkroom.worker import Watchdog, WorkerOptions, add_worker_arguments, run_worker, with_arguments
from embedder.batching import Buffer, Sizes
from embedder.embedding import Embedding, Models
from embedder.known_answer import KnownAnswer
from embedder.model import BUNDLED, ClipModel, load_model
from embedder.strategy import Answer, Compute, Held, MicroBatches
from embedder.tasks import BATCHED, register

log = logging.getLogger(__name__)

REGISTER_RETRY_S = 5.0
"""Until the model is known, no search works; a broker that is away comes back in its own time."""


def create_embedder(
    broker: BrokerSettings, tasks: TaskSettings, sizes: Sizes, batch_wait_ms: int, compute: Compute, answer: Answer
) -> Celery:
    """The application with its tasks, a window for each queue, and a buffer before the model."""
    app = create_app("embedder", broker, tasks)
    buffer: Buffer[Held] = Buffer(sizes, batch_wait_ms / 1000)
    batches = MicroBatches(BATCHED, buffer, compute, answer)
    register(app, batches)
    app.steps["consumer"].add(batches.consumer_step())
    worker_shutdown.connect(lambda **_: batches.end(), weak=False)
    windows = {
        EMBED_TEXT.queue: sizes.query,
        EMBED.queue_for(Lane.INTERACTIVE): sizes.interactive,
        EMBED.queue_for(Lane.BULK): sizes.bulk,
    }
    use_windows(app, windows)
    return app


def serve(
    load: Callable[[str, ModelSettings], ClipModel] = load_model, arguments: argparse.Namespace | None = None
) -> None:
    """Loads and warms the model, then consumes until a signal. Raises `ConfigurationError` before any message."""
    settings, worker, tasks, broker = ModelSettings(), WorkerSettings(), TaskSettings(), BrokerSettings()
    running = options(tasks) if arguments is None else with_arguments(options(tasks), arguments)
    configure_logs("embedder", LogSettings())
    transformers_logging.disable_default_handler()  # its lines are JSON too, by way of the root logger
    transformers_logging.enable_propagation()
    transformers_logging.disable_progress_bar()
    threads = settings.model_threads or default_threads(settings.model)
    # One pool of threads, and it is the model's: others on the same cores would only take turns with it.
    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    begun = time.perf_counter()
    model = load(settings.model, settings)
    picture_s = model.warm_up(settings.batch_size)
    known = KnownAnswer(model)
    # The reconciler and Redis' visibility timeout both allow for what is held as long as one task may take.
    sizes = Sizes.fitting(settings.batch_size, picture_s, held_s=tasks.task_hard_limit_s)
    log.info(
        "embedder.model_ready",
        extra={
            "model": model.reference.id,
            "source": model.reference.source,
            "dim": model.dim,
            "device": str(model.device),
            "dtype": str(model.dtype).removeprefix("torch."),
            "threads": threads,
            "seconds": round(time.perf_counter() - begun, 3),
            "ms_per_picture": round(picture_s * 1000, 3),
            "batch_size": sizes.batch,
        },
    )
    redis = Redis.from_url(broker.result_url.get_secret_value(), socket_timeout=5, socket_connect_timeout=2)
    store = TracedBlobs(open_blob_store(StorageSettings().blob_url))
    tries, watchdog = TriesMarkers(redis), Watchdog(tasks.task_hard_limit_s)
    embedding = Embedding(
        Models(model, lambda source: load(source, settings)),
        store,
        tries,
        helpers=max(4, threads),
        watch=watchdog.unit,
    )

    def answer(task_id: str) -> FenceAnswer:
        with watchdog.unit(f"fence {task_id}"):
            return answered(task_id, tries, known.compare)

    app = create_embedder(broker, tasks, sizes, settings.batch_wait_ms, embedding.run, answer)
    register_probe(app, lambda: store)
    registration = RegisterModel(model=model.reference, dim=model.dim)
    worker_ready.connect(lambda sender, **_: announce(app, registration, sender), weak=False)
    run_worker(app, running, heartbeat_file=worker.heartbeat_file, watchdog=watchdog)


def options(tasks: TaskSettings) -> WorkerOptions:
    """How the worker runs. What it may hold of each queue is `Sizes`."""
    return WorkerOptions(
        node=Node.EMBEDDER,
        pool="solo",  # the model is in memory once, and computes one batch at a time with every core
        concurrency=1,
        watchdog_s=tasks.task_hard_limit_s,  # solo knows no time limits; for one batch or one task
    )


def announce(app: Celery, registration: RegisterModel, consumer: Any) -> None:
    """Tells the scheduler once which model is warm here; tries again every few seconds until that went through.

    Once only: said again later, it would bring back a model that was replaced meanwhile.
    """
    try:
        with app.connection_for_write() as connection:
            ensure_topology(app, connection)  # a message to a queue that nobody has declared yet would be dropped
            request(app, REGISTER_MODEL, registration).apply_async(connection=connection, retry=False)
    except Exception as error:  # whatever the transport raises
        log.warning("embedder.model_not_registered", extra={"model": registration.model.id, "error": repr(error)})
        consumer.timer.call_after(REGISTER_RETRY_S, announce, (app, registration, consumer))
    else:
        log.info("embedder.model_registered", extra={"model": registration.model.id})


def default_threads(model: str) -> int:
    """How many threads share a forward pass where no setting says it: one for each core, but for a tiny model one."""
    # The bundled one's layers are so small that handing out halves costs more than it saves: a picture by itself takes
    # 5.5 ms of CPU on one thread and 7.3 on two. A full batch lasts longer, 8 ms a picture instead of 4, but nobody
    # waits for it: the thumbnails of a photo take a hundred.
    return 1 if model == BUNDLED else _available_cores()


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main() -> None:
    """Runs until a signal; a model that cannot be loaded ends it at once, with the remedy."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_worker_arguments(parser)
    arguments = parser.parse_args()
    try:
        serve(arguments=arguments)
    except ConfigurationError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
