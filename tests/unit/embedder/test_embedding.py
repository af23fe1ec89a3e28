"""What becomes of each request of a batch: its own result, its own error, and nobody else's."""

import base64
import hashlib
import io
from contextlib import nullcontext

import numpy as np
import pytest
from PIL import Image

from darkroom.contracts.base import Lane
from darkroom.contracts.keys import embedding_key
from darkroom.contracts.messages import Embed, Embedded, EmbedPicture, EmbedText, ModelReference, QueryVector
from darkroom.errors import BlobMissingError, ConfigurationError, PermanentError, TransientError
from darkroom.storage import FileStore
from darkroom.tries import TriesMarkers
from embedder.embedding import Embedding, Job, ModelBroken, Models
from embedder.preprocessing import Preprocessing

OWN = ModelReference(id="own@000000000001", source="bundled")
OTHER = ModelReference(id="other@000000000002", source="/models/other")


class FakeModel:
    """Answers with the mean colour, and remembers how large its batches were. Red pictures make it fail."""

    dim = 3

    def __init__(self, reference=OWN):
        self.reference = reference
        self.preprocessing = Preprocessing(None, (8, 8), 2, 1 / 255, (0, 0, 0), (1, 1, 1))
        self.batches = []
        self.is_broken = False

    def embed_pictures(self, pixels):
        self.batches.append(len(pixels))
        means = np.stack([each.mean(axis=(1, 2)) for each in pixels])
        if self.is_broken or any(red > 0.9 for red, *_ in means):
            raise RuntimeError("red")
        with np.errstate(invalid="ignore"):  # black has no direction: not a number
            return (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)

    def embed_texts(self, texts):
        self.batches.append(len(texts))
        return np.tile(np.array([1, 0, 0], np.float32), (len(texts), 1))

    def works(self):
        return not self.is_broken


class MemoryTries(TriesMarkers):
    """`TriesMarkers` on a dictionary, and what was begun together."""

    def __init__(self, **counts):
        self.counts = counts
        self.begun = []
        self.is_away = False

    def begin_together(self, *task_ids):
        self.begun.append(task_ids)
        for task_id in task_ids:
            self.counts[task_id] = self.counts.get(task_id, 0) + 1
        return [self.counts[task_id] for task_id in task_ids]

    def unfinished(self, *task_ids):
        if self.is_away:
            raise TransientError("no Redis")
        return [self.counts.get(task_id, 0) for task_id in task_ids]

    def end(self, *task_ids):
        for task_id in task_ids:
            self.counts.pop(task_id, None)


@pytest.fixture
def store(tmp_path):
    return FileStore(tmp_path)


@pytest.fixture
def model():
    return FakeModel()


@pytest.fixture
def tries():
    return MemoryTries()


@pytest.fixture
def embedding(model, store, tries):
    return Embedding(Models(model, lambda source: FakeModel(OTHER)), store, tries)


def sha(name):
    return hashlib.sha256(name.encode()).hexdigest()


def proxy(store, colour, name):
    file = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(file, "PNG")
    store.put(f"derived/{name}.jpg", file.getvalue())
    return f"derived/{name}.jpg"


def photo(store, name, colour="green"):
    key = f"derived/{name}.jpg" if colour is None else proxy(store, colour, name)
    return Job(name, Embed(sha256=sha(name), generation=1, lane=Lane.BULK, proxy=key))


def test_photos_are_one_batch_and_their_vectors_are_stored(embedding, store, model, tries):
    outcomes = embedding.run([photo(store, "a", "green"), photo(store, "b", "blue")])
    assert outcomes == [Embedded(model=OWN.id, dim=3, vector=embedding_key(OWN.id, sha(name))) for name in ("a", "b")]
    assert model.batches == [2]
    vector = np.load(io.BytesIO(store.get(outcomes[1].vector)))
    assert vector.dtype == np.float16
    np.testing.assert_array_equal(vector, [0, 0, 1])
    assert tries.begun == [("a", "b")]
    assert tries.counts == {}


def test_a_vector_that_is_there_is_not_computed_again(embedding, store, model, tries):
    first = embedding.run([photo(store, "a")])
    assert embedding.run([photo(store, "a", None), photo(store, "b")])[0] == first[0]
    assert model.batches == [1, 1]
    assert tries.begun == [("a",), ("b",)]


@pytest.mark.parametrize("damage", [b"", b"torn", b"\x93NUMPY\x01\x00"], ids=["empty", "text", "torn"])
def test_a_damaged_vector_is_computed_again(embedding, store, model, damage):
    outcome = embedding.run([photo(store, "a")])[0]
    store.put(outcome.vector, damage)
    assert embedding.run([photo(store, "a")]) == [outcome]
    assert np.load(io.BytesIO(store.get(outcome.vector))).shape == (3,)


def test_a_vector_of_another_length_is_computed_again(embedding, store):
    outcome = embedding.run([photo(store, "a")])[0]
    file = io.BytesIO()
    np.save(file, np.zeros(5, np.float16))
    store.put(outcome.vector, file.getvalue())
    embedding.run([photo(store, "a")])
    assert np.load(io.BytesIO(store.get(outcome.vector))).shape == (3,)


@pytest.mark.parametrize("components", [(1, 1, 1), (0, 0, 0), (np.nan, 0, 0)])
def test_a_vector_that_is_no_unit_is_computed_again(embedding, store, components):
    outcome = embedding.run([photo(store, "a")])[0]
    good = store.get(outcome.vector)
    file = io.BytesIO()
    np.save(file, np.array(components, np.float16))
    store.put(outcome.vector, file.getvalue())
    assert embedding.run([photo(store, "a")]) == [outcome]
    assert store.get(outcome.vector) == good


