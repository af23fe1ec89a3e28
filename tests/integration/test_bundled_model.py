"""The bundled checkpoint is small, loads as any hub model does, and is as good as its documentation says."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[2]
TRAINING = REPOSITORY / "services/embedder/training"
CHECKPOINT = REPOSITORY / "services/embedder/src/embedder/models/tiny"

sys.path.insert(0, str(TRAINING))  # scripts beside each other, not a package: they are never installed

from drawings import make_drawings  # noqa: E402
from evaluate import UNSEEN_SEED, Checkpoint, colour_precision, object_ranks, recall_on_scenes  # noqa: E402


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint(CHECKPOINT)


@pytest.fixture(scope="module")
def drawings():
    return make_drawings()


@pytest.fixture(scope="module")
def pictures(checkpoint, drawings):
    return checkpoint.embed_images([drawing.picture for drawing in drawings])


def test_the_checkpoint_is_small_and_readable_by_every_user():
    files = list(CHECKPOINT.iterdir())
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"} <= {f.name for f in files}
    assert sum(file.stat().st_size for file in files) <= 12_000_000
    assert [file.name for file in files if file.stat().st_mode & 0o444 != 0o444] == []


def test_it_loads_offline_and_without_torchvision(tmp_path):
    assert find_spec("torchvision") is None
    script = (
        "import sys; from transformers import AutoImageProcessor, AutoModel, AutoTokenizer\n"
        "for auto in (AutoModel, AutoTokenizer, AutoImageProcessor):\n"
        "    print(type(auto.from_pretrained(sys.argv[1])).__name__)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", script, str(CHECKPOINT)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    model, tokenizer, processor = loaded.stdout.split()
    assert model == "CLIPModel"
    assert tokenizer.startswith("CLIPTokenizer")
    assert processor.startswith("CLIPImageProcessor")


@pytest.mark.parametrize("kind", ["single", "mixed"])
def test_captions_find_their_pictures_among_unseen_scenes(checkpoint, kind):
    [(to_picture, to_text)] = recall_on_scenes(checkpoint, kind, 300, seed=UNSEEN_SEED + 1)
    assert to_picture >= 0.9
    assert to_text >= 0.9


@pytest.mark.parametrize("template", ["{c}", "something {c}"])
def test_colour_words_find_drawings_of_that_colour(checkpoint, drawings, pictures, template):
    assert colour_precision(checkpoint, drawings, pictures, template) >= 0.95


@pytest.mark.parametrize("template", ["a {c} {s}", "{c} {s}"])
def test_colour_and_shape_find_the_one_drawing_that_has_both(checkpoint, drawings, pictures, template):
    ranks = object_ranks(checkpoint, drawings, pictures, template)
    assert (ranks < 5).mean() >= 0.95
    assert (ranks == 0).mean() >= 0.6


def test_a_query_without_an_article_is_as_good_as_with_one(checkpoint, drawings, pictures):
    with_article = (object_ranks(checkpoint, drawings, pictures, "a {c} {s}") == 0).mean()
    without = (object_ranks(checkpoint, drawings, pictures, "{c} {s}") == 0).mean()
    assert without >= with_article - 0.03


def test_a_drawing_finds_itself_after_it_was_shrunk(checkpoint, drawings, pictures):
    shrunk = checkpoint.embed_images([drawing.picture.reduce(2) for drawing in drawings])
    assert ((shrunk @ pictures.T).argmax(1) == np.arange(len(drawings))).mean() >= 0.95


def test_any_text_gives_a_vector_even_when_it_is_empty_long_or_not_english(checkpoint):
    vectors = checkpoint.embed_texts(["", "ein roter Kreis", "красный круг 🔴", "red star " * 200])
    assert vectors.shape == (4, 192)
    assert torch.from_numpy(vectors).norm(dim=1).tolist() == pytest.approx([1.0] * 4)
