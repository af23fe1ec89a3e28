"""Starting a Celery worker: its options in one place, checked against what its pool really obeys."""

import argparse
import gc
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty
from typing import Any, Literal

from celery import Celery, bootsteps
from celery.signals import (
    task_postrun,
    task_prerun,
    worker_before_create_process,
    worker_process_init,
    worker_process_shutdown,
)
from celery.utils.nodenames import gethostname, nodename
from celery.worker.consumer import Consumer

from darkroom.celery_app import await_no_results, ensure_topology
from darkroom.control import correct_commands
from darkroom.errors import ConfigurationError
from darkroom.presence import announce_presence
from darkroom.settings import MetricsSettings
from darkroom.telemetry import exposition, metrics, tracing
from darkroom.telemetry.measuring import measure_worker
from darkroom.telemetry.processing import trace_tasks
from darkroom.topology import Node, queues_of

log = logging.getLogger(__name__)

HEARTBEAT_INTERVAL_S = 2.0

BROKEN_GRACE_S = 5.0
"""How long a worker that has failed may try to end in good order."""


@dataclass(frozen=True)
class WorkerOptions:
    """What one worker process runs with. Options that its pool would ignore are refused."""

    node: Node
    pool: Literal["prefork", "solo", "threads"]
    concurrency: int
    prefetch_multiplier: int = 1
    max_tasks_per_child: int | None = None
    max_memory_per_child_kib: int | None = None
    soft_time_limit_s: int | None = None
    time_limit_s: int | None = None
    watchdog_s: int | None = None
    """For solo and threads: the process ends when one unit of work takes longer, and its supervisor restarts it."""

    def __post_init__(self) -> None:
        only_prefork = {
            "max_tasks_per_child": self.max_tasks_per_child,
            "max_memory_per_child_kib": self.max_memory_per_child_kib,
            "soft_time_limit_s": self.soft_time_limit_s,
            "time_limit_s": self.time_limit_s,
        }
        ignored = [name for name, value in only_prefork.items() if value is not None]
        if self.pool != "prefork" and ignored:
            raise ConfigurationError(
                f"the {self.pool} pool ignores {', '.join(ignored)}: use watchdog_s, which ends the process"
            )
        if self.pool == "prefork" and self.watchdog_s is not None:
            raise ConfigurationError("prefork has time limits of its own: use time_limit_s instead of watchdog_s")
        if self.pool == "solo" and self.concurrency != 1:
            raise ConfigurationError(f"the solo pool runs one task at a time, not {self.concurrency}")

    def for_celery(self) -> dict[str, Any]:
        """What `app.Worker` is given to do the same; what is not here is left to the application's settings."""
        limits = {
            "max_tasks_per_child": self.max_tasks_per_child,
            "max_memory_per_child": self.max_memory_per_child_kib,
            "soft_time_limit": self.soft_time_limit_s,
            "time_limit": self.time_limit_s,
        }
        return {
            "hostname": nodename(self.node.value, gethostname()),
            "queues": list(queues_of(self.node)),
            "pool": self.pool,
            "concurrency": self.concurrency,
            "prefetch_multiplier": self.prefetch_multiplier,
            "optimization": "fair",  # a task goes to a free child, never into the pipe of a busy one
            "without_gossip": True,  # workers need no news of each other
            "without_mingle": True,
            "loglevel": logging.INFO,
        } | {name: value for name, value in limits.items() if value is not None}


def add_worker_arguments(parser: argparse.ArgumentParser) -> None:
    """Lets a worker's command say what `celery worker` would be told; `with_arguments` takes it in."""
    group = parser.add_argument_group(
        "worker", "Celery's options, for a deployment that shows them. Numbers count; the others must be what they are."
    )
    group.add_argument("--queues", help="comma-separated")
    group.add_argument("--pool")
    group.add_argument("-O", dest="optimization", choices=["fair"])
    group.add_argument("--concurrency", type=int)
    group.add_argument("--prefetch-multiplier", type=int)
    group.add_argument("--max-tasks-per-child", type=int)
    group.add_argument("--max-memory-per-child", type=int, dest="max_memory_per_child_kib", metavar="KIB")


