"""Every setting of the gateway."""

from pydantic import Field

from darkroom.settings import (
    BrokerSettings,
    DatabaseSettings,
    LimitSettings,
    LogSettings,
    OutboundSettings,
    RenderSettings,
    StorageSettings,
    TaskSettings,
    TraceStoreSettings,
)


class GatewaySettings(
    DatabaseSettings,
    BrokerSettings,
    TaskSettings,
    StorageSettings,
    RenderSettings,
    LimitSettings,
    TraceStoreSettings,
    OutboundSettings,
    LogSettings,
):
    """What the gateway reads from the environment."""

    http_host: str = "127.0.0.1"
    """Loopback: whoever reaches the gateway may see and delete everything."""
    http_port: int = Field(8000, ge=0, le=65_535)
    """0: any free port; the log says which."""
    grpc_host: str = "127.0.0.1"
    """Loopback, for the same reason."""
    grpc_port: int = Field(50_051, ge=0, le=65_535)
    """0: any free port; the log says which."""
    shutdown_grace_s: int = Field(20, ge=0)
    """How long what is in flight may go on after SIGTERM: a 200 MB upload at 80 Mbit/s. Its threads have 10 s more."""
    min_free_bytes: int = Field(2**30, ge=0)
    """Of the blob store's disk, below which uploads are refused: thumbnails, backups and neighbours need room too."""
    max_backlog: int = Field(1_000_000, ge=1)
    """Images in flight above which uploads are refused: two days' work of one GPU, a third of what joins live for."""
    max_uploads_at_once: int = Field(512, ge=1)
    """Over REST, received by this process: one that stands still holds 0.25 MB."""
    max_grpc_uploads_at_once: int = Field(64, ge=1)
    """Over gRPC, likewise: one that stands still holds 10 MB when its client sends the longest messages, 4 MiB."""
    search_timeout_ms: int = Field(10_000, ge=1)
    """A query waits for at most the batch being computed: 16 of ViT-B/32 in float32 on one core are 2 s."""
    direct_download_s: int = Field(0, ge=0, le=7 * 86_400)
    """How long the address is valid to which a download is redirected, straight into the object store; S3 allows 7
    days. 0: the gateway serves every byte itself, as it does with `file://`."""
    dispatcher_enabled: bool = True
    """Whether this process dispatches. Any number of gateways may; none of them means that nothing is worked on."""
    dispatch_batch: int = Field(50, ge=1, le=1000)
    """Originals leased at once: one confirmed publish takes about 4 ms, so a batch holds its lease for 0.2 s."""
    dispatch_lease_s: int = Field(60, ge=10)
    """After it, the originals of a gateway that died while publishing are dispatched by another."""
    probes_per_minute: int = Field(30, ge=1)
    """Of all gateways together: at their longest, 10 minutes of work in a minute."""
    probe_max_s: int = Field(20, ge=1)
    """Longest work of one probe; never as long as the soft limit, and 2 s in the embedder."""
    relay_enabled: bool = True
    """Whether this process may become the one that publishes events."""
    trace_store_enabled: bool = False
    """Whether spans are taken at /otlp/v1/traces and kept. Off: in earnest they go to a backend of their own."""
    trace_export_bytes: int = Field(8 * 2**20, ge=65_536)
    """Of one export, decompressed: 512 spans, the SDK's largest batch, have about 300 KB."""
    trace_queue_bytes: int = Field(16 * 2**20, ge=65_536)
    """Of compressed spans that wait to be written; what comes beyond is dropped and counted."""
