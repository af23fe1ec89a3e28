"""Whether an interactive photo waits behind a bulk backlog: `python benchmarks/lanes.py [--broker rabbitmq]`.

Starts `darkroom up` with default settings in a temporary folder and queues the backlog while the bulk thumbnailer
stands still. Then, in each round: interactive photos with bulk at rest, bulk by itself, both at once. So a machine that
slows down does so for all three. About eight minutes; tables on standard output, and every figure in the file that
`--json` names.
"""

import argparse
import io
import itertools
import json
import struct
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

import httpx
import numpy as np
from losses import House, running, wait_until
from PIL import Image

FILES_A_REQUEST = 100
UPLOADERS = 2
BULK_SIZE, PHOTO_SIZE = (640, 480), (2000, 1500)
FILLED = 64
"""Photos that wait for the embedder besides those that it holds: six full batches in all."""

SETTLE_S = 3.0
"""After bulk begins or ends, before anything is counted."""

SHOWN_FROM_S = 0.003
"""Shorter parts of a photo's way are in the file alone."""

KEPT_RATE = 0.7
"""Of bulk's own rate, beside one interactive photo a second."""


@dataclass
class Figures:
    """What all rounds gave. Seconds and photos a second."""

    idle_s: list[float] = field(default_factory=list)
    loaded_s: list[float] = field(default_factory=list)
    alone_per_s: list[float] = field(default_factory=list)
    shared_per_s: list[float] = field(default_factory=list)
    idle_ids: list[str] = field(default_factory=list)
    loaded_ids: list[str] = field(default_factory=list)


class Photos:
    """JPEGs of one size, each with bytes that nobody has seen: a comment makes known pixels a new file."""

    def __init__(self, size: tuple[int, int], kinds: int, seed: int) -> None:
        noise = np.random.default_rng(seed)
        self._made = [self._draw(noise, size) for _ in range(kinds)]
        self._numbers = itertools.count()
        self._run = time.time_ns()

    @staticmethod
    def _draw(noise: np.random.Generator, size: tuple[int, int]) -> bytes:
        file = io.BytesIO()
        coarse = noise.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        return file.getvalue()

    def next(self) -> bytes:
        """Another one."""
        number = next(self._numbers)
        comment = f"{self._run}-{number}".encode()
        known = self._made[number % len(self._made)]
        return known[:2] + b"\xff\xfe" + struct.pack(">H", len(comment) + 2) + comment + known[2:]


def queue_bulk(house: House, count: int) -> float:
    """Uploads that many photos on the bulk lane; returns when they are dispatched, with the seconds that it took."""
    photos, begun = Photos(BULK_SIZE, kinds=16, seed=1), time.monotonic()

    def upload(files: int) -> None:
        parts = [("file", ("bulk.jpg", photos.next())) for _ in range(files)]
        with httpx.Client(timeout=120) as client:
            client.post(f"{house.url}/v1/images", files=parts, data={"lane": "bulk"}).raise_for_status()

    sizes = [min(FILES_A_REQUEST, count - done) for done in range(0, count, FILES_A_REQUEST)]
    with ThreadPoolExecutor(UPLOADERS) as threads:
        list(threads.map(upload, sizes))
    wait_until("dispatch", lambda: status(house)["dispatcher"]["waiting"] == 0)
    return time.monotonic() - begun


def status(house: House) -> dict[str, Any]:
    """What the system says of itself."""
    return dict(httpx.get(f"{house.url}/v1/status", timeout=30).json())


def fill_batches(house: House) -> None:
    """Has the embedder compute a few full batches, which it does not when the thumbnailer is slower than it is."""

    def waiting() -> int:
        queues = httpx.get(f"{house.url}/v1/queues", timeout=30).json()["queues"]
        return next(queue["depth"] or 0 for queue in queues if queue["name"] == "embed.bulk")

    with house.stopped("embedder"):
        wait_until("a backlog of the embedder", lambda: waiting() >= FILLED)
    wait_until("its end", lambda: waiting() == 0)


def interactive(house: House, photo: bytes) -> tuple[str, float]:
    """Uploads one photo; its id, and the seconds from the call until the client has heard that it is ready."""
    with httpx.Client(base_url=house.url, timeout=60) as client:
        begun = time.monotonic()
        answer = client.post("/v1/images", files={"file": ("photo.jpg", photo)}).raise_for_status()
        image_id = answer.json()["images"][0]["id"]
        with client.stream("GET", f"/v1/images/{image_id}/events") as stream:
            for line in stream.iter_lines():
                if line == "event: image.ready":
                    return image_id, time.monotonic() - begun
    raise RuntimeError(f"{image_id} did not become ready")


