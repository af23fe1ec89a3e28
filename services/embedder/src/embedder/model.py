"""One CLIP or SigLIP model in memory: pictures and texts in, unit vectors out."""

import hashlib
import json
import logging
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from numpy.typing import NDArray
from safetensors import SafetensorError
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

from darkroom.contracts.base import ModelId
from darkroom.contracts.keys import RENDER_VERSION
from darkroom.contracts.messages import ModelReference
from darkroom.errors import ConfigurationError
from darkroom.settings import ModelSettings
from embedder.preprocessing import Pixels, Preprocessing
from embedder.shortcuts import shorten

log = logging.getLogger(__name__)

BUNDLED = "bundled"
BUNDLED_FOLDER = Path(__file__).parent / "models" / "tiny"

Vectors = NDArray[np.float32]
"""float32, (n, dim), rows of L2 norm 1."""

_BROKEN = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError)
"""What transformers raises on a folder that holds no usable model."""


class ClipModel:
    """A loaded model. Not for two threads at once."""

    def __init__(self, source: str, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        if config.model_type not in ("clip", "siglip"):
            raise ConfigurationError(
                f"DARKROOM_MODEL={source} is a {config.model_type!r} model; clip and siglip are supported"
            )
        # Without a dtype, version 5 takes the one of the file: float16, which a CPU computes slowly.
        network, loaded = AutoModel.from_pretrained(
            folder, dtype=dtype, local_files_only=True, output_loading_info=True
        )
        if loaded["missing_keys"]:
            raise ConfigurationError(
                f"DARKROOM_MODEL={source} lacks {len(loaded['missing_keys'])} weights, such as "
                f"{min(loaded['missing_keys'])!r}: download it again"
            )
        shorten(network)
        self._network = network.to(device).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._tokens = {
            # SigLIP was trained on texts padded to their full length, and gives other vectors without it.
            "padding": "max_length" if config.model_type == "siglip" else True,
            "max_length": config.text_config.max_position_embeddings,
            "truncation": True,
        }
        self.folder, self.device, self.dtype = folder, device, dtype
        self.preprocessing = Preprocessing.of(AutoImageProcessor.from_pretrained(folder, local_files_only=True))
        self.reference = ModelReference(id=model_id(source, folder, self.preprocessing), source=source)
        self.dim = self.embed_texts(["a photo"]).shape[1]

    @torch.inference_mode()
    def embed_pictures(self, pixels: Sequence[Pixels]) -> Vectors:
        """One vector a picture. `pixels`: float32, (3, height, width) each, from this model's `preprocessing`."""
        batch = torch.from_numpy(np.stack(pixels)).to(self.device, self.dtype)
        return _unit_rows(self._network.get_image_features(pixel_values=batch))

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """One vector a text; what exceeds the model's context is cut off."""
        tokens = self._tokenizer(list(texts), return_tensors="pt", **self._tokens).to(self.device)
        return _unit_rows(self._network.get_text_features(**tokens))

    def warm_up(self, batch_size: int) -> float:
        """Runs one full batch of pictures and one text twice; returns the seconds that one picture took in the second.

        The first batch allocates and chooses kernels; no photo and no search should wait for that.
        """
        black = [np.zeros((3, *self.preprocessing.size), np.float32)] * batch_size
        self.embed_pictures(black)
        self.embed_texts(["a photo"])
        begun = time.perf_counter()
        self.embed_pictures(black)
        return (time.perf_counter() - begun) / batch_size

    def works(self) -> bool:
        """Whether a picture that cannot be at fault still gets a vector: some errors of a GPU are there to stay."""
        try:
            self.embed_pictures([np.zeros((3, *self.preprocessing.size), np.float32)])
        except Exception:
            log.exception("embedder.model_broken")
            return False
        return True


def load_model(source: str, settings: ModelSettings) -> ClipModel:
    """The model that a folder, a hub id or `bundled` names, on the device and in the precision of the settings.

    Raises `ConfigurationError`, with the remedy, when there is none or it cannot be loaded.
    """
    folder = locate(source)
    device = choose_device(settings.model_device, cuda=torch.cuda.is_available())
    bf16 = torch.cuda.is_bf16_supported() if device.type == "cuda" else cpu_multiplies_bfloat16()
    try:
        return ClipModel(source, folder, device, choose_dtype(settings.model_dtype, device, bf16=bf16))
    except _BROKEN as error:
        raise ConfigurationError(
            f"DARKROOM_MODEL={source} cannot be loaded from {folder}: {error}. The folder must hold what "
            "save_pretrained writes for a CLIP or SigLIP model: config.json, model.safetensors, "
            "preprocessor_config.json and the tokenizer; or set DARKROOM_MODEL=bundled"
        ) from error


def locate(source: str) -> Path:
    """The local folder of a model, downloaded when `source` is a hub id; raises `ConfigurationError`."""
    if source == BUNDLED:
        return BUNDLED_FOLDER
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if source.startswith(("/", ".", "~")):
        raise ConfigurationError(f"DARKROOM_MODEL={source}: there is no such folder")
    configuration = ["*.json", "*.txt", "*.model"]
    try:
        found = Path(snapshot_download(source, allow_patterns=[*configuration, "*.safetensors"]))
        if not list(weight_files(found)):
            found = Path(snapshot_download(source, allow_patterns=[*configuration, "pytorch_model*.bin"]))
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"DARKROOM_MODEL={source} is neither a folder nor a model that the hub hands out: {error}. Check the name "
            "and the network, or download it elsewhere and name the folder"
        ) from error
    return found


