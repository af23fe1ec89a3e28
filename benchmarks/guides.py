"""What the guides to Celery claim, measured on a real RabbitMQ with real workers: `docs/what-the-guides-say.md`.

    .venv/bin/python benchmarks/guides.py [--only hoarding] [--model FOLDER]

The work is Darkroom's own: the function that prepares a photo and the bundled model. Where only the length of a task
matters it sleeps, so that the machine's other work does not count. Each part has a plot and a JSON of its own.
"""

import argparse
import os
import random
import secrets
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import httpx
from guide_stage import DEADLINE_S, Stage, Worker, photos
from guide_worker import prepared
from rounds import Comparison, Measures, Ratio, Rounds, arguments, interleaved, memory_bytes, publish

from darkroom.celery_app import await_no_results, create_app, request
from darkroom.contracts.base import Lane
from darkroom.contracts.keys import Recipe, proxy_key
from darkroom.contracts.messages import Embed
from darkroom.contracts.tasks import EMBED
from darkroom.settings import BrokerSettings, TaskSettings
from darkroom.storage import open_blob_store
from darkroom_cli.servers import ChildProcess, reserve_port

Experiment = Callable[[Stage, argparse.Namespace], list[Comparison]]
Ways = Mapping[str, Callable[[], Measures]]

TWELVE_MP, THREE_MP = (4000, 3000), (2000, 1500)

UPLOADS = 10
HOARDED = 20
LONG_S, SHORT_S = 0.4, 0.03
SLOTS = 4
"""Of the hoarding experiment: two workers with two each."""


def in_the_request(stage: Stage, options: argparse.Namespace) -> list[Comparison]:
    """Ten uploads at once, answered when they are done or when they are handed over."""
    paths = photos(stage.folder, UPLOADS, *TWELVE_MP)
    port = reserve_port()
    script = str(Path(__file__).with_name("guide_web.py"))
    argv = [script, f"--broker={stage.rabbit.url}", f"--folder={stage.folder}", f"--port={port}"]
    web = ChildProcess([sys.executable, *argv, f"--model={options.model}"], log=stage.folder / "web.log")
    workers = (
        Worker("guide-prepare", ["guide.prepare"]),
        Worker("guide-embed", ["guide.embed"], {"pool": "solo", "concurrency": 1, "load": "process"}),
    )

    def answers(port: int) -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{port}/").status_code == 404
        return False

    def upload(way: str) -> Measures:
        run = stage.new_run()
        headers = {"run": run, "queue": "guide.prepare", "then": "guide.embed"}

        def one(path: str) -> float:
            begun = time.monotonic()
            url = f"http://127.0.0.1:{port}/{way}"
            httpx.post(url, content=Path(path).read_bytes(), headers=headers, timeout=120).raise_for_status()
            return time.monotonic() - begun

        begun = time.monotonic()
        with ThreadPoolExecutor(UPLOADS) as clients:
            answers = list(clients.map(one, paths))
        if way == "handed":
            stage.ends(run, UPLOADS)
        done = time.monotonic() - begun
        return {"median": 1000 * statistics.median(answers), "last": 1000 * max(answers), "done": 1000 * done}

    web.start()
    try:
        with stage.working(*workers):
            wait_until(lambda: answers(port))
            here, handed = "in the request", "ours: handed to workers"
            ways = {here: partial(upload, "in-request"), handed: partial(upload, "handed")}
            taken = interleaved(ways, options.rounds)
    finally:
        web.stop(grace_s=1)
    ratio = Ratio("request / workers", here, handed)
    return [
        Comparison.of("Ten 12 MP uploads at once: the middle answer after", "ms", taken, "median", [ratio]),
        Comparison.of("Ten 12 MP uploads at once: the last answer after", "ms", taken, "last", [ratio]),
        Comparison.of("Ten 12 MP uploads at once: all work done after", "ms", taken, "done", [ratio]),
    ]


