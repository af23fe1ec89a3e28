"""What a vector costs: ViT-B/32 as the embedder computes it, one by one as a first version would, and the limit.

    python benchmarks/embeddings.py

The weights are random and of the right shapes, made here: what is measured does not depend on them. One thread, from
the proxy's bytes to a vector of length 1, preprocessing included. The limit is what the processor's matrix products
alone would take: as fast as torch multiplies large squares in the precision that the embedder chooses here, over the
operations of one picture. How much bfloat16 gains is the processor's: where the limit itself is not 7 times the naive
way, as on AVX512-BF16, nothing can be; with AMX it is 12 times. Where torch sees a GPU, `--device cuda` measures that
instead.
"""

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from PIL import Image
from rounds import Comparison, Ratio, arguments, interleaved, own_cpu_s, publish
from thumbnails import encoded, pixels
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel

from darkroom.settings import ModelSettings
from embedder.model import BUNDLED_FOLDER, ClipModel, choose_device, load_model
from thumbnailer.decoding import Limits, decode
from thumbnailer.rendering import render_proxy

BATCH = 16
"""DARKROOM_BATCH_SIZE's default, and the fastest on a CPU."""
SQUARE = 2048
"""Side of the matrices whose product is taken for the limit."""


def make_model(folder: Path) -> None:
    """Saves a CLIP with the shapes of ViT-B/32 and random weights, with the bundled model's tokenizer."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_FOLDER, local_files_only=True)
    CLIPModel(CLIPConfig()).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)


def ours(model: ClipModel, proxies: list[bytes]) -> None:
    """A batch, as the embedder computes it."""
    model.embed_pictures([model.preprocessing.pixels(proxy) for proxy in proxies])


@torch.inference_mode()
def one_by_one(model: CLIPModel, processor: CLIPImageProcessor, proxies: list[bytes]) -> None:
    """Each by itself, in float32, with the library's own preprocessing."""
    for proxy in proxies:
        inputs = processor(images=Image.open(io.BytesIO(proxy)), return_tensors="pt")
        output = model.get_image_features(**inputs.to(model.device)).pooler_output
        torch.nn.functional.normalize(output, dim=-1).cpu()


def sentence_transformer(folder: Path, dtype: torch.dtype, device: torch.device) -> Callable[[list[bytes]], None]:
    """The peer's batch of the same model."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import CLIPModel as Module

    peer = SentenceTransformer(modules=[Module(str(folder))], device=str(device)).to(dtype)

    def work(proxies: list[bytes]) -> None:
        peer.encode([Image.open(io.BytesIO(proxy)) for proxy in proxies], batch_size=BATCH, normalize_embeddings=True)

    return work


def timed(work: Callable[[list[bytes]], Any], proxies: list[bytes], device: torch.device) -> Mapping[str, float]:
    """Pictures a second: of CPU time on a CPU, because its cores may be shared, else of the clock."""
    clock = own_cpu_s if device.type == "cpu" else time.monotonic
    begun = clock()
    work(proxies)
    return {"rate": len(proxies) / (clock() - begun)}


def product(dtype: torch.dtype, device: torch.device, operations: float) -> Mapping[str, float]:
    """Pictures a second if nothing but matrix products of the best size were needed."""
    a, b = (torch.randn(SQUARE, SQUARE, device=device).to(dtype) for _ in range(2))
    clock = own_cpu_s if device.type == "cpu" else time.monotonic
    begun, count = clock(), 8 if device.type == "cpu" else 400
    for _ in range(count):
        torch.mm(a, b)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return {"rate": 2 * SQUARE**3 * count / (clock() - begun) / operations}


def operations_of_a_picture(model: CLIPModel) -> float:
    """Floating-point operations of the image tower."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.get_image_features(pixel_values=torch.zeros(1, 3, 224, 224, device=model.device))
    return float(counter.get_total_flops())


def main() -> None:
    """Prints pictures a second of each way, and where the time of a batch goes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    chosen = arguments(__doc__, parser)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    device = choose_device(chosen.device, cuda=torch.cuda.is_available())
    torch.set_num_threads(1)
    proxy = render_proxy(decode(encoded(pixels(2000, 1500), "JPEG", quality=90), Limits())).data
    proxies = [proxy] * BATCH
    with tempfile.TemporaryDirectory(prefix="dr-") as name:
        folder = Path(name)
        make_model(folder)
        model = load_model(name, ModelSettings(model_device=chosen.device))
        single = ClipModel(name, folder, device, torch.float32)
        naive = CLIPModel.from_pretrained(folder, dtype=torch.float32).to(device).eval()
        operations = operations_of_a_picture(naive)
        processor = CLIPImageProcessor.from_pretrained(folder)
        kind = str(model.dtype).removeprefix("torch.")
        limit = f"limit: {kind} products alone"
        ways: dict[str, Callable[[], Mapping[str, float]]] = {
            f"ours: {kind}, {BATCH} at once": partial(timed, partial(ours, model), proxies, device),
            f"ours in float32, {BATCH} at once": partial(timed, partial(ours, single), proxies, device),
            "transformers, float32, one by one": partial(
                timed, partial(one_by_one, naive, processor), proxies[: BATCH // 4], device
            ),
            limit: partial(product, model.dtype, device, operations),
        }
        if find_spec("sentence_transformers"):
            for dtype in {torch.float32, model.dtype}:
                label = f"sentence-transformers, {str(dtype).removeprefix('torch.')}, {BATCH} at once"
                ways[label] = partial(timed, sentence_transformer(folder, dtype, device), proxies, device)
        first, _, naive_way, *_ = ways
        interleaved(ways, 1)
        rounds = interleaved(ways, chosen.rounds)
        ratios = [
            Ratio("ours / one by one", first, naive_way, at_least=7),
            Ratio("ours / limit", first, limit, at_least=0.6),
            *(Ratio(f"ours / {way}", first, way) for way in ways if way.startswith("sentence")),
        ]
        unit = "pictures a second of one core" if device.type == "cpu" else "pictures a second"
        begun = own_cpu_s()
        made = [model.preprocessing.pixels(each) for each in proxies]
        preprocessing_ms = 1000 * (own_cpu_s() - begun) / BATCH
        begun = own_cpu_s()
        model.embed_pictures(made)
        forward_ms = 1000 * (own_cpu_s() - begun) / BATCH
        comparison = Comparison.of("ViT-B/32 from proxies", unit, rounds, "rate", ratios)
    peak = statistics.median(rounds[limit]["rate"]) * operations / 1e9
    facts = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "operations of a picture, GFLOP": round(operations / 1e9, 2),
        f"matrix products in {kind}, GFLOP/s": round(peak),
        "CPU of a picture, ms": json.dumps(
            {"preprocessing": round(preprocessing_ms, 1), "network": round(forward_ms, 1)}
        ),
    }
    publish("embeddings", [comparison], chosen.results, facts)


if __name__ == "__main__":
    main()
