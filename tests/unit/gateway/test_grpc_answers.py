"""How errors and values are put into gRPC's words, without a server."""

import asyncio
import json
import threading
from datetime import UTC, datetime

import anyio
import anyio.lowlevel
import anyio.to_thread
import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo

from darkroom.contracts.base import Lane, ThumbnailSize
from darkroom.contracts.problems import problem
from darkroom.rpc.v1 import darkroom_pb2 as pb
from darkroom.telemetry.metrics import GRPC_CALLS
from gateway.grpc import messages
from gateway.grpc.problems import _gently, _told, code_of, rich_status
from gateway.models import Task
from gateway.problems import gateway_stopping


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, grpc.StatusCode.INVALID_ARGUMENT),
        (404, grpc.StatusCode.NOT_FOUND),
        (409, grpc.StatusCode.FAILED_PRECONDITION),
        (410, grpc.StatusCode.NOT_FOUND),
        (413, grpc.StatusCode.INVALID_ARGUMENT),
        (415, grpc.StatusCode.INVALID_ARGUMENT),
        (416, grpc.StatusCode.OUT_OF_RANGE),
        (422, grpc.StatusCode.INVALID_ARGUMENT),
        (500, grpc.StatusCode.INTERNAL),
        (503, grpc.StatusCode.UNAVAILABLE),
        (507, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
def test_a_problem_has_a_code(status: int, code: grpc.StatusCode) -> None:
    assert code_of(problem("some-problem", "A problem", status, "It is.")) is code


def test_a_status_says_all_that_the_problem_says() -> None:
    shown = problem(
        "too-long", "Too long", 422, "It is too long.", value=7, limit=["a", "é"], remedy="Cut it.", file="a"
    )
    status = rich_status(shown, (("tags.0", "is too long"),))
    assert (status.code, status.message) == (3, "It is too long.")
    info, fault = ErrorInfo(), BadRequest()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(fault)
    assert (info.reason, info.domain) == ("too-long", "darkroom.example")
    assert dict(info.metadata) == {"value": "7", "limit": '["a", "é"]', "remedy": "Cut it.", "file": "a"}
    assert [(one.field, one.description) for one in fault.field_violations] == [("tags.0", "is too long")]


def test_what_may_work_later_says_when() -> None:
    *_, last = rich_status(problem("a-b", "Away", 503, "It is away.")).details
    retry = RetryInfo()
    assert last.Unpack(retry)
    assert retry.retry_delay.seconds == 2


def test_a_status_fits_into_trailing_headers() -> None:
    faults = [f"field {n}: {'x' * 1000}" for n in range(10)]
    shown = problem("a-b", "Many", 422, "Many faults.", value=faults, remedy="y" * 3000)
    status = rich_status(shown, tuple((f"f{n}", "x" * 1000) for n in range(10)))
    assert status.ByteSize() < 8192


def test_enums_are_rests_words() -> None:
    assert [messages.word(pb.Lane, number) for number in (0, 1, 2, 9, -1)] == [None, *Lane, "9", "-1"]
    sizes = [messages.word(pb.ThumbnailSize, number) for number in pb.ThumbnailSize.values()]
    assert sizes == [None, *ThumbnailSize]


@pytest.mark.parametrize("result", [{"a": [1, None, {"b": "c"}]}, [1, 2], "text", 7, True, None])
def test_a_tasks_result_is_any_json(result: object) -> None:
    shown = messages.task(Task(task_id="0" * 32, name="n", state="SUCCESS", result=result, issued_at=datetime.now(UTC)))
    assert shown.state == pb.TASK_STATE_SUCCESS
    assert shown.HasField("result") == (result is not None)
    if isinstance(result, dict):
        assert json.loads(json.dumps(dict(shown.result.struct_value)["a"][0])) == 1


def test_a_cancelled_call_waits_for_its_thread_and_cleans_up_after_it() -> None:
    happened: list[str] = []
    writing, go_on = threading.Event(), threading.Event()

    def write() -> None:
        writing.set()
        go_on.wait(30)
        happened.append("written")

    async def work() -> None:
        try:
            await anyio.to_thread.run_sync(write)
            happened.append("went on")
            await anyio.lowlevel.checkpoint()
        finally:
            happened.append("cleaned up")

    async def cancel_it() -> None:
        call = asyncio.ensure_future(_gently(work()))
        await anyio.to_thread.run_sync(writing.wait)
        call.cancel()
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(cancel_it())
    assert happened[0] == "written"
    assert happened[-1] == "cleaned up"


def test_an_error_comes_out_of_it_as_it_was() -> None:
    async def fail() -> None:
        raise ValueError("as it was")

    with pytest.raises(ValueError, match="as it was"):
        asyncio.run(_gently(fail()))


def test_a_refusal_is_counted_before_it_is_sent() -> None:
    def counted() -> float:
        return GRPC_CALLS.labels("Refuse", "UNAVAILABLE")._value.get()

    class Call:
        """As much of a call as a refusal needs; how often refusals had been counted when this one was sent."""

        counted_when_sent: float | None = None

        def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
            return ()

        async def abort(self, *_status: object) -> None:
            self.counted_when_sent = counted()

    async def refused(call: Call) -> None:
        async with _told("/any.Service/Refuse", call):  # type: ignore[arg-type]
            raise gateway_stopping()

    before, call = counted(), Call()
    asyncio.run(refused(call))
    assert call.counted_when_sent == before + 1
