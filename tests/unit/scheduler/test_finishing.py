"""What finalize accepts as an artefact."""

import io
from typing import Any

import numpy as np
import pytest

from scheduler.finalize import UnusableArtefactError, check_vector, embedded_among

EMBEDDED = {"model": "tiny@0123456789ab", "dim": 4, "vector": "embeddings/tiny@0123456789ab/00.npy"}


def npy(vector: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, vector, allow_pickle=True)
    return file.getvalue()


def test_a_unit_vector_is_taken_as_it_is() -> None:
    vector = np.array([0.5, -0.5, 0.5, 0.5], dtype=np.float16)
    assert check_vector(npy(vector), 4).tolist() == vector.tolist()


def test_rounding_to_float16_does_not_make_a_vector_unusable() -> None:
    vector = np.random.default_rng(7).normal(size=2048)
    assert check_vector(npy((vector / np.linalg.norm(vector)).astype(np.float16)), 2048).shape == (2048,)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("empty", b""),
        ("not NumPy", b"hello, world"),
        ("truncated", npy(np.array([0.5, 0.5, 0.5, 0.5], dtype=np.float16))[:-2]),
        ("float32", npy(np.array([0.5, 0.5, 0.5, 0.5], dtype=np.float32))),
        ("too short", npy(np.array([1, 0, 0], dtype=np.float16))),
        ("two-dimensional", npy(np.array([[1, 0, 0, 0]], dtype=np.float16))),
        ("not a number", npy(np.array([np.nan, 0, 0, 0], dtype=np.float16))),
        ("infinite", npy(np.array([np.inf, 0, 0, 0], dtype=np.float16))),
        ("zero", npy(np.zeros(4, dtype=np.float16))),
        ("too long a vector", npy(np.array([1, 1, 0, 0], dtype=np.float16))),
        ("pickled", npy(np.array([{"a": 1}], dtype=object))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_anything_else_is_no_vector(name: str, data: bytes) -> None:
    with pytest.raises(UnusableArtefactError):
        check_vector(data, 4)


@pytest.mark.parametrize("results", [[{"manifest": "derived/x"}, EMBEDDED], [EMBEDDED, {"manifest": "x"}], EMBEDDED])
def test_the_embedders_answer_is_found_in_any_place(results: object) -> None:
    assert embedded_among(results).model == EMBEDDED["model"]


@pytest.mark.parametrize("results", [None, [], [None], [{"manifest": "x"}], [{"vector": 7}], "text"])
def test_a_missing_answer_is_said(results: object) -> None:
    with pytest.raises(UnusableArtefactError):
        embedded_among(results)