def weight_files(folder: Path) -> Iterator[Path]:
    """The files with a model's weights, in a fixed order."""
    yield from sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def model_id(source: str, folder: Path, preprocessing: Preprocessing) -> ModelId:
    """A readable name and a hash over all that decides what a picture's vector is.

    That is the weights' bytes, the preprocessing and the proxy's recipe; not the precision, which costs 5e-5 of
    cosine and may differ between two embedders of one installation.
    """
    digest = hashlib.sha256()
    for path in weight_files(folder):
        with path.open("rb") as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
    recipe = {"preprocessing": asdict(preprocessing), "render_version": RENDER_VERSION}
    digest.update(json.dumps(recipe, sort_keys=True).encode())
    local = Path(source).expanduser().is_dir()
    name = "darkroom-tiny" if source == BUNDLED else folder.resolve().name if local else source
    slug = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-")[:100] or "model"
    return f"{slug}@{digest.hexdigest()[:12]}"


def choose_device(wanted: str, *, cuda: bool) -> torch.device:
    """The device of a setting; `auto` takes CUDA where there is one. Raises `ConfigurationError`."""
    if wanted == "cuda" and not cuda:
        raise ConfigurationError(
            "DARKROOM_MODEL_DEVICE=cuda, but torch sees no CUDA device: install a CUDA build of torch and its driver, "
            "or set it to auto"
        )
    return torch.device("cuda" if cuda and wanted != "cpu" else "cpu")


def choose_dtype(wanted: str, device: torch.device, *, bf16: bool) -> torch.dtype:
    """The precision of a setting; `auto` takes bfloat16 where the processor multiplies it in hardware."""
    if wanted != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[wanted]
    if bf16:
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" else torch.float32


def cpu_multiplies_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this processor has instructions for bfloat16; false where Linux does not tell.

    Elsewhere bfloat16 is emulated and slower than float32. With them a matrix product measured 4.3 times faster on
    AVX512-BF16 (376 against 87 GFLOP/s on one core).
    """
    try:
        text = cpuinfo.read_text()
    except OSError:
        return False
    lines = re.findall(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return bool(lines) and not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(lines[0].split())


def _unit_rows(output: Any) -> Vectors:
    features = output.pooler_output.float()
    rows: Vectors = torch.nn.functional.normalize(features, dim=-1).cpu().numpy()
    return rows
