"""One example of every message, with every field set to something that is not its default."""

from datetime import UTC, datetime
from uuid import UUID

from darkroom.contracts import messages as m
from darkroom.contracts.base import Lane, Message, OutputFormat, ThumbnailSize
from darkroom.contracts.callbacks import Callback, CallbackBatch, CallbackData, CallbackImage
from darkroom.contracts.events import Event, EventType, ImagePrepared
from darkroom.contracts.keys import Recipe
from darkroom.contracts.problems import problem

SHA256 = "5f" * 32
MODEL = m.ModelReference(id="tiny@0123456789ab", source="bundled")
RECIPE = Recipe(output=OutputFormat.AVIF, version=7)
PROBLEM = problem(
    "image-too-large",
    "The file has too many bytes",
    413,
    "a.jpg has 12 bytes and the limit is 10.",
    value=12,
    limit=10,
    remedy="Send a smaller file.",
    file="a.jpg",
)
RENDITION = m.Rendition(key="derived/5f/x/large.webp", width=1600, height=1200, bytes=54321)
CALLBACK_IMAGE = CallbackImage(
    id=UUID(int=2),
    filename="a.jpg",
    external_id="order-7",
    tags=("holiday",),
    lane=Lane.BULK,
    bytes=12,
    duplicate=True,
    format="JPEG",
    width=4000,
    height=3000,
    thumbhash="1QcSHQRnh493V4dIh4eXh1h4kJUI",
    thumbnails={ThumbnailSize.SMALL: "/v1/images/00000000-0000-0000-0000-000000000002/thumbnails/small"},
)
CALLBACK_BATCH = CallbackBatch(id=UUID(int=1), total=6, ready=3, failed=2, deleted=1)
CALLBACK_DATA = CallbackData(
    version=2,
    batch_id=UUID(int=1),
    image_id=UUID(int=2),
    sha256=SHA256,
    problem=PROBLEM,
    trace_id="0af7651916cd43dd8448eb211c80319c",
    image=CALLBACK_IMAGE,
    batch=CALLBACK_BATCH,
)

EXAMPLES: tuple[Message, ...] = (
    m.Prepare(sha256=SHA256, generation=2, lane=Lane.BULK, recipe=RECIPE),
    m.Prepared(manifest="derived/5f/x/prepared.json"),
    m.Thumbnails(sha256=SHA256, generation=2, lane=Lane.INTERACTIVE, recipe=RECIPE),
    m.Described(manifest="derived/5f/x/described.json"),
    m.Embed(sha256=SHA256, generation=2, lane=Lane.BULK, proxy="derived/5f/x/proxy.jpg"),
    m.Embedded(model=MODEL.id, dim=192, vector="embeddings/tiny@0123456789ab/x.npy"),
    m.Finalize(sha256=SHA256, generation=2, lane=Lane.BULK, recipe=RECIPE),
    m.RecordFailure(sha256=SHA256, generation=2, lane=Lane.BULK, problem=PROBLEM),
    m.RecordLoss(sha256=SHA256, generation=2, lane=Lane.BULK, cause="no blob under 'derived/5f/x/proxy.jpg'"),
    m.RecordEmbedding(sha256=SHA256),
    m.ModelReference(id=MODEL.id, source="bundled"),
    m.RegisterModel(model=MODEL, dim=192),
    m.EmbedText(text="a red circle", model=MODEL),
    m.EmbedPicture(proxy="queries/1/proxy.jpg", model=MODEL),
    m.QueryVector(model=MODEL.id, vector="ADw="),
    m.PrepareQuery(source="queries/1/source", proxy="queries/1/proxy.jpg"),
    m.QueryPrepared(problem=PROBLEM),
    m.Fence(number=3, queue="embed.bulk"),
    m.FenceAnswer(verdict=m.Verdict.WRONG, answer="cosine 0.4123 to the answer at warm-up"),
    m.Probe(kind=m.ProbeKind.FAIL, queue="embed.bulk", seconds=2.5, terms=(412, 77), cause="the cause"),
    m.Probed(
        kind=m.ProbeKind.IO,
        queue="prepare",
        terms=(412, 77),
        sum=489,
        seconds=2.5,
        rounds=70,
        bytes=262144,
        write_s=0.0021,
        read_s=0.0004,
    ),
    RENDITION,
    m.PreparedManifest(
        sha256=SHA256,
        format="JPEG",
        width=4000,
        height=3000,
        frames=1,
        has_alpha=False,
        taken_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        large=RENDITION,
        proxy=RENDITION,
    ),
    m.PaletteColour(hex="#ff0000", share=0.25),
    m.DescribedManifest(
        sha256=SHA256,
        medium=RENDITION,
        small=RENDITION,
        thumbhash="1QcSHQRnh493V4dIh4eXh1h4kJUI",
        palette=(m.PaletteColour(hex="#ff0000", share=0.25),),
        perceptual_hash="c0ffee00c0ffee00",
    ),
    m.Nothing(),
    m.QueueWork(handled=1200, in_hand=16, rate_per_s=21.5),
    m.WorkerPresence(
        name="embedder@host",
        node="embedder",
        pool="solo",
        concurrency=1,
        queues={"embed": m.QueueWork(handled=1200, in_hand=16, rate_per_s=21.5)},
    ),
    m.JobReport(summary="3 blobs removed", alarm="1 blob is missing"),
    PROBLEM,
    m.DeliverCallbacks(host="example.org"),
    CALLBACK_IMAGE,
    CALLBACK_BATCH,
    CALLBACK_DATA,
    Callback(type=EventType.IMAGE_FAILED, timestamp=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), data=CALLBACK_DATA),
    Event(
        id=41,
        type=EventType.IMAGE_FAILED,
        occurred_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        batch_id=UUID(int=1),
        image_id=UUID(int=2),
        sha256=SHA256,
        problem=PROBLEM,
        trace_id="0af7651916cd43dd8448eb211c80319c",
    ),
    ImagePrepared(occurred_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), sha256=SHA256, generation=3),
)