def one_a_second(house: House, photos: Photos, seconds: float) -> list[tuple[str, float]]:
    """Uploads an interactive photo every second for so long, whether or not the one before is ready."""
    with ThreadPoolExecutor(8) as threads:
        running_uploads, begun = [], time.monotonic()
        for number in range(int(seconds)):
            time.sleep(max(0.0, begun + number - time.monotonic()))
            running_uploads.append(threads.submit(interactive, house, photos.next()))
        return [each.result() for each in running_uploads]


class Counting:
    """Bulk photos that became ready inside the block, a second."""

    def __init__(self, house: House) -> None:
        self._house = house

    def __enter__(self) -> "Counting":
        self._ready, self._begun = self._house.ledger()["ready"], time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._ready, self.seconds = self._house.ledger()["ready"] - self._ready, time.monotonic() - self._begun

    def per_s(self, interactive_photos: int) -> float:
        """The rate, without so many that were interactive."""
        return (self._ready - interactive_photos) / self.seconds


def one_round(house: House, photos: Photos, seconds: float, figures: Figures) -> None:
    """Idle, bulk alone, both."""
    with house.stopped("thumbnailer-bulk"):
        wait_until("bulk at rest", lambda: is_at_rest(house))
        idle = one_a_second(house, photos, seconds)
    time.sleep(SETTLE_S)
    with Counting(house) as alone:
        time.sleep(seconds)
    with Counting(house) as shared:
        loaded = one_a_second(house, photos, seconds)
    figures.alone_per_s.append(alone.per_s(0))
    figures.shared_per_s.append(shared.per_s(len(loaded)))
    for image_id, took_s in idle:
        figures.idle_ids.append(image_id)
        figures.idle_s.append(took_s)
    for image_id, took_s in loaded:
        figures.loaded_ids.append(image_id)
        figures.loaded_s.append(took_s)


def is_at_rest(house: House) -> bool:
    """Whether nothing becomes ready any more."""
    before = house.ledger()["ready"]
    time.sleep(1)
    return house.ledger()["ready"] == before


def trace_of(house: House, image_id: str) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of a photo's way by who worked or what was waited for, without overlap; and by span, all added up.

    Both are empty where no traces are kept.
    """
    answer = httpx.get(f"{house.url}/v1/images/{image_id}/trace", timeout=30)
    parts: dict[str, float] = defaultdict(float)
    spans: dict[str, float] = defaultdict(float)
    for trace in answer.json()["traces"] if answer.is_success else []:
        for part in trace["summary"]["parts"]:
            parts[f"{part['category']} {part['name']}"] += part["duration_ms"] / 1000
        for span in trace["spans"]:
            spans[f"{span['service']}: {span['name']}"] += span["duration_ms"] / 1000
    return parts, spans


def batches(house: House) -> list[dict[str, Any]]:
    """Every batch that the embedder logged."""
    lines = (house.folder / "logs" / "embedder.log").read_text().splitlines()
    records = (json.loads(line) for line in lines if line.startswith("{"))
    return [record for record in records if record["event"] == "embedder.batch"]


def quantile(values: Sequence[float], q: float) -> float:
    """The value below which that share of them lies, by the next higher one."""
    return float(np.quantile(values, q, method="higher"))


def verdicts(figures: Figures, batch_s: float) -> list[dict[str, Any]]:
    """Each bound with what was measured."""
    limit_s = 2 * median(figures.idle_s) + batch_s
    ratios = [shared / alone for shared, alone in zip(figures.shared_per_s, figures.alone_per_s, strict=True)]
    kept = mean(figures.shared_per_s) / mean(figures.alone_per_s)
    return [
        {
            "what": "interactive p95 under backlog, s",
            "measured": quantile(figures.loaded_s, 0.95),
            "bound": f"<= {limit_s:.3f}: twice the idle median + one batch",
            "passed": quantile(figures.loaded_s, 0.95) <= limit_s,
        },
        {
            "what": "bulk's rate kept at one interactive photo a second",
            "measured": kept,
            "bound": f">= {KEPT_RATE}",
            "passed": kept >= KEPT_RATE,
            "rounds": {"min": min(ratios), "median": median(ratios), "max": max(ratios)},
        },
    ]


def main() -> int:
    """Prints the tables; 0 when every bound was met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--broker", default="rabbitmq", choices=["embedded", "rabbitmq"])
    parser.add_argument("--bulk", type=int, default=10_000, help="photos queued on the bulk lane")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=15, help="of each of the three parts of a round")
    parser.add_argument("--json", type=Path, help="file for all figures")
    arguments = parser.parse_args()
    figures, photos = Figures(), Photos(PHOTO_SIZE, kinds=8, seed=2)
    with running(arguments.broker) as house:
        with house.stopped("thumbnailer-bulk"):
            took = queue_bulk(house, arguments.bulk)
        say(f"{arguments.broker}: {arguments.bulk} bulk photos queued in {took:.0f} s")
        fill_batches(house)
        one_a_second(house, photos, 3)  # every process has done everything once
        for number in range(arguments.rounds):
            one_round(house, photos, arguments.seconds, figures)
            say(
                f"round {number + 1}: bulk {figures.alone_per_s[-1]:.1f}/s alone, {figures.shared_per_s[-1]:.1f}/s "
                f"beside; interactive {median(figures.idle_s):.3f} s idle, {median(figures.loaded_s):.3f} s beside"
            )
        left = house.ledger()["in_flight"]
        done = batches(house)
        idle = [trace_of(house, image_id) for image_id in figures.idle_ids]
        loaded = [trace_of(house, image_id) for image_id in figures.loaded_ids]
    full = [batch["seconds"] for batch in done if batch["bulk"] == max(each["size"] for each in done)]
    mixed = [batch for batch in done if batch["interactive"] and batch["bulk"]]
    report(figures, full, mixed, left)
    by_part, by_span = (compared([one[kind] for one in idle], [one[kind] for one in loaded]) for kind in (0, 1))
    report_where("an interactive photo's way, ms (mean)", by_part)
    report_where("its spans, ms (mean of their sums)", by_span)
    judged = verdicts(figures, median(full))
    for each in judged:
        say(f"{'pass' if each['passed'] else 'FAIL'}  {each['what']}: {each['measured']:.3f}   bound {each['bound']}")
    if arguments.json is not None:
        about = {"broker": arguments.broker, "bulk": arguments.bulk, "left_in_flight": left, "full_batches_s": full}
        measured = {name: values for name, values in vars(figures).items() if not name.endswith("_ids")}
        written = about | measured | {"mean_part_s": by_part, "mean_span_s": by_span, "verdicts": judged}
        arguments.json.write_text(json.dumps(written, indent=1) + "\n")
    return 0 if all(each["passed"] for each in judged) else 1


