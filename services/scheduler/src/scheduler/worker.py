"""The scheduler's processes and commands: `darkroom-scheduler finalize|maintenance|callbacks|beat|migrate|backup` …

In a deployment whose services may not declare, `topology` comes before them, and `provision` makes their secrets.
"""

import argparse
import sys
from datetime import timedelta
from functools import cache

from celery import Celery
from pydantic import ValidationError
from redis import Redis
from sqlalchemy.exc import InterfaceError, OperationalError

from darkroom.celery_app import bound_publishing, create_app, declare_delayed_delivery, declare_topology
from darkroom.consumers import use_windows
from darkroom.contracts.base import Lane
from darkroom.contracts.tasks import FINALIZE
from darkroom.database.engine import migrate, sync_engine
from darkroom.errors import DarkroomError
from darkroom.logs import configure_logs
from darkroom.probes import register_probe
from darkroom.settings import (
    BrokerSettings,
    DatabaseSettings,
    LogSettings,
    MetricsSettings,
    StorageSettings,
    TaskSettings,
    WorkerSettings,
)
from darkroom.storage import open_blob_store
from darkroom.telemetry import exposition, metrics
from darkroom.telemetry.blobs import TracedBlobs
from darkroom.topology import Node, queues_of
from darkroom.tries import TriesMarkers
from darkroom.worker import WorkerOptions, add_worker_arguments, run_worker, with_arguments
from scheduler.beat import run_beat
from scheduler.callbacks import LEASE_MARGIN_S, TURN_S, Delivering, RetryPolicy
from scheduler.commands import add_commands
from scheduler.dead_letters import DeadLetters, add_dead_letters
from scheduler.posting import Poster
from scheduler.reconciler import Deadlines
from scheduler.schedule import JOBS
from scheduler.settings import CallbackSettings, SchedulerSettings
from scheduler.signing import read_keys
from scheduler.tasks import Finishing, Resources, register_callbacks, register_finishing, register_jobs

FINALIZE_THREADS = 4
"""Each waits for PostgreSQL and the blob store; four keep one PostgreSQL commit stream busy on two cores."""

CALLBACK_THREADS = 32
"""Each waits for one receiver. A hundred that hang hold them all for 30 s, once; after that they have pauses."""

JOB_SOFT_LIMIT_S = 3540
JOB_LIMIT_S = 3600
"""A backup or a walk over all blobs; reconcile has a limit of its own."""


def finalize_options(concurrency: int, tasks: TaskSettings) -> WorkerOptions:
    """How the finalize worker runs."""
    return WorkerOptions(
        node=Node.FINALIZE,
        pool="threads",  # it waits for the database and computes nothing; threads share one pool of connections
        concurrency=concurrency or FINALIZE_THREADS,
        prefetch_multiplier=4,  # tasks of milliseconds, all alike: the next ones are here when one ends
        # But of bulk no more than `finalize_windows` says.
        watchdog_s=tasks.task_hard_limit_s,  # threads know no time limits; above lock_timeout (20 s)
    )


