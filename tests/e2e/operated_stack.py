"""Everything that `darkroom up` starts, in this process's hands, with a shell and a scraper beside it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import httpx
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from darkroom_cli.client import Darkroom
from darkroom_cli.local import LocalOptions, environment_file, targets_file
from darkroom_cli.samples import SAMPLES, Sample, write_samples
from darkroom_cli.supervisor import Supervisor

HOST = socket.gethostname()

Scrape = dict[tuple[str, ...], float]
"""Samples by service, name and the values of their labels, which come in the order of the labels' names."""


@dataclass
class Stack:
    """A running local mode, a shell beside it, and one photo that went through."""

    options: LocalOptions
    supervisor: Supervisor
    task: str = ""
    _samples: list[Sample] = field(default_factory=lambda: list(SAMPLES))

    def shell(self, line: str, output: IO[str] | int = subprocess.PIPE) -> subprocess.Popen[str]:
        """Starts a line of the page as a person would, with an environment that has nothing of Darkroom in it."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DARKROOM_")}
        environment |= {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOSTNAME": HOST,
            "TASK": self.task,
            "FLOWER_UNAUTHENTICATED_API": "true",
        }
        with_addresses = f'. "{environment_file(self.options)}"\n{line}'
        return subprocess.Popen(
            ["bash", "-c", with_addresses],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def says(self, line: str) -> str:
        """What a line prints, with more patience than Celery's one second; it must end well."""
        patient = re.sub(r"\b(inspect|control|status)\b", r"\1 --timeout=5", line, count=1)
        process = self.shell(patient)
        said = process.communicate(timeout=120)[0]
        print(f"$ {patient}\n{said}")
        assert process.returncode == 0, said
        return said

    def all_say(self, lines: list[str]) -> list[str]:
        """The same for many lines at once: where nobody is named, Celery waits its whole time for more answers."""
        with ThreadPoolExecutor(len(lines)) as pool:
            return list(pool.map(self.says, lines))

    def answers(self, command: str) -> dict[str, object]:
        """The answers to an `inspect` or `control` command, by node."""
        answers = json.loads(self.says(f'celery -b "$DARKROOM_BROKER_URL" {command} --json'))
        # `control` answers with a list of one dictionary for each node.
        return {node: said for each in answers for node, said in each.items()} if isinstance(answers, list) else answers

    @contextmanager
    def until_interrupted(self, line: str) -> Iterator[Callable[[], str]]:
        """Runs a line that a person would end by Ctrl-C; yields what gives its output so far."""
        with tempfile.TemporaryFile("w+") as output:
            process = self.shell(line, output)

            def printed() -> str:
                output.seek(0)
                return output.read()

            try:
                yield printed
            finally:
                os.killpg(process.pid, signal.SIGINT)
                try:
                    process.wait(60)
                finally:
                    process.kill()
                    print(f"$ {line}\n{printed()[-5000:]}")

    def upload(self, count: int = 1, lane: str = "interactive") -> list[str]:
        """Uploads samples that were not there before and waits until all are ready; their hashes."""
        chosen = [self._samples.pop(0) for _ in range(count)]
        with Darkroom(self.options.url) as client:
            uploaded = client.upload(write_samples(self.options.data_dir / "samples", chosen), lane=lane)
            batch = client.wait([uploaded["batch"]["id"]], timeout_s=120)[uploaded["batch"]["id"]]
        assert batch["ready"] == count
        return [image["sha256"] for image in uploaded["images"]]

    def scrape_families(self) -> dict[str, list[Metric]]:
        """What each service answers to Prometheus."""
        targets = json.loads(targets_file(self.options).read_text())
        texts = {
            target["labels"]["service"]: httpx.get(f"http://{target['targets'][0]}/metrics", timeout=10).text
            for target in targets
        }
        return {service: list(text_string_to_metric_families(text)) for service, text in texts.items()}

    def scrape(self) -> Scrape:
        """Every sample of every service."""
        return {
            (service, sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
            for service, families in self.scrape_families().items()
            for family in families
            for sample in family.samples
        }


class Silent:
    """Shows nothing of the start."""

    @contextmanager
    def step(self, doing: str, done: str) -> Iterator[Callable[[str], None]]:
        """Runs the block."""
        yield lambda say: None