def report(figures: Figures, full_s: Sequence[float], mixed: Sequence[dict[str, Any]], left: int) -> None:
    """Prints what was measured."""
    say(f"\n{left} photos were still in flight at the end")
    say(f"{'interactive, s':34}{'photos':>8}{'p50':>8}{'p95':>8}{'max':>8}")
    for name, values in (("bulk at rest", figures.idle_s), ("under the backlog", figures.loaded_s)):
        say(f"  {name:32}{len(values):8}{median(values):8.3f}{quantile(values, 0.95):8.3f}{max(values):8.3f}")
    say(f"{'bulk, photos/s':34}{'rounds':>8}{'min':>8}{'median':>8}{'max':>8}")
    for name, values in (("by itself", figures.alone_per_s), ("beside one a second", figures.shared_per_s)):
        say(f"  {name:32}{len(values):8}{min(values):8.1f}{median(values):8.1f}{max(values):8.1f}")
    say(f"one full batch of bulk: {median(full_s):.3f} s (median of {len(full_s)})")
    if mixed:
        beside = mean(batch["bulk"] for batch in mixed)
        say(f"bulk photos in a batch with an interactive one: {beside:.1f} (mean of {len(mixed)})")


def compared(idle: Sequence[dict[str, float]], loaded: Sequence[dict[str, float]]) -> dict[str, tuple[float, float]]:
    """For each name the mean seconds of an idle and of a loaded photo; of most parts a median would be 0."""

    def typical(photos: Sequence[dict[str, float]], name: str) -> float:
        return mean(photo.get(name, 0.0) for photo in photos)

    return {name: (typical(idle, name), typical(loaded, name)) for name in sorted(set().union(*loaded))}


def report_where(title: str, where: dict[str, tuple[float, float]]) -> None:
    """Prints where an interactive photo spends its time, the longest first."""
    say(f"{title:42}{'idle':>8}{'beside':>8}")
    for name, (idle_s, loaded_s) in sorted(where.items(), key=lambda each: -each[1][1]):
        if loaded_s >= SHOWN_FROM_S:
            say(f"  {name:40}{idle_s * 1000:8.0f}{loaded_s * 1000:8.0f}")
    say("")


def say(line: str) -> None:
    """One line on standard output, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
