"""Spans in over OTLP/HTTP, and each photo's trace out."""

from uuid import UUID

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)

from darkroom.errors import PermanentError
from gateway.grpc.problems import rich_status
from gateway.otlp import MalformedExportError, TooLargeError, inflate
from gateway.photo_traces import trace_of
from gateway.rest.dependencies import FromGateway
from gateway.rest.problems import answers_with
from gateway.trace_models import ImageTrace
from gateway.trace_store import Kept, TraceStore

router = APIRouter(tags=["traces"])

PROTOBUF = "application/x-protobuf"


@router.get("/v1/images/{image_id}/trace", responses=answers_with(404, 410))
async def image_trace(gateway: FromGateway, image_id: UUID) -> ImageTrace:
    """One photo's spans as a tree: what was done for it, where it waited, and what went wrong."""
    return await trace_of(gateway.engine, gateway.settings, image_id)


@router.post("/otlp/v1/traces", include_in_schema=False)
async def export(request: Request, gateway: FromGateway) -> Response:
    """Takes spans as OTLP/HTTP wants it, and answers in its words: protobuf, also for what was wrong."""
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != PROTOBUF:
        raise _wrong_type("body", content_type, PROTOBUF, "Set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf.")
    try:
        if gateway.traces is None:
            raise _store_off()
        kept = await _keep(request, gateway.traces, gateway.settings.trace_export_bytes)
    except PermanentError as error:
        status = rich_status(error.problem)
        status.message = " ".join(filter(None, (error.problem.detail, error.problem.remedy)))  # all that senders log
        return Response(status.SerializeToString(), error.problem.status, media_type=PROTOBUF)
    answer = ExportTraceServiceResponse()
    if kept.refused:
        partly = ExportTracePartialSuccess(rejected_spans=kept.refused, error_message=kept.reason or "")
        answer.partial_success.CopyFrom(partly)
    return Response(answer.SerializeToString(), media_type=PROTOBUF)


async def _keep(request: Request, store: TraceStore, limit: int) -> Kept:
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("gzip", "identity"):
        raise _wrong_type("encoding", encoding, "gzip", "Set OTEL_EXPORTER_OTLP_COMPRESSION=gzip, or leave it out.")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise _too_large(limit)

    def keep() -> Kept:
        return store.keep(inflate(body, limit) if encoding == "gzip" else bytes(body))

    try:
        return await run_sync(keep, limiter=store.limiter)
    except TooLargeError as error:
        raise _too_large(limit) from error
    except MalformedExportError as error:
        raise _malformed(str(error)) from error


def _store_off() -> PermanentError:
    return PermanentError.of(
        "traces-not-kept",
        "This gateway keeps no traces",
        404,
        "This gateway takes no spans: DARKROOM_TRACE_STORE_ENABLED is off.",
        remedy="Switch it on, or set OTEL_EXPORTER_OTLP_ENDPOINT to another backend.",
    )


def _wrong_type(what: str, found: str, wanted: str, remedy: str) -> PermanentError:
    return PermanentError.of(
        "wrong-content-type",
        "The request's content type cannot be read",
        415,
        f"The {what} is {found or 'of no stated type'}; it must be {wanted}.",
        value=found,
        limit=wanted,
        remedy=remedy,
    )


def _too_large(limit: int) -> PermanentError:
    return PermanentError.of(
        "trace-export-too-large",
        "The export has too many bytes",
        413,
        f"The export has more than {limit} bytes; no span of it was kept.",
        limit=limit,
        remedy="Lower OTEL_BSP_MAX_EXPORT_BATCH_SIZE where it comes from, or raise DARKROOM_TRACE_EXPORT_BYTES.",
    )


def _malformed(fault: str) -> PermanentError:
    return PermanentError.of(
        "malformed-trace-export",
        "The export cannot be read",
        400,
        f"The body cannot be read: {fault}; no span of it was kept.",
        remedy="Send an ExportTraceServiceRequest of OTLP 1, as OpenTelemetry's OTLP exporters over HTTP do.",
    )
