"""The question that fences carry through the embedder's queues."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from random_models import save_clip

from darkroom.contracts.messages import Verdict
from darkroom.errors import ConfigurationError
from darkroom.settings import ModelSettings
from embedder.known_answer import STORED, KnownAnswer, compute
from embedder.model import BUNDLED_FOLDER, ClipModel, load_model


def loaded(source: str | Path, dtype: str = "float32") -> ClipModel:
    return load_model(str(source), ModelSettings(model_device="cpu", model_dtype=dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_bundled_model_gives_its_stored_answer_in_every_precision(dtype):
    answer = KnownAnswer(loaded("bundled", dtype)).compare()
    assert answer.verdict is Verdict.OK
    assert answer.answer.endswith(" to the stored one")


def test_a_model_without_a_stored_answer_is_compared_with_its_start(tmp_path):
    answer = KnownAnswer(loaded(save_clip(tmp_path / "clip"))).compare()
    assert (answer.verdict, answer.answer) == (Verdict.OK, "cosine 1.0000 to the answer at the start")


@torch.inference_mode()
def spoil(model: ClipModel) -> None:
    """Memory that goes bad after the start."""
    for weights in model._network.parameters():
        weights.add_(0.02 * torch.randn_like(weights))


def test_weights_that_change_after_the_start_are_found_out(tmp_path):
    model = loaded(save_clip(tmp_path / "clip"))
    known = KnownAnswer(model)
    spoil(model)
    assert known.compare().verdict is Verdict.WRONG


def test_numbers_that_are_not_finite_are_a_wrong_answer(tmp_path, monkeypatch):
    model = loaded(save_clip(tmp_path / "clip"))
    known = KnownAnswer(model)
    monkeypatch.setattr(model, "embed_pictures", lambda pixels: np.full((1, model.dim), np.nan, np.float32))
    assert known.compare().verdict is Verdict.WRONG


def test_weights_that_were_damaged_before_the_start_are_found_out_by_the_stored_answer(tmp_path):
    folder = tmp_path / "tiny"
    shutil.copytree(BUNDLED_FOLDER, folder)
    vector = np.load(folder / STORED)
    np.save(folder / STORED, np.roll(vector, 1))
    known = KnownAnswer(loaded(folder))
    assert "cosine 1.0000 to the answer at the start" in known.compare().answer
    assert known.compare().verdict is Verdict.WRONG


def test_a_stored_answer_of_another_model_is_refused_at_the_start(tmp_path):
    folder = save_clip(tmp_path / "clip")
    shutil.copy(BUNDLED_FOLDER / STORED, folder)
    with pytest.raises(ConfigurationError, match=r"has shape \(192,\)"):
        KnownAnswer(loaded(folder))
    (folder / STORED).write_bytes(b"no array")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        KnownAnswer(loaded(folder))


def test_the_answer_has_norm_1(tmp_path):
    assert np.linalg.norm(compute(loaded(save_clip(tmp_path / "clip")))) == pytest.approx(1, abs=1e-5)
