"""The gateway's metrics: what it counts, and that they are there when nothing else is."""

import socket
from collections.abc import Callable

import grpc
import pytest
from conftest import eventually
from gateway_pictures import picture
from gateway_serving import Served
from prometheus_client.parser import text_string_to_metric_families

from darkroom.rpc.v1.darkroom_pb2 import GetImageRequest
from darkroom.rpc.v1.darkroom_pb2_grpc import DarkroomStub
from darkroom_cli.servers.ports import reserve_port

pytest_plugins = ["gateway_fixtures"]

Serve = Callable[..., Served]
Scrape = dict[tuple[str, ...], float]

PROMETHEUS_WAITS_S = 10

OF_THE_SYSTEM = ("darkroom_ledger_", "darkroom_dispatch_", "darkroom_job_", "darkroom_queue_", "darkroom_dead_letters")


def scrape(gateway: Served) -> Scrape:
    """Every sample, by its name and its labels' values."""
    answer = gateway.http.get("/metrics", timeout=PROMETHEUS_WAITS_S)
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = text_string_to_metric_families(answer.text)
    return {(each.name, *each.labels.values()): each.value for family in families for each in family.samples}


def grown(before: Scrape, after: Scrape, name: str) -> dict[tuple[str, ...], float]:
    """What was added to each series of a metric."""
    added = {key[1:]: value - before.get(key, 0) for key, value in after.items() if key[0] == name}
    return {labels: value for labels, value in added.items() if value}


def test_uploads_and_calls_are_counted_over_both_faces(gateway: Served) -> None:
    before = scrape(gateway)
    photo = picture(1)
    gateway.accepted(photo, lane="bulk")
    assert gateway.upload(b"no picture").status_code == 415
    assert gateway.http.get("/v1/images/not-an-id").status_code == 422
    assert gateway.http.get("/v1/made/up").status_code == 404
    assert gateway.http.request("PROPFIND", "/v1/images").status_code == 405
    with grpc.insecure_channel(gateway.grpc_target) as channel, pytest.raises(grpc.RpcError):
        DarkroomStub(channel).GetImage(GetImageRequest(image_id="?"), timeout=30)
    after = scrape(gateway)
    assert grown(before, after, "darkroom_uploads_total") == {("bulk",): 1}
    assert grown(before, after, "darkroom_upload_bytes_total") == {("bulk",): len(photo)}
    assert grown(before, after, "darkroom_uploads_refused_total") == {("unsupported-format",): 1}
    requests = grown(before, after, "darkroom_http_requests_total")
    assert requests[("POST", "/v1/images", "202")] == requests[("POST", "/v1/images", "415")] == 1
    assert requests[("GET", "/v1/images/{image_id}", "422")] == 1
    assert requests[("GET", "none", "404")] == 1
    assert requests[("other", "/v1/images", "405")] == 1
    durations = grown(before, after, "darkroom_http_request_duration_seconds_count")
    assert durations[("POST", "/v1/images")] == 2
    assert grown(before, after, "darkroom_grpc_calls_total") == {("INVALID_ARGUMENT", "GetImage"): 1}


def test_the_database_says_how_the_system_stands_while_broker_and_redis_are_away(gateway: Served) -> None:
    gateway.accepted(picture(1))

    def scraped() -> Scrape | None:
        """the upload is in the figures, which may be two seconds old"""
        found = scrape(gateway)
        return found if found.get(("darkroom_ledger_images", "accepted")) == 1 else None

    found = eventually(scraped, within_s=60, every_s=0.5)
    assert found[("darkroom_ledger_images", "in_flight")] == 1
    assert found[("darkroom_dispatch_backlog", "photos")] == 1
    assert found[("darkroom_dispatch_oldest_wait_seconds", "photos")] > 0
    assert found[("darkroom_dead_letters", "kept")] == 0
    parts = {labels[1]: value for labels, value in found.items() if labels[0] == "darkroom_part_up"}
    assert parts == {"database": 1, "broker": 0, "redis": 0}
    assert not any(labels[0] in ("darkroom_queue_messages", "darkroom_queue_in_hand") for labels in found)


def test_with_everything_away_what_the_gateway_itself_does_is_still_told(serve: Serve) -> None:
    gateway = serve(database_url=f"postgresql+psycopg://x@127.0.0.1:{reserve_port()}/x")
    found = scrape(gateway)
    parts = {labels[1]: value for labels, value in found.items() if labels[0] == "darkroom_part_up"}
    assert parts == {"database": 0, "broker": 0, "redis": 0}
    assert [labels for labels in found if labels[0].startswith(OF_THE_SYSTEM)] == []
    assert found[("process_cpu_seconds_total",)] > 0
    assert gateway.upload(picture(1)).status_code == 503
    after = scrape(gateway)
    assert grown(found, after, "darkroom_uploads_refused_total") == {("database-unavailable",): 1}


def test_a_broker_that_hangs_costs_only_its_own_figures(impatience: None, serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never answers
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        found = scrape(serve(broker_url=url, result_url=url))
    parts = {labels[1]: value for labels, value in found.items() if labels[0] == "darkroom_part_up"}
    assert parts == {"database": 1, "broker": 0, "redis": 0}
    assert found[("darkroom_ledger_images", "accepted")] == 0