def model_in_every_worker(stage: Stage, options: argparse.Namespace) -> list[Comparison]:
    """Memory of four processes that do everything, and of four that prepare beside one that embeds."""
    paths = photos(stage.folder, 24, *THREE_MP)
    each, fork, ours = (
        "4 processes, each loads the model",
        "4 processes, loaded before the fork",
        "ours: 4 processes without, 1 with it",
    )
    common = {"concurrency": 4, "model": options.model}
    ways = {
        each: [Worker("guide-each", ["guide.each"], common | {"load": "process"})],
        fork: [Worker("guide-fork", ["guide.fork"], common | {"load": "parent"})],
        ours: [
            Worker("guide-four", ["guide.four"], {"concurrency": 4}),
            Worker("guide-one", ["guide.one"], common | {"load": "process", "pool": "solo", "concurrency": 1}),
        ],
    }

    def measure(workers: Sequence[Worker]) -> Measures:
        task, then = ("whole", {}) if len(workers) == 1 else ("prepare", {"then": workers[1].queues[0]})
        work = [{"path": path} | then for path in paths]
        with stage.working(*workers) as running:
            stage.do(workers[0].queues[0], task, work)  # what is imported and allocated at first use counts
            return {"memory": memory_bytes(child.pid or 0 for child in running) / 2**20}

    # Each alone, because what several share is divided among them; once, because memory hardly varies.
    taken = interleaved({way: partial(measure, workers) for way, workers in ways.items()}, 1)
    ratios = [Ratio("each / ours", each, ours), Ratio("forked / ours", fork, ours)]
    return [Comparison.of("Memory of the workers (one round)", "MiB", taken, "memory", ratios)]


def hoarding(stage: Stage, options: argparse.Namespace) -> list[Comparison]:
    """Twenty tasks, four of them long, on a worker with two slots; a second such worker comes after the first task."""
    multipliers, modes = (1, 4, 5, 10), ("fair", "default")
    names = {
        (mode, multiplier): f"{'ours: ' if (mode, multiplier) == ('fair', 1) else ''}-O {mode}, multiplier {multiplier}"
        for mode in modes
        for multiplier in multipliers
    }
    workers = {
        (mode, multiplier): [
            Worker(
                f"guide-{mode}-{multiplier}-{number}",
                [f"guide.{mode}.{multiplier}"],
                {"prefetch": multiplier, "optimization": mode},
            )
            for number in ("first", "second")
        ]
        for mode, multiplier in names
    }
    lengths = [LONG_S] * 4 + [SHORT_S] * (HOARDED - 4)
    turns = {way: count() for way in names}

    def measure(way: tuple[str, int]) -> Measures:
        order = lengths.copy()
        random.Random(next(turns[way])).shuffle(order)  # another order in each round, the same for every way
        first, second = workers[way]
        stage.pause(second)
        run, begun = stage.new_run(), time.monotonic()
        stage.send(run, first.queues[0], "sleep", [{"seconds": each} for each in order], confirm=False)
        ends = stage.ends(run, 1)
        stage.resume(second)
        ends += stage.ends(run, HOARDED - 1)
        waits = [end.begun_s - begun for end in ends if order[end.number] == SHORT_S]
        return {"all": 1000 * (max(end.ended_s for end in ends) - begun), "wait": 1000 * max(waits)}

    with stage.working(*(worker for pair in workers.values() for worker in pair)):
        taken = interleaved({name: partial(measure, way) for way, name in names.items()}, options.rounds)
    ours = names["fair", 1]
    ratios = [Ratio(f"multiplier {each} / 1", names["fair", each], ours) for each in multipliers[1:]]
    ratios.append(Ratio("default / fair, multiplier 10", names["default", 10], names["fair", 10]))
    best_ms = 1000 * sum(lengths) / SLOTS
    return [
        Comparison.of(f"20 uneven tasks, all done after (at best {best_ms:.0f})", "ms", taken, "all", ratios),
        Comparison.of("20 uneven tasks, longest wait of a short one", "ms", taken, "wait", ratios),
    ]


