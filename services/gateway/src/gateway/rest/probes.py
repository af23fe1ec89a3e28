"""Synthetic tasks through the real queues."""

from typing import Annotated

from fastapi import APIRouter, Body, Response

from darkroom.contracts.messages import ProbeKind
from gateway.models import ProbeAccepted, ProbeRequest
from gateway.rest.bodies import JsonRoute
from gateway.rest.dependencies import FromGateway
from gateway.rest.problems import answers_with

router = APIRouter(prefix="/v1", tags=["system"], route_class=JsonRoute)


DEFAULTS = ProbeRequest()


@router.post("/probes/{kind}", status_code=202, responses=answers_with(400, 413, 429))
async def send_probe(
    gateway: FromGateway, kind: ProbeKind, response: Response, asked: Annotated[ProbeRequest, Body()] = DEFAULTS
) -> ProbeAccepted:
    """Sends a task through a queue to see how it does. GET /v1/tasks/{task_id} tells what comes of it."""
    task_id = await gateway.probes.send(kind, asked)
    response.headers["Location"] = f"/v1/tasks/{task_id}"
    return ProbeAccepted(task_id=task_id)