def with_arguments(options: WorkerOptions, given: argparse.Namespace) -> WorkerOptions:
    """The options with the numbers that a command line gives instead.

    Raises `ConfigurationError` where it names other queues or another pool than the service was written for.
    """
    fixed = {"queues": ",".join(queues_of(options.node)), "pool": options.pool}
    for name, value in fixed.items():
        if getattr(given, name) not in (None, value):
            raise ConfigurationError(f"--{name}={getattr(given, name)}: {options.node.value} has {value}")
    numbers = ("concurrency", "prefetch_multiplier", "max_tasks_per_child", "max_memory_per_child_kib")
    return replace(options, **{name: getattr(given, name) for name in numbers if getattr(given, name) is not None})


def run_worker(
    app: Celery,
    options: WorkerOptions,
    *,
    heartbeat_file: Path | None,
    watchdog: "Watchdog | None" = None,
) -> None:
    """Consumes until a signal; leaves the process with its exit code.

    SIGTERM finishes what runs and hands back what was only prefetched. A caller whose work happens outside of tasks
    too passes the watchdog that it marks its units on.
    """
    await_no_results(app)
    correct_commands()
    app.steps["worker"].add(EndWhenBroken)
    if heartbeat_file is not None:
        app.steps["consumer"].add(_heartbeat_step(heartbeat_file))
    if app.conf.broker_url.startswith("redis"):
        app.steps["consumer"].add(HandBack)
    if watchdog is None and options.watchdog_s is not None:
        watchdog = Watchdog(options.watchdog_s)
    if watchdog is not None:
        watchdog.start()
    if options.pool == "prefork":
        worker_before_create_process.connect(_share_memory, weak=False)
    announce_presence(app, options.node, options.pool)
    if exposition.serve(metrics.WORKER, MetricsSettings()) is not None:
        measure_worker(app)
    _trace(app, options)
    if not app.conf.darkroom_declare:
        app.conf.worker_consumer = UndeclaringConsumer
    _await_topology(app)
    try:
        # As `celery worker` would, without the command line's prompts and colours: 8 MB of imports, 0.1 s of CPU.
        worker = app.Worker(**options.for_celery())
        worker.start()
        sys.exit(worker.exitcode)
    finally:
        tracing.stop()


def _trace(app: Celery, options: WorkerOptions) -> None:
    """Traces the tasks of this worker in the processes that run them; each sends what it has when it ends."""
    trace_tasks()
    if options.pool != "prefork":
        tracing.start(app.main, options.node.value)
        return
    tracing.prepare(app.main, options.node.value)
    # Not before the fork: the thread that sends would be missing in the children.
    worker_process_init.connect(lambda **_: tracing.start(app.main, options.node.value), weak=False)
    worker_process_shutdown.connect(lambda **_: tracing.stop(), weak=False)


def _share_memory(**_: Any) -> None:
    """Keeps the garbage collector of a child off the pages that it shares with us: 32 MB a child instead of 58."""
    gc.collect()
    gc.freeze()


class UndeclaringConsumer(Consumer):  # type: ignore[misc]
    """Celery's consumer without the step that declares the exchanges and queues of delayed delivery."""

    class Blueprint(Consumer.Blueprint):  # type: ignore[misc]
        """Celery's steps but one."""

        default_steps = tuple(step for step in Consumer.Blueprint.default_steps if "DelayedDelivery" not in step)


def _await_topology(app: Celery) -> None:
    """Waits for the broker and declares every queue there, or sees that they are.

    On RabbitMQ, Celery binds all queues to its delayed delivery before it consumes; where one of them is missing,
    because its own worker is still starting, it gives the whole of it up.
    """
    with app.connection_for_write() as connection:
        connection.ensure_connection(
            errback=lambda error, pause_s: log.warning(
                "worker.broker_away", extra={"error": str(error), "again_in_s": pause_s}
            ),
            interval_start=1,
            interval_step=1,
            interval_max=5,
        )
        ensure_topology(app, connection)