def lanes(stage: Stage, options: argparse.Namespace) -> list[Comparison]:
    """Small interactive photos that come while large ones of the bulk lane fill the slots."""
    small, large = photos(stage.folder, 8, *THREE_MP), photos(stage.folder, 4, *TWELVE_MP)
    backlog, every_s = 16, 0.1
    ways = {
        "one queue, 2 slots": ([Worker("guide-all", ["guide.all"])], "guide.all", "guide.all"),
        "two queues, 2 slots that take from both": (
            [Worker("guide-both", ["guide.both.i", "guide.both.b"])],
            "guide.both.i",
            "guide.both.b",
        ),
        "one slot kept for interactive, one for both": (
            [
                Worker("guide-kept", ["guide.kept.i"], {"concurrency": 1}),
                Worker("guide-shared", ["guide.kept.i", "guide.kept.b"], {"concurrency": 1}),
            ],
            "guide.kept.i",
            "guide.kept.b",
        ),
        "ours: a worker for each lane, bulk niced": (
            [
                Worker("guide-interactive", ["guide.lane.i"]),
                Worker("guide-bulk", ["guide.lane.b"], {"niceness": 10}),
            ],
            "guide.lane.i",
            "guide.lane.b",
        ),
    }

    def measure(quick: str, bulk: str) -> Measures:
        behind, ahead = stage.new_run(), stage.new_run()
        many = [{"path": large[number % len(large)]} for number in range(backlog)]
        stage.send(ahead, bulk, "prepare", many, confirm=False)
        stage.ends(ahead, 2)  # bulk is under way
        sent = []
        for number in range(len(small)):
            sent.append(time.monotonic())
            stage.send(f"{behind}-{number}", quick, "prepare", [{"path": small[number]}])
            time.sleep(every_s)
        ends = [stage.ends(f"{behind}-{number}", 1)[0] for number in range(len(small))]
        done = 2 + len(stage.ends(ahead, backlog - 2, within_s=0.01))
        seconds = time.monotonic() - sent[0]
        stage.declare(bulk)
        stage.ends(ahead, backlog, within_s=0.5)
        took = [1000 * (end.ended_s - begun) for end, begun in zip(ends, sent, strict=True)]
        return {"median": statistics.median(took), "worst": max(took), "bulk": done / seconds}

    with stage.working(*(worker for workers, _, _ in ways.values() for worker in workers)):
        taken = interleaved(
            {way: partial(measure, quick, bulk) for way, (_, quick, bulk) in ways.items()}, options.rounds
        )
    one, both, kept, ours = ways
    ratios = [
        Ratio("one queue / ours", one, ours),
        Ratio("two queues / ours", both, ours),
        Ratio("kept slot / ours", kept, ours),
    ]
    return [
        Comparison.of("An interactive 3 MP photo beside bulk ones of 12 MP, median", "ms", taken, "median", ratios),
        Comparison.of("An interactive 3 MP photo beside bulk ones of 12 MP, worst of 8", "ms", taken, "worst", ratios),
        Comparison.of("Bulk photos done meanwhile", "1/s", taken, "bulk"),
    ]


