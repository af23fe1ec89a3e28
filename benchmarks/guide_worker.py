"""A Celery worker for `guides.py`: Darkroom's own functions as tasks, under whatever options a guide recommends.

Each task that ends adds `[number, begun, ended]` to the Redis list of its run, in seconds on the machine's monotonic
clock. What only some tasks need is imported when the first of them runs: memory then shows what a worker really needs.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import worker_process_init, worker_ready
from kombu import Exchange, Queue
from redis import Redis

from darkroom.worker import UndeclaringConsumer

EXCHANGE = Exchange("guides", type="topic", durable=True)


def queue(name: str) -> Queue:
    """A queue of the same kind as Darkroom's: durable, quorum, on a topic exchange."""
    return Queue(name, EXCHANGE, routing_key=name, queue_arguments={"x-queue-type": "quorum"})


def create_app(broker_url: str, *, confirm: bool = True) -> Celery:
    """An application that only knows how to reach the broker; results go to Redis lists instead."""
    app = Celery("guides", broker=broker_url, set_as_current=False)
    app.conf.update(
        task_ignore_result=True,
        task_create_missing_queues=False,
        task_default_exchange=EXCHANGE.name,
        task_default_exchange_type="topic",
        worker_hijack_root_logger=False,
        worker_consumer=UndeclaringConsumer,  # no task here has a countdown
        broker_transport_options={"confirm_publish": confirm},
    )
    return app


def prepared(data: bytes) -> bytes:
    """What `prepare` makes of an original, of which the proxy is returned."""
    from thumbnailer.decoding import Limits, decode
    from thumbnailer.rendering import render_large, render_proxy

    photo = decode(data, Limits())
    render_large(photo)
    return render_proxy(photo).data


@cache
def model(name: str, threads: int) -> Any:
    """The embedding model, loaded at the first call in this process."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch

    from darkroom.settings import ModelSettings
    from embedder.model import load_model

    torch.set_num_threads(threads)
    return load_model(name, ModelSettings())


def embedded(proxies: list[bytes], name: str, threads: int) -> None:
    """One forward pass over all of them."""
    clip = model(name, threads)
    clip.embed_pictures([clip.preprocessing.pixels(proxy) for proxy in proxies])


def register(app: Celery, redis_url: str, options: argparse.Namespace) -> None:
    """Binds the tasks; a process opens its connection to Redis at its first."""
    redis = cache(lambda pid: Redis.from_url(redis_url))

    def task(name: str, work: Callable[..., Any]) -> None:
        def run(run_id: str, number: int, then: str | None = None, **arguments: Any) -> None:
            begun = time.monotonic()
            done = work(**arguments)
            if then is None:
                redis(os.getpid()).rpush(run_id, json.dumps([number, begun, time.monotonic()]))
            else:  # the next step is another worker's
                following = {"run_id": run_id, "number": number, "paths": [done]}
                app.send_task("embed", kwargs=following, exchange=EXCHANGE.name, routing_key=then)

        app.task(name=name, acks_late=options.acks == "late", reject_on_worker_lost=True, shared=False)(run)

    def prepare(path: str) -> str:
        proxy = Path(path).with_suffix(".proxy")
        proxy.write_bytes(prepared(Path(path).read_bytes()))
        return str(proxy)

    def embed(paths: list[str]) -> None:
        embedded([Path(path).read_bytes() for path in paths], options.model, options.threads)

    def whole(path: str) -> None:
        embedded([prepared(Path(path).read_bytes())], options.model, options.threads)

    task("sleep", lambda seconds: time.sleep(seconds))
    task("prepare", prepare)
    task("embed", embed)
    task("whole", whole)


def main() -> None:
    """Consumes until a signal; says `ready` in the Redis list of its name when it does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--broker", required=True)
    parser.add_argument("--redis", required=True)
    parser.add_argument("--queues", required=True)
    parser.add_argument("--pool", default="prefork")
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument("--prefetch", type=int, default=1)
    parser.add_argument("--optimization", default="fair")
    parser.add_argument("--acks", choices=["late", "early"], default="late")
    parser.add_argument("--load", choices=["never", "parent", "process"], default="never", help="who loads the model")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--threads", type=int, default=1, help="of one forward pass")
    parser.add_argument("--niceness", type=int, default=0)
    options = parser.parse_args()
    app = create_app(options.broker)
    names = options.queues.split(",")
    app.conf.update(task_queues=[queue(name) for name in names], task_default_queue=names[0])
    register(app, options.redis, options)

    def set_up(**_: object) -> None:
        os.nice(options.niceness)
        if options.load == "process":
            model(options.model, options.threads).warm_up(1)

    if options.load == "parent":
        model(options.model, options.threads)
    if options.pool == "prefork":
        worker_process_init.connect(set_up, weak=False)
    else:
        set_up()
    ready = Redis.from_url(options.redis)
    worker_ready.connect(lambda **_: ready.rpush(options.name, "ready"), weak=False)
    app.worker_main(
        [
            *("worker", f"--hostname={options.name}@%h", f"--queues={options.queues}", f"--pool={options.pool}"),
            *(f"--concurrency={options.concurrency}", f"--prefetch-multiplier={options.prefetch}"),
            *("-O", options.optimization, "--without-gossip", "--without-mingle", "--loglevel=WARNING"),
        ]
    )


if __name__ == "__main__":
    main()
