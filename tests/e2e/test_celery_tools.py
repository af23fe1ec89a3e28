"""Celery's own tools on everything that `darkroom up` starts, on both brokers. The lines are those of the page."""

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
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx
import pytest
from conftest import eventually
from kombu import Connection

from darkroom import topology
from darkroom.celery_app import declare_topology
from darkroom.topology import Node
from darkroom.workflow import task_ids
from darkroom_cli.client import Darkroom
from darkroom_cli.local import LocalOptions, environment_file, running
from darkroom_cli.samples import SAMPLES, write_samples
from darkroom_cli.servers import release_port, reserve_port
from darkroom_cli.supervisor import Supervisor

pytestmark = pytest.mark.timeout(600)

PAGE = Path(__file__).parents[2] / "docs/celery-tools.md"
HOST = socket.gethostname()
NODES = {f"{node.value}@{HOST}" for node in Node}


def lines_of(section: str) -> list[str]:
    """The shell lines under one heading of the page."""
    text = re.search(rf"^## {section}.*?\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert text is not None, section
    return [line for block in re.findall(r"```bash\n(.*?)```", text[1], re.DOTALL) for line in block.splitlines()]


@dataclass
class Stack:
    """A running local mode, a shell beside it, and one photo that went through."""

    options: LocalOptions
    supervisor: Supervisor
    task: str = ""

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
        global _next_sample
        chosen, _next_sample = SAMPLES[_next_sample : _next_sample + count], _next_sample + count
        with Darkroom(self.options.url) as client:
            uploaded = client.upload(write_samples(self.options.data_dir / "samples", chosen), lane=lane)
            batch = client.wait([uploaded["batch"]["id"]], timeout_s=120)[uploaded["batch"]["id"]]
        assert batch["ready"] == count
        return [image["sha256"] for image in uploaded["images"]]


_next_sample = 0


class Silent:
    """Shows nothing of the start."""

    @contextmanager
    def step(self, doing: str, done: str) -> Iterator[Callable[[str], None]]:
        yield lambda say: None


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    global _next_sample
    _next_sample = 0
    broker = "embedded"
    if request.param == "rabbitmq":
        broker = str(request.getfixturevalue("rabbit_url"))
        with Connection(broker) as connection:
            declare_topology(connection)
            for queue in (*topology.CONSUMED_BY, topology.DEAD_LETTERS):
                connection.default_channel.queue_purge(queue)
    ports = [reserve_port(), reserve_port()]
    with tempfile.TemporaryDirectory(prefix="dr-", ignore_cleanup_errors=True) as folder:
        options = LocalOptions(Path(folder), http_port=ports[0], grpc_port=ports[1], broker=broker, workers=2)
        with running(options, Silent()) as supervisor:
            stack = Stack(options, supervisor)
            [sha256] = stack.upload()
            stack.task = task_ids(sha256, 1)["prepare"]
            yield stack
    for port in ports:
        release_port(port)


def test_the_page_names_every_worker_and_the_environment_file() -> None:
    text = PAGE.read_text()
    assert all(f"`{node.value}`" in text for node in Node)
    assert ". .darkroom/run/environment" in text


def test_every_look_is_answered_by_every_worker(stack: Stack) -> None:
    lines = lines_of("Look")
    assert len(lines) == 11
    *looks, result = lines
    for line, said in zip(looks, stack.all_say([line.partition("#")[0] for line in looks]), strict=True):
        assert all(node in said for node in NODES), line
        assert "error" not in said.lower()
    assert "prepared" in stack.says(result)


def test_what_is_looked_at_is_true(stack: Stack) -> None:
    consumed = {
        node: {queue["name"] for queue in queues} for node, queues in stack.answers("inspect active_queues").items()
    }
    assert consumed == {f"{node.value}@{HOST}": set(topology.queues_of(node)) for node in Node}
    stats = stack.answers("inspect stats")
    assert stats[f"thumbnailer@{HOST}"]["total"]["thumbnailer.prepare"] >= 1
    assert stats[f"embedder@{HOST}"]["total"]["embedder.embed"] >= 1
    assert len(stats[f"thumbnailer@{HOST}"]["pool"]["processes"]) == 2


def test_events_are_followed(stack: Stack) -> None:
    enable, dump, disable = (line.partition("#")[0] for line in lines_of("Follow")[:3])
    assert stack.says(enable).count("task events enabled") == len(NODES)
    with stack.until_interrupted(dump) as printed:
        eventually(lambda: "heartbeat" in printed(), within_s=60)  # it listens
        [sha256] = stack.upload()
        ids = task_ids(sha256, 1)

        def are_told() -> bool:
            """the end of every step was printed"""
            ended = [line for line in printed().splitlines() if "task succeeded" in line]
            return all(any(task_id in line for line in ended) for task_id in ids.values())

        eventually(are_told, within_s=60)
    assert stack.says(disable).count("task events disabled") == len(NODES)


def test_flower_shows_the_workers_and_a_photos_tasks(stack: Stack) -> None:
    line = lines_of("Follow")[-1].partition("#")[0]
    port = reserve_port()
    with (
        stack.until_interrupted(line.replace("--port=5555", f"--port={port}")),
        httpx.Client(base_url=f"http://127.0.0.1:{port}/api", timeout=30, trust_env=False) as flower,
    ):

        def workers() -> set[str]:
            """Flower knows every worker"""
            try:
                return {name for name, worker in flower.get("/workers?status=1").json().items() if worker}
            except httpx.TransportError:
                return set()

        eventually(lambda: workers() == NODES, within_s=90, every_s=0.5)
        details = flower.get("/workers?refresh=1").json()
        assert {queue["name"] for queue in details[f"embedder@{HOST}"]["active_queues"]} == {
            "embed",
            "embed.bulk",
            "embed.query",
        }

        def tasks() -> list[dict[str, str]]:
            return list(flower.get("/tasks").json().values())

        def shows_a_photo() -> bool:
            """the tasks of one photo are there, and succeeded"""
            [sha256] = stack.upload()  # Flower may not have enabled the events yet when an earlier one went through
            ids = task_ids(sha256, 1)
            ended = {task["uuid"]: task["worker"] for task in tasks() if task["state"] == "SUCCESS"}
            nodes = {"prepare": "thumbnailer", "embed": "embedder", "finalize": "finalize"}
            return all(ended.get(ids[step]) == f"{node}@{HOST}" for step, node in nodes.items())

        eventually(shows_a_photo, within_s=60, every_s=2)
    release_port(port)


def test_every_change_is_made_and_photos_go_on(stack: Stack) -> None:
    changes = [line.partition("#")[0] for line in lines_of("Change")]
    assert len(changes) == 10
    for line in changes:
        said = stack.says(line)
        assert "OK" in said, line
        assert "error" not in said.lower()
        if "pool_grow" in line:
            eventually(lambda: len(processes_of(stack)) == 3, within_s=60, every_s=0.5)
        if "shrink" in line:
            eventually(lambda: len(processes_of(stack)) == 2, within_s=60, every_s=0.5)
        if "rate_limit embedder.embed 5/s" in line:
            stack.upload(3)
        if "cancel_consumer embed.bulk" in line:
            eventually(lambda: "embed.bulk" not in queues_of_node(stack, "embedder"), within_s=60)
        if "add_consumer" in line:
            queue = line.split()[-1]
            node = "embedder" if queue == "embed.bulk" else "thumbnailer"
            eventually(lambda queue=queue, node=node: queue in queues_of_node(stack, node), within_s=60)
            stack.upload(lane="bulk")
    assert queues_of_node(stack, "thumbnailer") == set(topology.queues_of(Node.THUMBNAILER))


def test_what_cannot_work_is_refused_and_says_what_to_do_instead(stack: Stack) -> None:
    remedies = {
        "embedder pool_grow": "start another worker",
        "finalize pool_grow": "DARKROOM_WORKER_CONCURRENCY",
        "finalize pool_shrink": "stop the worker",
        "embedder time_limit": "DARKROOM_TASK_HARD_LIMIT_S",
        "thumbnailer pool_shrink": "cancel_consumer",
        "embedder add_consumer": "it can take from embed, embed.bulk, embed.query",
        "embedder cancel_consumer": "but from embed, embed.bulk, embed.query",
        "embedder rate_limit": "unknown task",
        "thumbnailer autoscale": "Autoscale not enabled",
    }
    lines = lines_of("Refused")
    assert len(lines) == len(remedies)
    before = {name: state.restarts for name, state in stack.supervisor.states().items()}
    answers = stack.all_say([line.partition("#")[0] for line in lines])
    for line, answer, (what, remedy) in zip(lines, answers, remedies.items(), strict=True):
        node, command = what.split()
        assert f"{node}@$HOSTNAME" in line and command in line
        assert "ERROR" in answer and remedy in re.sub(r"\s+", " ", answer), line
    stack.upload()
    assert {name: state.restarts for name, state in stack.supervisor.states().items()} == before


def test_a_shutdown_is_answered_and_the_supervisor_starts_the_worker_again(stack: Stack) -> None:
    before = stack.supervisor.states()["finalize"]
    [line] = lines_of("Stop")
    assert "its supervisor starts it again" in re.sub(r"\s+", " ", stack.says(line.partition("#")[0]))
    eventually(lambda: stack.supervisor.states()["finalize"].restarts == before.restarts + 1, within_s=60)
    stack.upload()
    assert "ended; starts again" not in (stack.options.data_dir / "logs/finalize.log").read_text()


def processes_of(stack: Stack) -> list[int]:
    stats = stack.answers(f'inspect -d "thumbnailer@{HOST}" stats')
    return list(stats[f"thumbnailer@{HOST}"]["pool"]["processes"])


def queues_of_node(stack: Stack, node: str) -> set[str]:
    answer = stack.answers(f'inspect -d "{node}@{HOST}" active_queues')
    return {queue["name"] for queue in answer[f"{node}@{HOST}"]}