def pools(stage: Stage, options: argparse.Namespace) -> list[Comparison]:
    """Prefork, threads and solo for work that computes, embeds and waits."""
    originals = photos(stage.folder, 12, *THREE_MP)
    proxies = [prepared(Path(path).read_bytes()) for path in originals]
    for original, proxy in zip(originals, proxies, strict=True):
        Path(original).with_suffix(".proxy").write_bytes(proxy)
    solo: dict[str, Any] = {"pool": "solo", "concurrency": 1}
    model: dict[str, Any] = {"load": "process", "model": options.model}
    thumbnails = {
        "ours: prefork, 2 processes": Worker("guide-p2", ["guide.p2"]),
        "2 threads": Worker("guide-t2", ["guide.t2"], {"pool": "threads"}),
        "solo": Worker("guide-s1", ["guide.s1"], solo),
    }
    embeddings = {
        "prefork, 2 processes with a model each": Worker("guide-ep", ["guide.ep"], model),
        "2 threads on one model": Worker("guide-et", ["guide.et"], {"pool": "threads"} | model),
        "solo, one by one": Worker("guide-es", ["guide.es"], solo | {"threads": 2} | model),
    }
    waits = {
        "prefork, 2 processes": Worker("guide-wp", ["guide.wp"], {"prefetch": 4}),
        "ours: 4 threads": Worker("guide-wt", ["guide.wt"], {"pool": "threads", "concurrency": 4, "prefetch": 4}),
        "solo": Worker("guide-ws", ["guide.ws"], solo | {"prefetch": 4}),
    }

    def rates(workers: dict[str, Worker], task: str, work: list[dict[str, Any]], more: Ways) -> Rounds:
        def rate(worker: Worker) -> Measures:
            return {"rate": len(work) / stage.do(worker.queues[0], task, work)}

        with stage.working(*workers.values()):
            return interleaved(
                {**{way: partial(rate, worker) for way, worker in workers.items()}, **more}, options.rounds
            )

    def compared(title: str, taken: Rounds) -> Comparison:
        ours = next(way for way in taken if way.startswith("ours"))
        return Comparison.of(
            title, "1/s", taken, "rate", [Ratio(f"ours / {way}", ours, way) for way in taken if way != ours]
        )

    compute = [{"path": originals[number % 12]} for number in range(16)]
    embed = [{"paths": [str(Path(originals[number % 12]).with_suffix(".proxy"))]} for number in range(48)]
    with embedder(stage, options.model, proxies, len(embed)) as ours:
        embedded = rates(embeddings, "embed", embed, {"ours: solo, in batches": ours})
    return [
        compared("Thumbnails of 3 MP", rates(thumbnails, "prepare", compute, {})),
        compared("Embeddings", embedded),
        compared("Tasks that wait 20 ms", rates(waits, "sleep", [{"seconds": 0.02}] * 60, {})),
    ]


@contextmanager
def embedder(stage: Stage, model: str, proxies: Sequence[bytes], many: int) -> Iterator[Callable[[], Measures]]:
    """Darkroom's embedder runs inside the block; a call has it embed so many new photos."""
    blob_url = (stage.folder / "blobs").as_uri()
    env = os.environ | {
        "DARKROOM_BROKER_URL": stage.rabbit.url,
        "DARKROOM_RESULT_URL": stage.redis_url,
        "DARKROOM_BLOB_URL": blob_url,
        "DARKROOM_HEARTBEAT_FILE": str(stage.folder / "embedder.heartbeat"),
        "DARKROOM_MODEL": model,
        "HF_HUB_OFFLINE": "1",
    }
    store, recipe = open_blob_store(blob_url), Recipe.current()
    app = create_app("guides", BrokerSettings(broker_url=stage.rabbit.url, result_url=stage.redis_url), TaskSettings())
    app.conf.broker_transport_options = {"confirm_publish": False}
    await_no_results(app)
    command = str(Path(sys.executable).with_name("darkroom-embedder"))
    child = ChildProcess([command], log=stage.folder / "embedder.log", env=env, grace_s=5)

    def rate() -> Measures:
        photos = [secrets.token_hex(32) for _ in range(many)]
        for number, sha256 in enumerate(photos):
            store.put(proxy_key(sha256, recipe), proxies[number % len(proxies)])
        begun = time.monotonic()
        with app.producer_or_acquire() as producer:
            sent = [
                request(
                    app,
                    EMBED,
                    Embed(sha256=sha256, generation=1, lane=Lane.INTERACTIVE, proxy=proxy_key(sha256, recipe)),
                ).apply_async(producer=producer)
                for sha256 in photos
            ]
        wait_until(lambda: all(each.ready() for each in sent[-1:]) and all(each.ready() for each in sent))
        return {"rate": many / (time.monotonic() - begun)}

    child.start()
    try:
        wait_until((stage.folder / "embedder.heartbeat").exists)
        rate()
        yield rate
    finally:
        child.stop()


