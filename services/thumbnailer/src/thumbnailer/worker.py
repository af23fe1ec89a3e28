"""The thumbnailer: a Celery prefork worker. `darkroom-thumbnailer --lane interactive|bulk`."""

import argparse
import os
from contextlib import suppress
from functools import cache
from pathlib import Path

from celery import Celery
from celery.signals import worker_process_init
from redis import Redis

from darkroom.celery_app import create_app
from darkroom.contracts.base import Lane
from darkroom.logs import configure_logs
from darkroom.probes import register_probe
from darkroom.settings import BrokerSettings, LimitSettings, LogSettings, StorageSettings, TaskSettings, WorkerSettings
from darkroom.storage import open_blob_store
from darkroom.telemetry.blobs import TracedBlobs
from darkroom.topology import Node
from darkroom.tries import TriesMarkers
from darkroom.worker import WorkerOptions, add_worker_arguments, run_worker, with_arguments
from thumbnailer.decoding import Limits
from thumbnailer.tasks import Photo, Resources, register
from thumbnailer.trimming import trim_between_photos

CPU_GRACE_S = 5
"""After the hard limit, when a child ends by itself: its parent, who knows which photo it was, should come first."""

BULK_NICENESS = 10
"""Bulk children give way to interactive ones: both lanes may have a slot for every core."""

BULK_SESSION_NICENESS = 5
"""Of the whole bulk worker, where cores are shared out by sessions: a core that an interactive child wants too is its
to 75 % and more, and bulk still moves on a machine that is busy with something else."""

AUTOGROUP = Path("/proc/self/autogroup")
"""Where Linux is told that niceness, if it shares the cores out so."""


def create_thumbnailer(broker: BrokerSettings, tasks: TaskSettings, limits: LimitSettings, blob_url: str) -> Celery:
    """The application with its tasks; a child process builds its connections at its first task."""
    app = create_app("thumbnailer", broker, tasks)

    def tries() -> TriesMarkers:
        url = broker.result_url.get_secret_value()
        return TriesMarkers(Redis.from_url(url, socket_timeout=5, socket_connect_timeout=2))

    app.conf.darkroom_tries = tries()  # the parent's: it tells for a child that it had to kill

    @cache
    def photo() -> Photo:
        return Photo(
            Resources(
                TracedBlobs(open_blob_store(blob_url)),
                tries(),
                Limits(
                    file_bytes=limits.max_upload_bytes,
                    pixels=limits.max_pixels,
                    frames=limits.max_frames,
                    memory_bytes=limits.decode_memory_bytes,
                    cpu_s=tasks.task_hard_limit_s + CPU_GRACE_S,
                ),
                tasks.task_soft_limit_s,
            )
        )

    register(app, photo)
    register_probe(app, cache(lambda: open_blob_store(blob_url)))
    return app


def options(lane: Lane, concurrency: int, tasks: TaskSettings) -> WorkerOptions:
    """How the worker of one lane runs."""
    return WorkerOptions(
        node=Node.THUMBNAILER if lane is Lane.INTERACTIVE else Node.THUMBNAILER_BULK,
        pool="prefork",  # untrusted bytes and C decoders: a child may die, leak or hang without the others
        concurrency=concurrency or os.cpu_count() or 1,  # decoding is all CPU: more slots than cores only wait
        prefetch_multiplier=1,  # a prefetched photo would wait behind a slow one while other slots are free
        max_tasks_per_child=500,  # codecs leak slowly; a new child costs 20 ms
        max_memory_per_child_kib=600_000,  # a 100 MP decode takes 400 MB; a child that keeps more goes after its task
        soft_time_limit_s=tasks.task_soft_limit_s,  # the photo fails with a cause
        time_limit_s=tasks.task_hard_limit_s,  # the child is killed: a decoder's C code does not hear the soft limit
    )


def main() -> None:
    """Runs until a signal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lane", type=Lane, choices=list(Lane), default=Lane.INTERACTIVE)
    add_worker_arguments(parser)
    arguments = parser.parse_args()
    lane = arguments.lane
    worker, tasks = WorkerSettings(), TaskSettings()
    configure_logs("thumbnailer", LogSettings())
    app = create_thumbnailer(BrokerSettings(), tasks, LimitSettings(), StorageSettings().blob_url)
    worker_process_init.connect(trim_between_photos, weak=False)
    if lane is Lane.BULK:
        worker_process_init.connect(give_way, weak=False)
        give_way_as_session(AUTOGROUP)
    running = with_arguments(options(lane, worker.worker_concurrency, tasks), arguments)
    heartbeat: Path | None = worker.heartbeat_file
    run_worker(app, running, heartbeat_file=heartbeat)


def give_way(**_: object) -> None:
    """Lowers the CPU priority of a bulk child for good."""
    os.nice(BULK_NICENESS)


def give_way_as_session(autogroup: Path) -> None:
    """Lowers the CPU priority of this process's session, when it leads one.

    Where the kernel shares the cores out by sessions first, as most distributions have it, a process's niceness counts
    only within its own, and the children of another service are in another one. Elsewhere there is nothing to do.
    """
    if os.getsid(0) == os.getpid():  # a shell's session has other programs in it
        with suppress(OSError):
            autogroup.write_text(str(BULK_SESSION_NICENESS))


if __name__ == "__main__":
    main()
