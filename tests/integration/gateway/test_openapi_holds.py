"""Schemathesis makes calls of what /openapi.json says, and of what it forbids: every answer must be a declared one."""

import importlib
import pkgutil
from collections.abc import Callable
from datetime import timedelta

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

import gateway.rest
from gateway.rest.app import create_app
from gateway.settings import GatewaySettings

pytest_plugins = ["gateway_fixtures"]

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]

EXAMPLES = 24
"""Calls of each operation: as it should be, as it should not, and with ids that there are, as chance will have it. All
parts of the house are up, so none may be answered with 5xx."""

POSITIVE, NEGATIVE = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE

ENDLESS = "text/event-stream"


def known_ids(served: Served, engine: Engine, number: int) -> dict[str, list[str]]:
    """Images in each state and a batch, other ones for each number: a call may delete them."""
    ready, failed, waiting, deleted = (served.accepted(picture(4 * number + n))[0] for n in range(4))
    finish(engine, served.parts.store, ready["sha256"], [1.0, 0.0, 0.0])
    fail(engine, failed["sha256"])
    served.http.delete(f"/v1/images/{deleted['id']}").raise_for_status()
    return {"image_id": [image["id"] for image in (ready, failed, waiting, deleted)], "batch_id": [ready["batch_id"]]}


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
    served = serve(broker_url=amqp_url, result_url=redis_url)
    start_workers(amqp_url, redis_url)
    make_active(engine)
    task = served.http.post("/v1/probes/add").raise_for_status().json()["task_id"]
    schema = schemathesis.openapi.from_dict(served.app.openapi())
    operations = [found.ok() for found in schema.get_all_operations()]
    statuses: dict[str, set[int]] = {}
    faults: list[str] = []

    for number, operation in enumerate(operations):
        ids = known_ids(served, engine, number) | {"task_id": [task]}

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
            answer = answer_to(case, served.url)
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


def test_every_route_of_the_api_is_in_the_document(settings_with: Callable[..., GatewaySettings]) -> None:
    names = [found.name for found in pkgutil.iter_modules(gateway.rest.__path__, "gateway.rest.")]
    routers = [module.router for module in map(importlib.import_module, names) if hasattr(module, "router")]
    declared = create_app(settings_with()).openapi()["paths"].keys()

    assert {route.path for router in routers for route in router.routes} - declared == {
        *("/", "/docs", "/web/{name}", "/images/{image_id}/trace"),  # pages for people
        "/otlp/v1/traces",  # OpenTelemetry's call, in its own words
    }
