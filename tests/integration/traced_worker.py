"""A worker whose one task does nothing, in the pool that is named. Run by test_one_trace.py."""

import sys

from darkroom.celery_app import Delivery, bind, create_app
from darkroom.contracts.messages import Prepare, Prepared
from darkroom.contracts.tasks import PREPARE
from darkroom.settings import BrokerSettings, TaskSettings, WorkerSettings
from darkroom.topology import Node
from darkroom.worker import WorkerOptions, run_worker


def prepare(message: Prepare, delivery: Delivery) -> Prepared:
    """Nothing."""
    return Prepared(manifest="nothing")


if __name__ == "__main__":
    pool = sys.argv[1]
    app = create_app("traced", BrokerSettings(), TaskSettings())
    bind(app, PREPARE, prepare)
    options = WorkerOptions(
        node=Node.THUMBNAILER,
        pool=pool,
        concurrency=1 if pool == "solo" else 2,
        max_tasks_per_child=1 if pool == "prefork" else None,
    )
    run_worker(app, options, heartbeat_file=WorkerSettings().heartbeat_file)
