"""Every setting of Darkroom, one frozen class a concern, read once at start from `DARKROOM_*`.

`.env.example` lists them with unit and default; a test compares the two.
"""

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SecretsSettingsSource, SettingsConfigDict

from darkroom.contracts.base import OutputFormat
from darkroom.contracts.keys import Recipe
from darkroom.outbound import OutboundPolicy, parse_networks

SECRETS_DIR = "DARKROOM_SECRETS_DIR"
"""Names the folder with a file for each setting that the environment does not have, named as the variable would be."""


class Settings(BaseSettings):
    """Base: prefix `DARKROOM_`, frozen, blank means default; what is not in the environment may be in `SECRETS_DIR`."""

    model_config = SettingsConfigDict(env_prefix="DARKROOM_", frozen=True, extra="ignore", env_ignore_empty=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment, then files: an orchestrator mounts secrets, and shows its environment."""
        folder = os.environ.get(SECRETS_DIR)
        if folder:
            return init_settings, env_settings, SecretsSettingsSource(settings_cls, folder)
        return init_settings, env_settings


class BrokerSettings(Settings):
    """The message broker and the store of task results."""

    broker_url: SecretStr
    """`amqp://…` in earnest, `redis://…` on one machine."""
    result_url: SecretStr
    """`redis://…`; must run with `maxmemory-policy noeviction`, or joins are lost."""
    result_expires_s: int = Field(3600, ge=1)
    """How long a finished task's result can be asked for."""
    chord_expires_s: int = Field(7 * 86_400, ge=60)
    """Longest backlog whose joins survive."""
    broker_declare: bool = True
    """Whether this process declares exchanges and queues; false where it may not, and `darkroom-scheduler topology`
    has done it."""


class TaskSettings(Settings):
    """How long a unit of work may take, and how often it is tried. The reconciler's deadline follows from these."""

    task_soft_limit_s: int = Field(25, ge=1)
    """A photo's decode or render gets an exception here; p99 of a 100 MP photo is below 10 s on one core."""
    task_hard_limit_s: int = Field(30, ge=2)
    """Its child process is killed here."""
    task_max_retries: int = Field(3, ge=0)
    """Of transient errors, after 1, 2 and 4 s: longer outages are the reconciler's."""

    @model_validator(mode="after")
    def _soft_before_hard(self) -> "TaskSettings":
        if self.task_soft_limit_s >= self.task_hard_limit_s:
            raise ValueError(
                f"DARKROOM_TASK_SOFT_LIMIT_S ({self.task_soft_limit_s}) must be below "
                f"DARKROOM_TASK_HARD_LIMIT_S ({self.task_hard_limit_s})"
            )
        return self

    @property
    def retry_chain_s(self) -> int:
        """Longest time that retries wait in all: 1 + 2 + 4 … s, and up to 1 s of jitter each."""
        return sum(2**n + 1 for n in range(self.task_max_retries))

    @property
    def step_deadline_s(self) -> int:
        """After its message was taken from the queue, a step has ended within this time, one way or the other.

        One try at its limit, or all tries of a step that fails at once: what fails late and is tried again may be sent
        again meanwhile, for nothing.
        """
        return max(self.task_hard_limit_s, self.retry_chain_s)


class StorageSettings(Settings):
    """Where blobs lie."""

    blob_url: str
    """`file:///absolute/folder` or `s3://bucket/prefix`; `gs://` and `az://` are untested."""


class RenderSettings(Settings):
    """What thumbnails look like."""

    thumbnail_format: OutputFormat = OutputFormat.WEBP

    @property
    def recipe(self) -> Recipe:
        """The recipe that new dispatches carry."""
        return Recipe.current(self.thumbnail_format)


class LimitSettings(Settings):
    """What an upload may be. The gateway checks bytes and counts, the thumbnailer everything inside a picture."""

    max_upload_bytes: int = Field(200 * 2**20, ge=1)
    """Of one file."""
    max_upload_files: int = Field(100, ge=1)
    """In one request."""
    max_pixels: int = Field(100_000_000, ge=1)
    """Width times height of one frame, from the header: 100 MP decode to 300 MB."""
    max_frames: int = Field(1000, ge=1)
    """Of an animation or a multi-page file; only the first is shown."""
    decode_memory_bytes: int = Field(2 * 2**30, ge=2**26)
    """For one decode beside the file itself: 100 MP of the hungriest kinds (WebP, TIFF of floats) take as much."""


class OutboundSettings(Settings):
    """Where requests may go whose address a client gave."""

    callback_allowed_networks: str = ""
    """In CIDR notation, separated by spaces: callbacks may go there besides the public internet, over http too."""

    @property
    def outbound_policy(self) -> OutboundPolicy:
        """The same as a rule."""
        return OutboundPolicy(parse_networks(self.callback_allowed_networks))

    @model_validator(mode="after")
    def _readable_networks(self) -> "OutboundSettings":
        parse_networks(self.callback_allowed_networks)
        return self


class DatabaseSettings(Settings):
    """PostgreSQL with pgvector: only the gateway and the scheduler have these."""

    database_url: SecretStr
    """`postgresql+psycopg://…`"""
    database_pool_size: int = Field(10, ge=1)
    """Connections a process keeps."""


class TraceStoreSettings(Settings):
    """The traces that the gateway keeps by itself."""

    trace_retention_h: int = Field(24, ge=1)
    """How long their spans stay in the database: 4 to 6 KB for each photo."""


class ModelSettings(Settings):
    """The embedding model."""

    model: str = "bundled"
    """A local folder, a hub id such as `openai/clip-vit-base-patch32`, or `bundled`."""
    model_device: Literal["auto", "cpu", "cuda"] = "auto"
    model_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 where the processor multiplies it in hardware, else float32."""
    batch_size: int = Field(16, ge=1, le=256)
    """ViT-B/32 on a CPU core is fastest at 16; a GPU wants 64 and more."""
    batch_wait_ms: int = Field(10, ge=0, le=1000)
    """How long the first request of a batch waits for others."""
    model_threads: int = Field(0, ge=0)
    """Threads for one forward pass; 0: one for each core, and a single one for the bundled model."""


class LogSettings(Settings):
    """Logs are JSON lines on standard output."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"


class WorkerSettings(Settings):
    """What every worker process has."""

    worker_concurrency: int = Field(0, ge=0)
    """Slots of a prefork or threads worker; 0: one for each core."""
    heartbeat_file: Path | None = None
    """Touched by the worker's loop every 2 s; a health check reads its age."""


class MetricsSettings(Settings):
    """Where a worker or beat serves its metrics; the gateway does at `/metrics` of its HTTP port."""

    metrics_host: str = "127.0.0.1"
    """Loopback: they say how much is going on."""
    metrics_port: int | None = Field(None, ge=0, le=65_535)
    """0: any free port, the log says which. None: no metrics, and nothing is measured."""


class TracingSettings(BaseSettings):
    """Of OpenTelemetry's own variables those that Darkroom looks at itself; its SDK reads all of them."""

    model_config = SettingsConfigDict(env_prefix="OTEL_", frozen=True, extra="ignore", env_ignore_empty=True)

    exporter_otlp_endpoint: str | None = None
    exporter_otlp_traces_endpoint: str | None = None
    exporter_otlp_protocol: str = "http/protobuf"
    traces_exporter: str = "otlp"
    sdk_disabled: bool = False
    service_name: str | None = None
    bsp_schedule_delay: int = Field(1000, ge=1)
    """Milliseconds that a finished span waits for company: a process that is killed takes no more with it."""

    @property
    def is_on(self) -> bool:
        """Whether spans go anywhere. Without an endpoint they do not: the standard's default would be a guess."""
        endpoint = self.exporter_otlp_traces_endpoint or self.exporter_otlp_endpoint
        return endpoint is not None and not self.sdk_disabled and self.traces_exporter != "none"

    @model_validator(mode="after")
    def _over_http(self) -> "TracingSettings":
        if self.is_on and self.exporter_otlp_protocol != "http/protobuf":
            raise ValueError(
                f"OTEL_EXPORTER_OTLP_PROTOCOL is {self.exporter_otlp_protocol!r}; Darkroom sends http/protobuf only: "
                "leave it out, and name the backend's port for OTLP over HTTP, which is usually 4318"
            )
        return self
