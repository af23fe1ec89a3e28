"""The queues and the dead letters, for who runs the system."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from darkroom.database.dead_letters import Outcome
from gateway.models import DeadLetterContent, DeadLetterList, Dropped, QueueOverview, Replayed
from gateway.rest.dependencies import FromGateway
from gateway.rest.problems import answers_with

router = APIRouter(prefix="/v1", tags=["queues"])


@router.get("/queues", responses=answers_with())
async def queues(gateway: FromGateway) -> QueueOverview:
    """Of every queue: depth, oldest age, consumers, rate, and what its probe says."""
    return await gateway.queues.read()


Number = Annotated[int, Path(ge=1, le=2**63 - 1)]


@router.get("/dead-letters", responses=answers_with())
async def dead_letters(
    gateway: FromGateway,
    outcome: Outcome | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    page_token: Annotated[int | None, Query(ge=1, le=2**63 - 1, description="From the page before.")] = None,
) -> DeadLetterList:
    """Messages that no worker could take, newest first, and what became of each."""
    return await gateway.dead_letters.list(outcome, limit, page_token)


@router.get("/dead-letters/{number}", responses=answers_with(404))
async def dead_letter(gateway: FromGateway, number: Number) -> DeadLetterContent:
    """One dead letter with its headers and its body."""
    return await gateway.dead_letters.find(number)


@router.post("/dead-letters/{number}:replay", status_code=202, responses=answers_with(404, 409))
async def replay(gateway: FromGateway, number: Number) -> DeadLetterContent:
    """Sends a dead letter to its queue again, or has its photo dispatched anew. Doing it twice does it once."""
    replayed = await gateway.dead_letters.replay(number)
    gateway.wake()
    return replayed


@router.post("/dead-letters:replay", status_code=202, responses=answers_with())
async def replay_kept(gateway: FromGateway) -> Replayed:
    """Replays every dead letter that waits for a person."""
    replayed = await gateway.dead_letters.replay_kept()
    gateway.wake()
    return replayed


@router.delete("/dead-letters/{number}", status_code=204, responses=answers_with(404))
async def drop(gateway: FromGateway, number: Number) -> None:
    """Forgets a dead letter for good."""
    await gateway.dead_letters.drop(number)


@router.delete("/dead-letters", responses=answers_with())
async def drop_kept(gateway: FromGateway) -> Dropped:
    """Forgets every dead letter that waits for a person; the history of the others stays."""
    return Dropped(dropped=await gateway.dead_letters.drop_kept())
