"""When the demo says that something is wrong."""

import pytest

from darkroom_cli.demo import PICTURE_ANSWER, TEXTS, Search, faults_of, search_faults
from darkroom_cli.rendering import TIMES
from darkroom_cli.samples import SAMPLES

SAMPLE = SAMPLES[0]


def became(**changes):
    image = {
        "filename": SAMPLE.filename,
        "status": "ready",
        "format": SAMPLE.format,
        "width": SAMPLE.size[0],
        "height": SAMPLE.size[1],
        "thumbnails": {"small": {}, "medium": {}, "large": {}},
        "embeddings": [{"model": "m", "dim": 192}],
        "error": None,
    }
    return image | changes


def test_a_ready_sample_with_everything_is_right():
    assert faults_of(SAMPLE, became()) == []


@pytest.mark.parametrize(
    ("image", "fault"),
    [
        (None, "is missing"),
        (became(status="failed", error={"detail": "it is corrupt"}), "is failed: it is corrupt"),
        (became(format="PNG"), "was taken for PNG"),
        (became(width=SAMPLE.size[1], height=SAMPLE.size[0]), f"has 1600{TIMES}1200, not 1200{TIMES}1600"),
        (became(thumbnails={"small": {}, "large": {}}), "has no thumbnail medium"),
        (became(embeddings=[]), "has no embedding"),
    ],
)
def test_whatever_is_missing_or_wrong_is_named(image, fault):
    [found] = faults_of(SAMPLE, image)
    assert SAMPLE.filename in found
    assert fault in found


@pytest.mark.parametrize(("names", "is_right"), [(["a.jpg", "b.jpg"], True), (["b.jpg", "a.jpg"], False), ([], False)])
def test_only_the_first_hit_counts(names, is_right):
    found = {"results": [{"image": {"filename": name}, "score": 0.5} for name in names], "model": "m"}
    assert (search_faults(Search("text", found, "a.jpg")) == []) is is_right


def test_the_searches_ask_for_samples_that_exist():
    assert {PICTURE_ANSWER, *TEXTS.values()} <= {sample.filename for sample in SAMPLES}
    assert len(TEXTS) >= 2
