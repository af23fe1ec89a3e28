"""What Darkroom needs on one machine while nobody uploads, how long each service takes to start, and how large it is.

    .venv/bin/python benchmarks/idle.py [--environment FOLDER] [--photos 20] [--seconds 20]

Starts `darkroom up` with the bundled model in a temporary folder, takes some photos through, and waits until every
periodic job has run. Then memory (what several processes share is counted once) and CPU time of every process, over
`--rounds` stretches of time. Then each service is started again beside the first, alone, until it consumes. About four
minutes, most of it waiting. `--environment` names the virtual environment whose `darkroom` is measured: packages that
only benchmarks need, such as SciPy, are imported by others where they are found.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx
from guide_stage import photos
from packaging.requirements import Requirement
from rounds import Comparison, Ratio, arguments, cpu_s, interleaved, memory_bytes, publish

from darkroom_cli.local import (
    SERVICES,
    Endpoints,
    LocalOptions,
    Service,
    environment_file,
    service_environment,
    webhook_secret,
)
from darkroom_cli.servers import ChildProcess, PostgresServer, reserve_port

MEMORY_LIMIT_MIB = 1200
CPU_LIMIT_PERCENT = 5
"""Of one core, for all processes together."""

DEADLINE_S = 180
KEEPER = "darkroom up"

STARTS = 3
"""Of each service: it is a matter of seconds, and varies little."""

PACKAGES = {
    "gateway": "darkroom-gateway",
    "thumbnailer": "darkroom-thumbnailer",
    "embedder": "darkroom-embedder",
    "scheduler": "darkroom-scheduler",
}


@dataclass(frozen=True)
class House:
    """A running local mode."""

    options: LocalOptions
    programs: Path
    """Folder of `darkroom` and the services' commands."""
    start: dict[str, float]
    """Seconds, and seconds of CPU, that it took until a photo could be taken through."""

    @property
    def pids(self) -> dict[str, int]:
        """Every process that the local mode keeps, and the one that keeps them."""
        state = json.loads((self.options.data_dir / "processes.json").read_text())
        return {KEEPER: state["supervisor"]} | {name: one["pid"] for name, one in state["processes"].items()}

    def environment_of(self, service: Service) -> dict[str, str]:
        """What one more of a service is started with."""
        folder = self.options.data_dir
        postgres = PostgresServer(folder / "postgres")
        exports = environment_file(self.options).read_text().splitlines()
        known = dict(shlex.split(line)[1].split("=", 1) for line in exports)
        endpoints = Endpoints(
            postgres.url,
            known["DARKROOM_RESULT_URL"],
            known["DARKROOM_BROKER_URL"],
            (folder / "blobs").as_uri(),
            postgres.bin_dir,
            webhook_secret(folder),
        )
        return service_environment(service, self.options, endpoints, plain_environment())


