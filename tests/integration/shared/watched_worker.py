"""A worker of the pool that is named, whose one task hangs the first time. Run by test_watchdog.py."""

import os
import sys
import time
from pathlib import Path

from darkroom.celery_app import Delivery, bind, create_app
from darkroom.contracts.messages import Prepare, Prepared
from darkroom.contracts.tasks import PREPARE
from darkroom.logs import configure_logs
from darkroom.settings import BrokerSettings, LogSettings, TaskSettings, WorkerSettings
from darkroom.topology import Node
from darkroom.worker import WorkerOptions, run_worker

HANGS_S = 600
WATCHDOG_S = 2


def prepare(message: Prepare, delivery: Delivery) -> Prepared:
    """Hangs where no process has hung before."""
    hung = Path(os.environ["DARKROOM_TEST_HUNG"])
    if not hung.exists():
        hung.touch()
        time.sleep(HANGS_S)
    return Prepared(manifest="done")


if __name__ == "__main__":
    configure_logs("watched", LogSettings())
    app = create_app("watched", BrokerSettings(), TaskSettings())
    bind(app, PREPARE, prepare)
    options = WorkerOptions(node=Node.THUMBNAILER, pool=sys.argv[1], concurrency=1, watchdog_s=WATCHDOG_S)
    run_worker(app, options, heartbeat_file=WorkerSettings().heartbeat_file)
