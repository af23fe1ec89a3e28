"""Loading a model, and what its vectors are like."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from random_models import save_clip, save_siglip
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from darkroom.errors import ConfigurationError
from darkroom.settings import ModelSettings
from embedder.model import choose_device, choose_dtype, cpu_multiplies_bfloat16, load_model, locate

FLOAT32 = ModelSettings(model_device="cpu", model_dtype="float32")


@pytest.fixture(scope="module", params=["clip", "siglip"])
def folder(request, tmp_path_factory):
    return {"clip": save_clip, "siglip": save_siglip}[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def model(folder):
    return load_model(str(folder), FLOAT32)


@pytest.fixture(scope="module")
def pixels(model):
    random = np.random.default_rng(0)
    return [random.standard_normal((3, *model.preprocessing.size)).astype(np.float32) for _ in range(5)]


def test_vectors_are_unit_rows_of_float32(model, pixels):
    for vectors in (model.embed_pictures(pixels), model.embed_texts(["a red circle", "square"])):
        assert vectors.dtype == np.float32
        assert vectors.shape[1] == model.dim
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_vectors_are_those_of_transformers(folder, model):
    network = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    picture = Image.fromarray(np.random.default_rng(3).integers(0, 256, (60, 90, 3), dtype=np.uint8))
    pixels = AutoImageProcessor.from_pretrained(folder)(picture, return_tensors="pt")["pixel_values"]
    is_siglip = network.config.model_type == "siglip"
    tokens = AutoTokenizer.from_pretrained(folder)(
        ["a red circle"], padding="max_length" if is_siglip else True, return_tensors="pt"
    )
    with torch.inference_mode():
        for expected, vectors in (
            (network.get_image_features(pixel_values=pixels), model.embed_pictures([pixels[0].numpy()])),
            (network.get_text_features(**tokens), model.embed_texts(["a red circle"])),
        ):
            unit = torch.nn.functional.normalize(expected.pooler_output, dim=-1).numpy()
            np.testing.assert_allclose(vectors, unit, atol=1e-6)


def operations(embed, argument):
    with FlopCounterMode(display=False) as counter:
        embed(argument)
    return counter.get_total_flops()


def test_of_the_last_layer_only_what_becomes_the_vector_is_computed(tmp_path):
    model = load_model(str(save_clip(tmp_path)), FLOAT32)
    network = AutoModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    pixels = np.zeros((2, 3, 32, 32), np.float32)
    whole = operations(lambda batch: network.get_image_features(pixel_values=batch), torch.from_numpy(pixels))
    ours = operations(model.embed_pictures, list(pixels))
    width, inner, tokens = 32, 64, 32 // 8 * 32 // 8 + 1
    unseen = 2 * len(pixels) * (tokens - 1) * (2 * width * width + 2 * width * inner)  # queries, their output, the MLP
    assert whole - unseen - ours in range(2 * len(pixels) * tokens * tokens * width * 2)  # and their attention


def test_a_batch_gives_what_its_members_give_alone(model, pixels):
    together = model.embed_pictures(pixels)
    alone = np.concatenate([model.embed_pictures([each]) for each in pixels])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_a_text_longer_than_the_context_is_cut_off(model):
    vectors = model.embed_texts(["red circle " * 500, "red circle " * 501])
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)


def test_a_model_is_warm_after_one_batch_and_works(model):
    assert model.warm_up(2) > 0
    assert model.works()


def test_bfloat16_changes_a_vector_hardly_and_the_id_not_at_all(folder, model, pixels):
    bfloat16 = load_model(str(folder), ModelSettings(model_device="cpu", model_dtype="bfloat16"))
    assert bfloat16.dtype == torch.bfloat16
    assert bfloat16.reference == model.reference
    cosines = (bfloat16.embed_pictures(pixels) * model.embed_pictures(pixels)).sum(axis=1)
    assert cosines.min() > 0.999


def test_the_bundled_model_loads_by_the_same_code():
    model = load_model("bundled", FLOAT32)
    assert model.reference.source == "bundled"
    assert model.reference.id.startswith("darkroom-tiny@")
    assert model.embed_texts(["a red circle"]).shape == (1, model.dim)


def changed(folder, tmp_path, change):
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    change(copy)
    return load_model(str(copy), FLOAT32).reference.id


def other_weights(folder):
    weights = load_file(folder / "model.safetensors")
    name = min(name for name, weight in weights.items() if weight.is_floating_point())
    save_file(weights | {name: weights[name] + 0.01}, folder / "model.safetensors", metadata={"format": "pt"})


def other_mean(folder):
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_mean": [0.1, 0.2, 0.3]}))


def test_the_id_names_the_folder_and_changes_with_weights_and_preprocessing(folder, model, tmp_path):
    name, _, digest = model.reference.id.partition("@")
    assert name == folder.name
    same = changed(folder, tmp_path / "same", lambda _: None)
    ids = {same, changed(folder, tmp_path / "w", other_weights), changed(folder, tmp_path / "p", other_mean)}
    assert same == model.reference.id
    assert len(ids) == 3
    assert len(digest) == 12


def truncate_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def remove_weights_of_a_layer(folder):
    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "vision_model.encoder.layers.1.mlp" not in name}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def make_it_a_bert(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))


@pytest.mark.parametrize(
    "damage",
    [
        truncate_weights,
        remove_weights_of_a_layer,
        make_it_a_bert,
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "config.json").write_text("{"),
        lambda folder: (folder / "preprocessor_config.json").unlink(),
        lambda folder: (folder / "tokenizer.json").unlink(),
    ],
    ids=["truncated", "incomplete", "bert", "no weights", "bad config", "no preprocessing", "no tokenizer"],
)
def test_a_broken_model_is_refused_with_its_name(folder, tmp_path, damage):
    copy = tmp_path / "broken"
    shutil.copytree(folder, copy)
    damage(copy)
    with pytest.raises(ConfigurationError, match="DARKROOM_MODEL="):
        load_model(str(copy), FLOAT32)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="no such folder"):
        locate(str(tmp_path / "nothing"))


def test_a_hub_id_that_cannot_be_had_is_refused_with_the_remedy(monkeypatch):
    def offline(*_, **__):
        raise FileNotFoundError("offline, and not in the cache")

    monkeypatch.setattr("embedder.model.snapshot_download", offline)
    with pytest.raises(ConfigurationError, match="Check the name and the network"):
        locate("nobody/nothing")


def test_a_hub_model_without_safetensors_is_asked_for_again(monkeypatch, tmp_path):
    asked = []

    def download(source, allow_patterns):
        asked.append(allow_patterns[-1])
        return str(tmp_path)

    monkeypatch.setattr("embedder.model.snapshot_download", download)
    assert locate("somebody/old-model") == tmp_path
    assert asked == ["*.safetensors", "pytorch_model*.bin"]


@pytest.mark.parametrize(
    ("wanted", "cuda", "device"), [("auto", False, "cpu"), ("auto", True, "cuda"), ("cpu", True, "cpu")]
)
def test_auto_takes_cuda_where_there_is_one(wanted, cuda, device):
    assert choose_device(wanted, cuda=cuda).type == device


def test_cuda_without_a_device_is_refused():
    with pytest.raises(ConfigurationError, match="DARKROOM_MODEL_DEVICE"):
        choose_device("cuda", cuda=False)


@pytest.mark.parametrize(
    ("wanted", "device", "bf16", "dtype"),
    [
        ("auto", "cpu", True, torch.bfloat16),
        ("auto", "cpu", False, torch.float32),
        ("auto", "cuda", True, torch.bfloat16),
        ("auto", "cuda", False, torch.float16),
        ("float32", "cuda", True, torch.float32),
        ("bfloat16", "cpu", False, torch.bfloat16),
    ],
)
def test_auto_takes_the_precision_that_the_processor_multiplies(wanted, device, bf16, dtype):
    assert choose_dtype(wanted, torch.device(device), bf16=bf16) == dtype


@pytest.mark.parametrize(
    ("cpuinfo", "has_it"),
    [
        ("flags\t\t: fpu avx2 avx512_bf16 amx_tile\n", True),
        ("flags\t\t: fpu avx2 amx_bf16\n", True),
        ("flags\t\t: fpu avx2 avx512f\n", False),
        ("Features\t: fp asimd bf16\n", True),
        ("Features\t: fp asimd\n", False),
        ("", False),
    ],
)
def test_bfloat16_is_read_from_the_processors_flags(tmp_path, cpuinfo, has_it):
    path = tmp_path / "cpuinfo"
    path.write_text(cpuinfo)
    assert cpu_multiplies_bfloat16(path) is has_it


def test_a_system_that_does_not_tell_gets_float32(tmp_path):
    assert cpu_multiplies_bfloat16(tmp_path / "nothing") is False
