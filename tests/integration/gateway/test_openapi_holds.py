"""Schemathesis makes calls of what /openapi.json says, and of what it forbids: every answer must be a declared one."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import httpx
import requests
import schemathesis
from gateway_outcomes import fail, finish, make_active
from gateway_pictures import picture
from gateway_serving import Served, Workers
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from sqlalchemy import Engine

pytest_plugins = ["gateway_fixtures"]

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]

EXAMPLES = 24
"""Calls of each operation: a third as it should be, a third of which with ids that there are, and a third as it should
not. All parts of the house are up, so none may be answered with 5xx."""

POSITIVE, NEGATIVE = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE

ENDLESS = "text/event-stream"


def known_ids(gateway: Served, engine: Engine, redis_url: str) -> dict[str, list[str]]:
    """Values of path parameters that stand for something: images in each state, their batches, a task."""
    ready, failed, waiting, deleted = (gateway.accepted(picture(seed))[0] for seed in range(4))
    finish(engine, gateway.parts.store, ready["sha256"], [1.0, 0.0, 0.0])
    fail(engine, failed["sha256"])
    gateway.http.delete(f"/v1/images/{deleted['id']}").raise_for_status()
    task = gateway.http.post("/v1/probes/add").raise_for_status().json()["task_id"]
    return {
        "image_id": [image["id"] for image in (ready, failed, waiting, deleted)],
        "batch_id": [ready["batch_id"]],
        "task_id": [task],
    }


def calls_of(operation: schemathesis.APIOperation, ids: dict[str, list[str]]) -> st.SearchStrategy[schemathesis.Case]:
    """Calls of one operation, good and bad, with ids that there are and ids that there are not."""
    strategies = [operation.as_strategy(POSITIVE), operation.as_strategy(NEGATIVE)]
    names = [parameter.name for parameter in operation.path_parameters]
    for name in names:
        for value in ids.get(name, ()):
            rest = {other: "small" for other in names if other == "size"}
            strategies.append(operation.as_strategy(POSITIVE, path_parameters={name: value, **rest}))
    return st.one_of(strategies)


def answer_to(case: schemathesis.Case, url: str) -> httpx.Response:
    """The answer to a call; of a stream that ends with the gateway alone, the head and the first piece."""
    prepared = requests.Request(**case.as_transport_kwargs(base_url=url)).prepare()
    with (
        httpx.Client(timeout=60) as client,
        client.stream(prepared.method, prepared.url, headers=prepared.headers, content=prepared.body) as answer,
    ):
        is_endless = answer.headers.get("content-type", "").startswith(ENDLESS)
        body = next(answer.iter_raw()) if is_endless else answer.read()
        told = httpx.Response(answer.status_code, headers=answer.headers, content=body, request=answer.request)
        told.elapsed = timedelta(0)  # httpx has none for what is not read to its end
        return told


def test_every_answer_is_declared_and_none_is_a_server_error(
    serve: Callable[..., Served],
    start_workers: Callable[..., Workers],
    engine: Engine,
    amqp_url: str,
    redis_url: str,
) -> None:
    gateway = serve(broker_url=amqp_url, result_url=redis_url)
    start_workers(amqp_url, redis_url)
    make_active(engine)
    ids = known_ids(gateway, engine, redis_url)
    schema = schemathesis.openapi.from_dict(gateway.app.openapi())
    operations = [found.ok() for found in schema.get_all_operations()]
    statuses: dict[str, set[int]] = {}
    faults: list[str] = []

    for operation in operations:

        @settings(
            max_examples=EXAMPLES,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=calls_of(operation, ids))
        def check(case: schemathesis.Case) -> None:
            answer = answer_to(case, gateway.url)
            statuses.setdefault(case.operation.label, set()).add(answer.status_code)
            case.validate_response(answer, checks=CHECKS)

        try:
            check()
        except* Exception as group:
            faults += [f"{operation.label}: {fault}" for fault in group.exceptions]

    assert not faults, "\n\n".join(faults)
    assert statuses.keys() == {operation.label for operation in operations}
    # The calls got as far as the work itself, not only to the check of their fields.
    assert len([label for label, seen in statuses.items() if any(status < 300 for status in seen)]) > 20


def test_every_route_of_the_api_is_in_the_document(gateway: Served) -> None:
    declared: dict[str, Any] = gateway.app.openapi()["paths"]
    elsewhere = {
        "/", "/docs", "/web/{name}", "/images/{image_id}/trace",  # pages for people
        "/openapi.json",  # the document itself
        "/otlp/v1/traces",  # OpenTelemetry's call, in its own words
    }  # fmt: skip
    routes = {route.path for route in gateway.app.routes}
    assert routes == set(declared) | elsewhere
