"""What operates a whole stack, on both brokers: Celery's own tools, by the lines of their page, and Prometheus."""

import os
import re
import signal
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import httpx
import pytest
from conftest import eventually
from kombu import Connection
from operated_stack import HOST, Scrape, Silent, Stack

from darkroom import topology
from darkroom.celery_app import declare_topology
from darkroom.rpc.v1.darkroom_pb2 import ListImagesRequest
from darkroom.rpc.v1.darkroom_pb2_grpc import DarkroomStub
from darkroom.telemetry.metrics import BEAT, GATEWAY, WORKER
from darkroom.topology import Node
from darkroom.workflow import task_ids
from darkroom_cli.local import LocalOptions, running
from darkroom_cli.samples import SAMPLES, write_samples
from darkroom_cli.servers import release_port, reserve_port
from scheduler.schedule import JOBS

pytestmark = pytest.mark.timeout(600)

PAGE = Path(__file__).parents[2] / "docs/celery-tools.md"
NODES = {f"{node.value}@{HOST}" for node in Node}


def lines_of(section: str) -> list[str]:
    """The shell lines under one heading of the page."""
    text = re.search(rf"^## {section}.*?\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert text is not None, section
    return [line for block in re.findall(r"```bash\n(.*?)```", text[1], re.DOTALL) for line in block.splitlines()]


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
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

        def shows(sha256: str) -> bool:
            """the tasks of the photo are there, and succeeded"""
            ended = {task["uuid"]: task["worker"] for task in tasks() if task["state"] == "SUCCESS"}
            nodes = {"prepare": "thumbnailer", "embed": "embedder", "finalize": "finalize"}
            ids = task_ids(sha256, 1)
            return all(ended.get(ids[step]) == f"{node}@{HOST}" for step, node in nodes.items())

        for _ in range(6):  # Flower may not have enabled the events yet when the first ones go through
            [sha256] = stack.upload()
            with suppress(AssertionError):
                eventually(lambda sha256=sha256: shows(sha256), within_s=10)
                break
        assert shows(sha256)
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


# --- Metrics ----------------------------------------------------------------------------------------------------------


def grown(before: Scrape, after: Scrape, name: str) -> dict[tuple[str, ...], float]:
    """What was added to a metric, by service and labels."""
    added = {(key[0], *key[2:]): value - before.get(key, 0) for key, value in after.items() if key[1] == name}
    return {key: value for key, value in added.items() if value}


def test_what_went_through_is_what_the_metrics_say(stack: Stack, tmp_path: Path) -> None:
    before = stack.scrape()
    stack.upload(3)
    stack.upload(1, lane="bulk")
    [whole] = write_samples(tmp_path, [sample for sample in SAMPLES if sample.filename.endswith(".jpg")][:1])
    broken = whole.read_bytes()[: whole.stat().st_size // 2]
    with (
        httpx.Client(base_url=stack.options.url, timeout=30) as client,
        grpc.insecure_channel(f"127.0.0.1:{stack.options.grpc_port}") as channel,
    ):
        accepted = client.post("/v1/images", files={"file": ("broken.jpg", broken)}).json()
        assert client.post("/v1/images", files={"file": ("text.jpg", b"no picture")}).status_code == 415
        DarkroomStub(channel).ListImages(ListImagesRequest(), timeout=30)

    photos_tasks = {
        ("thumbnailer", "success", "thumbnailer.prepare"): 3,
        ("thumbnailer", "failure", "thumbnailer.prepare"): 1,
        ("thumbnailer", "success", "thumbnailer.thumbnails"): 3,
        ("thumbnailer-bulk", "success", "thumbnailer.prepare"): 1,
        ("thumbnailer-bulk", "success", "thumbnailer.thumbnails"): 1,
        ("embedder", "success", "embedder.embed"): 4,
        ("finalize", "success", "scheduler.finalize"): 4,
        ("finalize", "success", "scheduler.record_failure"): 1,
    }
    ends = {("gateway", "image.ready"): 4, ("gateway", "image.failed"): 1}
    states = {("gateway", "accepted"): 5, ("gateway", "ready"): 4, ("gateway", "failed"): 1}

    def all_counted() -> Scrape | None:
        """the figures have caught up: a task is counted when it is acknowledged, the system every two seconds"""
        found = stack.scrape()
        tasks = grown(before, found, "darkroom_task_duration_seconds_count")
        events = grown(before, found, "darkroom_events_published_total")
        is_over = photos_tasks.keys() <= tasks.keys() and sum(tasks[key] for key in photos_tasks) >= 18
        is_over = is_over and all(events.get(key, 0) >= count for key, count in ends.items())
        return found if is_over and grown(before, found, "darkroom_ledger_images") == states else None

    after = eventually(all_counted, within_s=120, every_s=1)
    assert accepted["batch"]["total"] == 1
    assert grown(before, after, "darkroom_uploads_total") == {("gateway", "interactive"): 4, ("gateway", "bulk"): 1}
    assert grown(before, after, "darkroom_uploads_refused_total") == {("gateway", "unsupported-format"): 1}
    requests = grown(before, after, "darkroom_http_requests_total")
    assert requests[("gateway", "POST", "/v1/images", "202")] == 3
    assert grown(before, after, "darkroom_grpc_calls_total") == {("gateway", "OK", "ListImages"): 1}

    tasks = grown(before, after, "darkroom_task_duration_seconds_count")
    steps = ("thumbnailer.", "embedder.", "scheduler.finalize", "scheduler.record_failure")
    assert {key: count for key, count in tasks.items() if key[2].startswith(steps)} == photos_tasks
    events = grown(before, after, "darkroom_events_published_total")
    assert {key: events[key] for key in ends} == ends
    failures = grown(before, after, "darkroom_task_failures_total")
    assert {key: count for key, count in failures.items() if key[2].startswith(steps)} == {
        ("thumbnailer", "image-truncated", "thumbnailer.prepare"): 1
    }
    waits = grown(before, after, "darkroom_queue_wait_seconds_count")
    for key, least in {("thumbnailer", "prepare"): 4, ("thumbnailer-bulk", "prepare.bulk"): 1}.items():
        assert waits[key] >= least  # fences wait too
    assert sum(waits[("embedder", queue)] for queue in ("embed", "embed.bulk")) >= 4
    seconds = grown(before, after, "darkroom_queue_wait_seconds_sum")
    assert all(0 < value < 600 for value in seconds.values())
    assert grown(before, after, "darkroom_batch_size_sum") == {("embedder", "photos"): 4}
    for job in JOBS:
        assert after[("gateway", "darkroom_job_succeeded_timestamp_seconds", job.name)] > 1.7e9
    assert after[("beat", "darkroom_beat_leading")] == 1
    assert after[("beat", "darkroom_beat_jobs_sent_total", "reconcile")] >= 1
    for node in Node:
        assert after[(node.value, "darkroom_worker_connected")] == 1
        for queue in topology.queues_of(node):
            assert after[("gateway", "darkroom_queue_consumers", queue)] == 1
    assert {after[("gateway", "darkroom_part_up", part)] for part in ("database", "broker", "redis")} == {1}
    for worker in ("thumbnailer", "thumbnailer-bulk"):
        assert after[(worker, "darkroom_worker_children_started_total")] >= 2


def test_every_metric_is_scraped_and_well_formed(stack: Stack) -> None:
    names: set[str] = set()
    for service, families in stack.scrape_families().items():
        assert len({family.name for family in families}) == len(families), f"{service} has a metric twice"
        for family in families:
            assert family.documentation and family.type in ("counter", "gauge", "histogram"), family.name
            keys = [(sample.name, tuple(sorted(sample.labels.items()))) for sample in family.samples]
            assert len(keys) == len(set(keys)), f"{service}: {family.name} has a series twice"
            if family.type == "counter":
                assert all(sample.name.endswith("_total") and sample.value >= 0 for sample in family.samples)
        assert any(family.name == "process_cpu_seconds" for family in families)
        names |= {family.name for family in families if family.samples}
    declared = {family.name for registry in (GATEWAY, WORKER, BEAT) for family in registry.collect()}
    # Nothing was delivered twice.
    assert declared - names <= {"darkroom_task_redeliveries"}


def test_a_killed_child_is_counted_and_its_photo_goes_on(stack: Stack) -> None:
    before = stack.scrape()
    for pid in processes_of(stack):
        os.kill(pid, signal.SIGKILL)

    def are_new() -> bool:
        """other children took their place"""
        return grown(before, stack.scrape(), "darkroom_worker_children_started_total") == {("thumbnailer",): 2}

    eventually(are_new, within_s=60, every_s=0.5)
    stack.upload()