def plain_environment() -> dict[str, str]:
    """Ours without settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("DARKROOM_", "OTEL_"))}


@contextmanager
def running(programs: Path) -> Iterator[House]:
    """`darkroom up`, from this folder, with default settings."""
    with tempfile.TemporaryDirectory(prefix="dr-", ignore_cleanup_errors=True) as name:
        options = LocalOptions(Path(name) / "data", http_port=reserve_port(), grpc_port=reserve_port())
        ports = ["--http-port", str(options.http_port), "--grpc-port", str(options.grpc_port)]
        command = [str(programs / "darkroom"), "up", "--data-dir", str(options.data_dir), *ports]
        begun = time.monotonic()
        up = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=plain_environment())
        try:
            if up.stdout is None or not up.stdout.readline().startswith("ready"):
                raise RuntimeError("darkroom up did not start")
            yield House(options, programs, {"wall": time.monotonic() - begun, "cpu": cpu_s([up.pid])})
        finally:
            up.send_signal(signal.SIGTERM)
            up.wait()


def wait_until(what: str, check: Callable[[], bool]) -> None:
    """Returns when `check` is true."""
    deadline = time.monotonic() + DEADLINE_S
    while not check():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not after {DEADLINE_S} s: {what}")
        time.sleep(0.05)


def use(house: House, count: int) -> None:
    """Takes so many photos through, and returns when every periodic job has run as well."""
    for path in photos(house.options.data_dir, count, 2000, 1500):
        with Path(path).open("rb") as file:
            httpx.post(f"{house.options.url}/v1/images", files={"file": file}, timeout=60).raise_for_status()

    def is_quiet() -> bool:
        status = httpx.get(f"{house.options.url}/v1/status", timeout=10).json()
        return status["ledger"]["in_flight"] == 0 and all(job["finished_at"] for job in status["jobs"])

    wait_until("photos and jobs", is_quiet)


def shares(house: House, seconds: float) -> dict[str, float]:
    """Percent of one core that each process, with its children, takes over so many seconds."""
    before = by_process(house, cpu_s)
    time.sleep(seconds)
    return {name: 100 * (after - before[name]) / seconds for name, after in by_process(house, cpu_s).items()}


def by_process(house: House, measure: Callable[[list[int]], float]) -> dict[str, float]:
    """A measure of each process and its children; of the one that keeps them, with the guard and the nurseries."""
    values = {name: measure([pid]) for name, pid in house.pids.items()}
    return values | {KEEPER: 2 * values[KEEPER] - sum(values.values())}


def start(house: House, name: str) -> dict[str, float]:
    """Seconds, and seconds of CPU, until one more of a service consumes or answers."""
    service = next(one for one in SERVICES if one.name == name)
    http_port = reserve_port()
    heartbeat = house.options.data_dir / f"{name}.second"
    heartbeat.unlink(missing_ok=True)
    environment = house.environment_of(service) | {
        "DARKROOM_HEARTBEAT_FILE": str(heartbeat),
        "DARKROOM_HTTP_PORT": str(http_port),
        "DARKROOM_GRPC_PORT": "0",
        "DARKROOM_METRICS_PORT": "0",
    }
    program, *rest = service.command
    argv = [str(house.programs / program), *rest]
    child = ChildProcess(argv, log=house.options.data_dir / f"{name}.second.log", env=environment, grace_s=5)

    def is_up() -> bool:
        if name != "gateway":
            return heartbeat.exists()
        with suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{http_port}/healthz").is_success
        return False

    begun = time.monotonic()
    child.start()
    try:
        wait_until(f"{name} is up", is_up)
        return {"wall": time.monotonic() - begun, "cpu": cpu_s([child.pid or 0])}
    finally:
        child.stop()


def environment_bytes(package: str) -> int:
    """Size of all files of a package and of everything that it needs, as installed beside this program."""
    needed: dict[str, Distribution] = {}
    seen: set[str] = set()
    _add_needed(Requirement(package), needed, seen)
    return sum(_bytes_of(each) for each in needed.values())


def _add_needed(requirement: Requirement, needed: dict[str, Distribution], seen: set[str]) -> None:
    for extra in {"", *requirement.extras}:
        name = requirement.name.lower().replace("_", "-")
        if f"{name}[{extra}]" in seen:
            continue
        seen.add(f"{name}[{extra}]")
        with suppress(PackageNotFoundError):  # what another system needs
            needed[name] = distribution(requirement.name)
            for text in needed[name].requires or []:
                further = Requirement(text)
                if further.marker is None or further.marker.evaluate({"extra": extra}):
                    _add_needed(further, needed, seen)


def _bytes_of(package: Distribution) -> int:
    files = {Path(str(package.locate_file(file))) for file in package.files or []}
    if origin := package.read_text("direct_url.json"):  # installed in place: the files are the source's
        source = Path(unquote(urlsplit(json.loads(origin)["url"]).path)) / "src"
        files |= {path for path in source.rglob("*") if path.is_file()}
    return sum(path.stat().st_size for path in files if path.exists())


def main() -> None:
    """Prints memory, CPU, starts and sizes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--environment", type=Path, default=Path(sys.prefix), help="default: this program's own")
    parser.add_argument("--photos", type=int, default=20, help="taken through before it is measured")
    parser.add_argument("--seconds", type=float, default=20, help="of each stretch of idling")
    options = arguments(__doc__, parser)
    with running(options.environment.absolute() / "bin") as house:
        use(house, options.photos)
        time.sleep(10)  # what was put off until after the last photo has happened
        cpu = [shares(house, options.seconds) for _ in range(options.rounds)]
        memory = {name: value / 2**20 for name, value in by_process(house, memory_bytes).items()}
        names = [service.name for service in SERVICES]
        whole = {"darkroom up": {measure: [value] for measure, value in house.start.items()}}
        starts = interleaved({name: partial(start, house, name) for name in names}, min(options.rounds, STARTS))
    sizes = {service: [environment_bytes(package) / 2**20] for service, package in PACKAGES.items()}
    publish(
        "idle",
        [
            _limited(
                "Memory of the local mode", "MiB", {name: [value] for name, value in memory.items()}, MEMORY_LIMIT_MIB
            ),
            _limited("CPU of the idle local mode", "% of a core", _by_name(cpu), CPU_LIMIT_PERCENT),
            Comparison.of("From start to work, each alone from nothing", "s", starts | whole, "wall"),
            Comparison.of("CPU from start to work, each alone from nothing", "s", starts | whole, "cpu"),
            Comparison("What each service installs", "MiB", sizes),
        ],
        options.results,
    )


def _by_name(rounds: list[dict[str, float]]) -> dict[str, list[float]]:
    return {name: [one[name] for one in rounds] for name in rounds[0]}


def _limited(title: str, unit: str, ways: Mapping[str, list[float]], limit: float) -> Comparison:
    """With the sum of all, beside what was wanted of it."""
    total = [sum(values) for values in zip(*ways.values(), strict=True)]
    all_of_it, wanted = "ours: all together", "wanted"
    together = {all_of_it: total, wanted: [limit] * len(total)}
    return Comparison(title, unit, dict(ways) | together, [Ratio("all / wanted", all_of_it, wanted, at_most=1)])


if __name__ == "__main__":
    main()