def finalize_windows(options: WorkerOptions) -> dict[str, int]:
    """How many messages of each queue the finalize worker holds.

    Threads take what is here in the order in which it came: bulk may use half of them, and nothing of it lies before
    them, so that an interactive photo finds one free.
    """
    interactive, bulk = (FINALIZE.queue_for(lane) for lane in (Lane.INTERACTIVE, Lane.BULK))
    return {
        interactive: options.concurrency * options.prefetch_multiplier,
        bulk: max(1, options.concurrency // 2),
    }


def maintenance_options() -> WorkerOptions:
    """How the maintenance worker runs."""
    return WorkerOptions(
        node=Node.MAINTENANCE,
        pool="prefork",  # a job that hangs is killed; threads could not be
        # A slot for each job, and a job runs once at a time: the reconciler never waits behind a backup or a clean up,
        # also when both last. An idle slot shares its memory with the others.
        concurrency=sum(job.contract.queue in queues_of(Node.MAINTENANCE) for job in JOBS),
        prefetch_multiplier=1,  # jobs expire while they wait: better in the queue, where another worker may take them
        max_tasks_per_child=1000,  # four hours of ticks: what leaks, leaks little
        soft_time_limit_s=JOB_SOFT_LIMIT_S,  # the job's row says that it took too long
        time_limit_s=JOB_LIMIT_S,  # for what does not hear the soft limit
    )


def callback_options(concurrency: int, settings: CallbackSettings) -> WorkerOptions:
    """How the callbacks worker runs."""
    return WorkerOptions(
        node=Node.CALLBACKS,
        pool="threads",  # it waits for receivers and computes next to nothing
        concurrency=concurrency or CALLBACK_THREADS,
        prefetch_multiplier=1,  # a hint behind one that hangs would wait for it
        watchdog_s=TURN_S + lease_s(settings),  # one attempt may begin at the end of a turn
    )


def lease_s(settings: CallbackSettings) -> int:
    """Seconds after which an attempt whose worker died is made again."""
    return settings.callback_timeout_s + LEASE_MARGIN_S


def create_finalizer(resources: Resources, broker: BrokerSettings, tasks: TaskSettings) -> Celery:
    """The application of the finalize worker."""
    app = create_app("scheduler", broker, tasks)
    register_finishing(app, Finishing(app, resources))
    register_probe(app, lambda: resources.store)
    return app


def create_maintenance(broker: BrokerSettings, tasks: TaskSettings) -> Celery:
    """The application of the maintenance worker; a child builds its connections at its first job."""
    app = create_app("scheduler", broker, tasks)
    # The limits of a photo's tasks, which every task has that names none, would go before the worker's own.
    app.conf.update(task_soft_time_limit=JOB_SOFT_LIMIT_S, task_time_limit=JOB_LIMIT_S)
    resources = cache(lambda: open_resources(broker, tasks))
    register_jobs(app, resources)
    register_probe(app, lambda: resources().store)
    return app


def open_resources(broker: BrokerSettings, tasks: TaskSettings) -> Resources:
    """What a process works with, by its settings; connects on first use."""
    database = DatabaseSettings()
    return Resources(
        engine=sync_engine(database),
        store=TracedBlobs(open_blob_store(StorageSettings().blob_url)),
        publisher=create_publisher(broker, tasks),
        database_url=database.database_url.get_secret_value(),
        deadlines=Deadlines(timedelta(seconds=tasks.step_deadline_s)),
        settings=SchedulerSettings(),
    )


def create_publisher(broker: BrokerSettings, tasks: TaskSettings) -> Celery:
    """An application that only publishes, and fails fast when the broker is away or hangs."""
    app = create_app("scheduler", broker, tasks)
    bound_publishing(app)
    return app


def run_finalize(arguments: argparse.Namespace) -> None:
    """Consumes `finalize` until a signal."""
    broker, tasks, worker = BrokerSettings(), TaskSettings(), WorkerSettings()
    app = create_finalizer(open_resources(broker, tasks), broker, tasks)
    options = with_arguments(finalize_options(worker.worker_concurrency, tasks), arguments)
    use_windows(app, finalize_windows(options))
    run_worker(app, options, heartbeat_file=worker.heartbeat_file)


def run_maintenance(arguments: argparse.Namespace) -> None:
    """Consumes `maintenance`, and on RabbitMQ the dead letters, until a signal."""
    broker, tasks, worker = BrokerSettings(), TaskSettings(), WorkerSettings()
    open_resources(broker, tasks)  # a wrong setting ends this process, not each of its children
    app = create_maintenance(broker, tasks)
    if app.conf.broker_url.startswith("amqp"):  # Redis has no dead letters
        redis = Redis.from_url(broker.result_url.get_secret_value(), socket_timeout=5, socket_connect_timeout=2)
        add_dead_letters(app, DeadLetters(sync_engine(DatabaseSettings()), TriesMarkers(redis)))
    run_worker(app, with_arguments(maintenance_options(), arguments), heartbeat_file=worker.heartbeat_file)


def run_callbacks(arguments: argparse.Namespace) -> None:
    """Consumes `callbacks` until a signal."""
    broker, tasks, worker, settings = BrokerSettings(), TaskSettings(), WorkerSettings(), CallbackSettings()
    app = create_app("scheduler", broker, tasks)
    delivering = Delivering(
        engine=sync_engine(DatabaseSettings()),
        publisher=create_publisher(broker, tasks),
        poster=Poster(settings.outbound_policy, settings.callback_timeout_s),
        keys=read_keys(settings.webhook_secret.get_secret_value()),
        policy=RetryPolicy(settings.callback_attempts),
        host_limit=settings.callback_host_limit,
        lease_s=lease_s(settings),
    )
    register_callbacks(app, delivering)
    options = callback_options(worker.worker_concurrency, settings)
    run_worker(app, with_arguments(options, arguments), heartbeat_file=worker.heartbeat_file)


def run_beat_process(_: argparse.Namespace) -> None:
    """Sends the periodic jobs, or stands by, until a signal."""
    exposition.serve(metrics.BEAT, MetricsSettings())
    app = create_publisher(BrokerSettings(), TaskSettings())
    run_beat(app, sync_engine(DatabaseSettings()), WorkerSettings().heartbeat_file)


def run_migrate(_: argparse.Namespace) -> None:
    """Brings the database up to date and ends."""
    migrate(sync_engine(DatabaseSettings()))


def run_topology(_: argparse.Namespace) -> None:
    """Declares all that services which may not declare need on RabbitMQ, and ends."""
    app = create_publisher(BrokerSettings(), TaskSettings())
    with app.connection_for_write() as connection:
        declare_topology(connection)
        declare_delayed_delivery(connection)


PROCESSES = {
    "topology": run_topology,
    "migrate": run_migrate,
    "finalize": run_finalize,
    "maintenance": run_maintenance,
    "callbacks": run_callbacks,
    "beat": run_beat_process,
}


def main() -> None:
    """Runs one of the processes or commands; a wrong setting ends it at once, with the remedy."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, process in PROCESSES.items():
        command = commands.add_parser(name, help=process.__doc__)
        command.set_defaults(process=process)
        if name in {node.value for node in Node}:
            add_worker_arguments(command)
    add_commands(commands)
    arguments = parser.parse_args()
    try:
        if "run" in arguments:
            sys.exit(arguments.run(arguments))
        configure_logs("scheduler", LogSettings())
        arguments.process(arguments)
    except (DarkroomError, ValidationError) as error:
        sys.exit(str(error))
    except (OperationalError, InterfaceError) as error:
        sys.exit(f"the database does not answer: {error.orig}")


if __name__ == "__main__":
    main()
