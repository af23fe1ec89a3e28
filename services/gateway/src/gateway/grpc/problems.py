"""The one place that turns errors into gRPC answers: a rich status for whatever went wrong, and a log line a call."""

import asyncio
import json
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NoReturn, TypeVar

import anyio
import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status
from opentelemetry.trace import Span, use_span

from darkroom.contracts.problems import Problem
from darkroom.telemetry import metrics
from gateway.errors import InvalidFieldsError, RateLimitedError, retry_after_s
from gateway.problems import gateway_stopping, internal_error, problem_of
from gateway.traces import end_server_span, server_span

log = logging.getLogger(__name__)

DOMAIN = "darkroom.example"
"""As in the problem types: a name, not an address."""

MAX_METADATA_CHARACTERS = 500
"""Of one value in the error details: all of them travel in trailing headers, of which most clients accept 8 KiB."""

_CODES = {
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    410: grpc.StatusCode.NOT_FOUND,
    416: grpc.StatusCode.OUT_OF_RANGE,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    507: grpc.StatusCode.RESOURCE_EXHAUSTED,
}

_FAULTS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN}
"""Ours, not the caller's: only these are errors in a trace."""

AnswerT = TypeVar("AnswerT")


def code_of(problem: Problem) -> grpc.StatusCode:
    """The status code that says the same as the problem's HTTP status, as far as one does."""
    fallback = grpc.StatusCode.INVALID_ARGUMENT if problem.status < 500 else grpc.StatusCode.INTERNAL
    return _CODES.get(problem.status, fallback)


def rich_status(problem: Problem, violations: tuple[tuple[str, str], ...] = (), retry_s: int | None = None) -> Status:
    """The status with all that a problem says; `violations` are the fields at fault, each with what is wrong."""
    told = {"value": problem.value, "limit": problem.limit, "remedy": problem.remedy, "file": problem.file}
    metadata = {name: _text(value) for name, value in told.items() if value is not None}
    details: list[Message] = [ErrorInfo(reason=problem.slug, domain=DOMAIN, metadata=metadata)]
    if violations:
        faults = [BadRequest.FieldViolation(field=name, description=_text(fault)) for name, fault in violations]
        details.append(BadRequest(field_violations=faults))
    code = code_of(problem)
    retry_s = retry_after_s(problem) if retry_s is None else retry_s
    if retry_s is not None:
        details.append(RetryInfo(retry_delay=Duration(seconds=retry_s)))
    return Status(code=code.value[0], message=problem.detail, details=[_packed(detail) for detail in details])


def _text(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_METADATA_CHARACTERS else text[: MAX_METADATA_CHARACTERS - 1] + "…"


def _packed(detail: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(detail)
    return packed


class Answers(grpc.aio.ServerInterceptor):
    """Gives every call of a service its answer, whatever happens, and writes one log line for it."""

    def __init__(self, service: str) -> None:
        self._prefix = f"/{service}/"
        self._is_ending = False
        self._last_call_at = -math.inf

    @property
    def idle_s(self) -> float:
        """Seconds since somebody called; infinite where nobody has."""
        return time.monotonic() - self._last_call_at

    def refuse(self) -> None:
        """Has every call from now on answered with the problem `gateway-stopping`."""
        self._is_ending = True

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], call: grpc.HandlerCallDetails
    ) -> Any:
        """The call's handler, in this wrapping."""
        handler = await continuation(call)
        if handler is None or not call.method.startswith(self._prefix):
            return handler
        self._last_call_at = time.monotonic()
        coding = (handler.request_deserializer, handler.response_serializer)
        one, many = (_refuse_one, _refuse_many) if self._is_ending else (None, None)
        match handler.request_streaming, handler.response_streaming:
            case False, False:
                return grpc.unary_unary_rpc_method_handler(_one(call.method, one or handler.unary_unary), *coding)
            case True, False:
                return grpc.stream_unary_rpc_method_handler(_one(call.method, one or handler.stream_unary), *coding)
            case False, True:
                return grpc.unary_stream_rpc_method_handler(_many(call.method, many or handler.unary_stream), *coding)
        return grpc.stream_stream_rpc_method_handler(_many(call.method, many or handler.stream_stream), *coding)


def _one(method: str, handler: Callable[[Any, Any], Awaitable[AnswerT]]) -> Callable[[Any, Any], Awaitable[AnswerT]]:
    async def answer(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AnswerT:
        async with _told(method, context) as span:
            with use_span(span, record_exception=False, set_status_on_exception=False):
                return await _gently(handler(request, context))

    return answer


def _many(
    method: str, handler: Callable[[Any, Any], AsyncIterator[AnswerT]]
) -> Callable[[Any, Any], AsyncIterator[AnswerT]]:
    async def answers(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[AnswerT]:
        async with _told(method, context):
            async for message in handler(request, context):
                yield message

    return answers


async def _refuse_one(_request: Any, _context: Any) -> NoReturn:
    raise gateway_stopping()


async def _refuse_many(_request: Any, _context: Any) -> AsyncIterator[NoReturn]:
    raise gateway_stopping()
    yield  # makes it a stream, as it would have been


@asynccontextmanager
async def _told(method: str, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Span]:
    started, code, refusal = time.monotonic(), grpc.StatusCode.OK, None
    # Not made the current one: an answer that is a stream may be ended in another context than it was begun in.
    span = server_span(method, context.invocation_metadata() or ())
    try:
        yield span
    except (asyncio.CancelledError, GeneratorExit):
        code = grpc.StatusCode.CANCELLED  # by the client or by its deadline
        raise
    except Exception as error:
        problem = problem_of(error)
        if problem is None:
            log.exception("grpc.error", extra={"method": method})
            problem = internal_error()
        code = code_of(problem)
        violations = error.violations if isinstance(error, InvalidFieldsError) else ()
        retry_s = error.retry_after_s if isinstance(error, RateLimitedError) else None
        refusal = rpc_status.to_status(rich_status(problem, violations, retry_s))
    finally:
        duration_s = time.monotonic() - started
        name = method.rpartition("/")[2]
        metrics.GRPC_CALLS.labels(name, code.name).inc()
        metrics.GRPC_DURATION.labels(name).observe(duration_s)
        log.info("grpc.call", extra={"method": method, "code": code.name, "duration_s": round(duration_s, 4)})
        end_server_span(span, code.name, is_error=code in _FAULTS)
    if refusal is not None:
        # Only now: who has an answer finds it counted.
        await context.abort(refusal.code, refusal.details, refusal.trailing_metadata)


async def _gently(work: Awaitable[AnswerT]) -> AnswerT:
    """What `work` answers; when the call is cancelled, so is it, as far as it lets itself be.

    gRPC cancels a call's task outright, also while it waits for a thread, which would go on writing behind our back.
    Through a task group the cancellation becomes one that anyio's shields hold up until the thread has ended.
    """
    answers, errors = list[AnswerT](), list[Exception]()

    async def run() -> None:
        try:
            answers.append(await work)
        except Exception as error:
            errors.append(error)

    async with anyio.create_task_group() as group:
        group.start_soon(run)
    if errors:
        raise errors[0]
    return answers[0]