def acknowledging(stage: Stage, options: argparse.Namespace) -> list[Comparison]:
    """What confirms and late acknowledgements cost, and what a killed worker takes with it."""
    many, mortal = 200, 20

    def publish_rate(confirm: bool) -> Measures:
        begun = time.monotonic()
        stage.send("nowhere", "guide.nobody", "sleep", [{"seconds": 0}] * many, confirm=confirm)
        rate = many / (time.monotonic() - begun)
        stage.declare("guide.nobody")
        return {"rate": rate}

    draining = {
        "ours: acknowledged late, multiplier 1": Worker("guide-l1", ["guide.l1"]),
        "acknowledged early, multiplier 1": Worker("guide-e1", ["guide.e1"], {"acks": "early"}),
        "acknowledged late, multiplier 4": Worker("guide-l4", ["guide.l4"], {"prefetch": 4}),
        "acknowledged early, multiplier 4": Worker("guide-e4", ["guide.e4"], {"prefetch": 4, "acks": "early"}),
    }

    def drain_rate(worker: Worker) -> Measures:
        return {"rate": many / stage.do(worker.queues[0], "sleep", [{"seconds": 0}] * many)}

    def lost(acks: str) -> Measures:
        first, second = (Worker(f"guide-{acks}-{n}", [f"guide.{acks}"], {"acks": acks, "prefetch": 4}) for n in (1, 2))
        run = stage.new_run()
        with stage.working(first) as (victim,):
            stage.send(run, first.queues[0], "sleep", [{"seconds": 0.1}] * mortal)
            done = stage.ends(run, 5)
            os.killpg(victim.pid or 0, signal.SIGKILL)
        with stage.working(second, purged=False):
            while more := stage.ends(run, 1, within_s=1):
                done += more
        numbers = {end.number for end in done}
        return {"lost": mortal - len(numbers), "twice": len(done) - len(numbers)}

    stage.declare("guide.nobody")
    published = interleaved(
        {"ours: confirmed": partial(publish_rate, True), "not confirmed": partial(publish_rate, False)}, options.rounds
    )
    with stage.working(*draining.values()):
        drained = interleaved({way: partial(drain_rate, worker) for way, worker in draining.items()}, options.rounds)
    killed = interleaved(
        {"ours: acknowledged late": partial(lost, "late"), "acknowledged early": partial(lost, "early")}, 2
    )
    late, early, late_4, early_4 = draining
    return [
        Comparison.of(
            "Publishing",
            "messages/s",
            published,
            "rate",
            [Ratio("confirmed / not", "ours: confirmed", "not confirmed")],
        ),
        Comparison.of(
            "Empty tasks",
            "1/s",
            drained,
            "rate",
            [Ratio("late / early", late, early), Ratio("late / early, multiplier 4", late_4, early_4)],
        ),
        Comparison.of("Of 20 tasks, lost with a killed worker (2 rounds)", "tasks", killed, "lost"),
        Comparison.of("Of 20 tasks, done twice (2 rounds)", "tasks", killed, "twice"),
    ]


def wait_until(check: Callable[[], bool]) -> None:
    """Returns when `check` is true."""
    deadline = time.monotonic() + DEADLINE_S
    while not check():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not after {DEADLINE_S} s")
        time.sleep(0.02)


EXPERIMENTS: dict[str, Experiment] = {
    "request": in_the_request,
    "memory": model_in_every_worker,
    "hoarding": hoarding,
    "lanes": lanes,
    "pools": pools,
    "acks": acknowledging,
}


def main() -> None:
    """Runs all of them, or one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=list(EXPERIMENTS), help="one of them")
    parser.add_argument("--model", default="bundled", help="a model's folder or hub id")
    options = arguments(__doc__, parser)
    chosen = {options.only: EXPERIMENTS[options.only]} if options.only else EXPERIMENTS
    with tempfile.TemporaryDirectory(prefix="dr-", ignore_cleanup_errors=True) as name, Stage(Path(name)) as stage:
        for title, experiment in chosen.items():
            begun = time.monotonic()
            publish(f"guides-{title}", experiment(stage, options), options.results)
            print(f"{title}: {time.monotonic() - begun:.0f} s\n", flush=True)


if __name__ == "__main__":
    main()