def _heartbeat_step(path: Path) -> type[bootsteps.StartStopStep]:
    class Heartbeat(bootsteps.StartStopStep):  # type: ignore[misc]
        """Touches a file from the worker's own loop: a stuck loop shows, a broker that is away does not."""

        requires = ("celery.worker.consumer.tasks:Tasks",)

        def start(self, consumer: Any) -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            self.entry = consumer.timer.call_repeatedly(HEARTBEAT_INTERVAL_S, path.touch)

        def stop(self, consumer: Any) -> None:
            if entry := getattr(self, "entry", None):
                entry.cancel()

    return Heartbeat


class EndWhenBroken(bootsteps.StartStopStep):  # type: ignore[misc]
    """Ends the process when Celery gives it up, so that its supervisor starts it again.

    After an error that nobody foresaw in its loop, such as a result of a child that cannot be read, Celery 5.7 waits
    for the children's results. Nobody reads them any more: the process stood still for good, with messages in its hand.
    """

    def close(self, worker: Any) -> None:
        """The first of what a worker does to end; a signal to stop has set no exit code, or 0."""
        if worker.exitcode:
            last_resort = threading.Timer(BROKEN_GRACE_S, self._end)
            last_resort.daemon = True
            last_resort.start()

    def _end(self) -> None:
        log.critical("worker.broken", extra={"grace_s": BROKEN_GRACE_S})
        # As if it had died: its messages are given to another one, and its children end with it.
        os.kill(os.getpid(), signal.SIGKILL)


class HandBack(bootsteps.StartStopStep):  # type: ignore[misc]
    """Puts the message back that Redis may have handed out to us while we stopped to listen.

    Redis takes a message off its queue as the answer to a call that we have sent before. kombu 5.7 reads that answer
    when it closes, but has then forgotten the channel over which the message could go back, and drops it. The
    reconciler found such photos, minutes later.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, consumer: Any) -> None:
        """Nothing: it is about the end."""

    def stop(self, consumer: Any) -> None:
        """Stops listening, and reads the answer that is still to come, within the second that the call lasts."""
        try:
            consumer.task_consumer.cancel()
            for channel in list(consumer.connection.transport.channels):
                if channel._in_poll:
                    with suppress(Empty):
                        channel._brpop_read()
        except Exception as error:  # whatever a connection that is gone raises; with it went the call
            log.info("worker.nothing_handed_back", extra={"error": repr(error)})


class Watchdog:
    """Ends the process when one task runs longer than `limit_s`. For pools that know no time limits."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._begun: dict[str, float] = {}

    def start(self) -> None:
        """Watches every task of this process from now on."""
        task_prerun.connect(self._begin, weak=False)
        task_postrun.connect(self._end, weak=False)
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    @contextmanager
    def unit(self, name: str) -> Iterator[None]:
        """Watches one unit of work that is not a task, from any thread."""
        self._begin(name)
        try:
            yield
        finally:
            self._end(name)

    def _begin(self, task_id: str, **_: Any) -> None:
        self._begun[task_id] = time.monotonic()

    def _end(self, task_id: str, **_: Any) -> None:
        self._begun.pop(task_id, None)

    def _watch(self) -> None:
        while True:
            time.sleep(min(1.0, self._limit_s / 4))
            now = time.monotonic()
            for task_id, begun in list(self._begun.items()):
                if now - begun > self._limit_s:
                    stuck = {"task_id": task_id, "limit_s": self._limit_s, "stacks": _stacks()}
                    log.critical("worker.watchdog", extra=stuck)
                    # Not an exception: the stuck thread may hold any lock, and an unacknowledged message is safe.
                    os.kill(os.getpid(), signal.SIGKILL)


def _stacks() -> dict[str, list[str]]:
    """Where every other thread is: by its name, "file:line function" for each of its calls, the innermost first."""
    ours = threading.get_ident()
    threads = {thread.ident: thread.name for thread in threading.enumerate() if thread.ident != ours}
    return {
        threads[ident]: [
            f"{Path(call.f_code.co_filename).name}:{line} {call.f_code.co_name}"
            for call, line in traceback.walk_stack(frame)
        ]
        for ident, frame in sys._current_frames().items()
        if ident in threads
    }