def test_an_error_hits_only_its_own_photo(embedding, store, tries):
    damaged = photo(store, "damaged")
    store.put(damaged.message.proxy, b"no picture")
    good, missing, undecodable, red, black, last = embedding.run(
        [
            photo(store, "good"),
            photo(store, "missing", None),
            damaged,
            photo(store, "red", "red"),
            photo(store, "black", "black"),
            photo(store, "last"),
        ]
    )
    assert isinstance(good, Embedded)
    assert isinstance(last, Embedded)
    assert isinstance(missing, BlobMissingError)
    assert isinstance(undecodable, TransientError)
    assert isinstance(red, TransientError)
    assert black.problem.slug == "not-embeddable"
    assert tries.counts == {}


def test_a_damaged_proxy_is_removed_so_that_the_photo_is_prepared_again(embedding, store):
    job = photo(store, "a")
    whole = store.get(job.message.proxy)
    store.put(job.message.proxy, whole[: len(whole) // 2])
    assert isinstance(embedding.run([job])[0], TransientError)
    assert not store.exists(job.message.proxy)


def test_a_damaged_picture_of_a_search_is_its_own_fault(embedding, store):
    store.put("queries/1/proxy.jpg", b"no picture")
    [outcome] = embedding.run([Job("1", EmbedPicture(proxy="queries/1/proxy.jpg", model=OWN))])
    assert outcome.problem.slug == "proxy-undecodable"


def test_a_store_that_cannot_be_written_is_each_photos_operating_system_error(embedding, store, monkeypatch):
    def full(key, data):
        raise OSError(28, "No space left on device")

    job = photo(store, "a")
    monkeypatch.setattr(store, "put", full)
    assert isinstance(embedding.run([job])[0], OSError)


def test_a_photo_that_was_begun_before_runs_alone_after_the_others(embedding, store, model, tries):
    tries.counts["again"] = 1
    outcomes = embedding.run([photo(store, "again"), photo(store, "b"), photo(store, "c")])
    assert all(isinstance(outcome, Embedded) for outcome in outcomes)
    assert model.batches == [2, 1]
    assert tries.begun == [("b", "c"), ("again",)]
    assert tries.counts == {}


def test_a_photo_that_died_alone_fails_untouched(embedding, store, model, tries):
    tries.counts["poison"] = 2
    poison, innocent = embedding.run([photo(store, "poison"), photo(store, "innocent")])
    assert isinstance(poison, PermanentError)
    assert poison.problem.slug == "killed-worker"
    assert isinstance(innocent, Embedded)
    assert model.batches == [1]


def test_nothing_is_tried_while_the_markers_cannot_be_kept(embedding, store, model, tries):
    tries.is_away = True
    outcomes = embedding.run([photo(store, "a"), photo(store, "b")])
    assert all(isinstance(outcome, TransientError) for outcome in outcomes)
    assert model.batches == []


def test_a_model_that_fails_on_everything_blames_no_photo(embedding, store, model, tries):
    model.is_broken = True
    with pytest.raises(ModelBroken):
        embedding.run([photo(store, "a"), photo(store, "b")])
    assert tries.counts == {}


def test_texts_and_pictures_of_searches_get_their_vectors(embedding, store):
    text, picture = embedding.run(
        [
            Job("t", EmbedText(text="red", model=OWN)),
            Job("p", EmbedPicture(proxy=proxy(store, "blue", "query"), model=OWN)),
        ]
    )
    for outcome, expected in ((text, [1, 0, 0]), (picture, [0, 0, 1])):
        assert isinstance(outcome, QueryVector)
        assert outcome.model == OWN.id
        np.testing.assert_array_equal(np.frombuffer(base64.b64decode(outcome.vector), "<f2"), expected)


def test_searches_with_the_model_that_is_being_replaced_load_it_once(model, store, tries):
    loaded = []

    def load(source):
        loaded.append(source)
        return FakeModel(OTHER)

    embedding = Embedding(Models(model, load), store, tries)
    for _ in range(2):
        own, other = embedding.run(
            [Job("1", EmbedText(text="red", model=OWN)), Job("2", EmbedText(text="red", model=OTHER))]
        )
        assert (own.model, other.model) == (OWN.id, OTHER.id)
    assert loaded == [OTHER.source]


def test_a_model_that_is_not_what_it_was_fails_its_searches_only(embedding, store):
    gone = ModelReference(id="other@00000000000f", source="/models/other")
    own, other = embedding.run([Job("1", EmbedText(text="a", model=OWN)), Job("2", EmbedText(text="a", model=gone))])
    assert isinstance(own, QueryVector)
    assert isinstance(other, PermanentError)
    assert other.problem.slug == "model-unavailable"
    assert OTHER.id in other.problem.detail


def test_a_model_that_cannot_be_loaded_fails_its_searches_only(model, store, tries):
    def load(source):
        raise ConfigurationError("there is no such folder")

    embedding = Embedding(Models(model, load), store, tries)
    (outcome,) = embedding.run([Job("1", EmbedText(text="a", model=OTHER))])
    assert outcome.problem.slug == "model-unavailable"
    assert "no such folder" in outcome.problem.detail


def test_each_pass_through_the_model_is_watched(model, store, tries):
    watched = []

    def watch(name):
        watched.append(name)
        return nullcontext()

    Embedding(Models(model, FakeModel), store, tries, watch=watch).run([photo(store, "a"), photo(store, "b")])
    assert watched == ["batch of 2"]
