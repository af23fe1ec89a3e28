"""What a vector costs: ViT-B/32 as the embedder computes it, one by one as a first version would, and the limit.

    python benchmarks/embeddings.py [--peers build/peers | --device cuda]

The weights are random and of the right shapes, made here: what is measured does not depend on them. One thread, from
the proxy's bytes to a vector of length 1, preprocessing included. The limit is what the processor's matrix products
alone would take: as fast as torch multiplies large squares in the precision that the embedder chooses here, over the
operations of one picture. How much bfloat16 gains is the processor's: where the limit itself is not 7 times the naive
way, as on AVX512-BF16, nothing can be; with AMX it is 12 times.

`--peers` adds the projects that `make bench-peers` installed, each in a process of its own, with the same weights and
proxies; where their vectors are not ours, it ends. `--device cuda` measures a GPU instead, by the clock: what a whole
batch takes, and what its proxies and the network take alone.
"""

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from peer import Peer, started
from PIL import Image
from rounds import Comparison, Ratio, arguments, interleaved, own_cpu_s, publish
from thumbnails import encoded, pixels
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel

from darkroom.settings import ModelSettings
from embedder.model import BUNDLED_FOLDER, ClipModel, Vectors, load_model
from embedder.preprocessing import Pixels
from thumbnailer.decoding import Limits, decode
from thumbnailer.rendering import render_proxy

BATCH = {"cpu": 16, "cuda": 256}
"""DARKROOM_BATCH_SIZE: its default, the fastest on a CPU; and the most that it can be."""
PICTURES = 16
"""How many different ones there are."""
SQUARE = {"cpu": 2048, "cuda": 8192}
"""Side of the matrices whose product is taken for the limit."""
ALIKE = 0.999
"""Least cosine of a peer's vector with ours in float32. Two pictures have 0.9975 at most, bfloat16 costs 0.0001."""

Each = Callable[[Callable[[bytes], Pixels], list[bytes]], Iterable[Pixels]]
"""`map`, or that of a pool."""
Clock = Callable[[], float]
"""Seconds: of this process's CPU time, because a CPU's cores may be shared; beside a GPU, of the wall's."""


def make_model(folder: Path) -> None:
    """Saves a CLIP with the shapes of ViT-B/32 and random weights, with the bundled model's tokenizer."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_FOLDER, local_files_only=True)
    CLIPModel(CLIPConfig()).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)


def make_proxies() -> list[bytes]:
    """As many different ones as there are pictures."""
    picture, made = pixels(4000, 3000), []
    for number in range(PICTURES):
        left, top = number % 4 * 500, number // 4 * 375
        photo = encoded(picture.crop((left, top, left + 2000, top + 1500)), "JPEG", quality=90)
        made.append(render_proxy(decode(photo, Limits())).data)
    return made


def preprocessed(model: ClipModel, each: Each, proxies: list[bytes]) -> list[Pixels]:
    """A batch of proxies, ready for the network."""
    return list(each(model.preprocessing.pixels, proxies))


def ours(model: ClipModel, each: Each, proxies: list[bytes]) -> Vectors:
    """A batch, as the embedder computes it."""
    return model.embed_pictures(preprocessed(model, each, proxies))


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
        pictures = [Image.open(io.BytesIO(proxy)) for proxy in proxies]
        peer.encode(pictures, batch_size=len(pictures), normalize_embeddings=True)

    return work


def peers(
    folder: Path, model: Path, dtype: torch.dtype, proxies: list[bytes], wanted: Vectors, cleanup: ExitStack
) -> Iterator[tuple[str, Peer]]:
    """Those that are installed in the folder, started, by what they are called. Raises `SystemExit` for other work."""
    # infinity takes bfloat16 on a GPU alone.
    for name, kinds in {"open_clip": (torch.float32, dtype), "infinity": (torch.float32,)}.items():
        for kind in dict.fromkeys(map(named, kinds)):
            if not (folder / name).exists():
                continue
            peer = cleanup.enter_context(started(folder / name, name, model, kind, len(proxies)))
            vectors, _ = peer.embed(proxies)
            if not (cosine := (vectors * wanted).sum(axis=1).min()) >= ALIKE:
                raise SystemExit(f"{name} in {kind} computes something else than we do: a cosine is {cosine:.4f}")
            yield f"{name}, {kind}, {len(proxies)} at once", peer


def asked(peer: Peer, proxies: list[bytes]) -> Mapping[str, float]:
    """Pictures a second of the peer's CPU time."""
    _, cpu_s = peer.embed(proxies)
    return {"rate": len(proxies) / cpu_s}


def timed(work: Callable[[Any], Any], items: list[Any], clock: Clock) -> Mapping[str, float]:
    """Pictures a second. What a GPU makes must be in the CPU's memory at the end, as ours and the peers' is."""
    begun = clock()
    work(items)
    return {"rate": len(items) / (clock() - begun)}


def product(dtype: torch.dtype, device: torch.device, operations: float, clock: Clock) -> Mapping[str, float]:
    """Pictures a second if nothing but matrix products of the best size were needed."""
    side, count = SQUARE[device.type], 8 if device.type == "cpu" else 40
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    wait: Callable[[], object] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()  # until the matrices are made
    begun = clock()
    for _ in range(count):
        torch.mm(a, b)
    wait()
    return {"rate": 2 * side**3 * count / (clock() - begun) / operations}


def named(dtype: torch.dtype) -> str:
    """What a precision is called."""
    return str(dtype).removeprefix("torch.")


def operations_of_a_picture(model: CLIPModel) -> float:
    """Floating-point operations of the image tower."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.get_image_features(pixel_values=torch.zeros(1, 3, 224, 224, device=model.device))
    return float(counter.get_total_flops())


def options() -> argparse.Namespace:
    """The command line; ends where this machine has not what it asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--peers", type=Path, help="what make bench-peers filled: an environment for each peer")
    chosen = arguments(__doc__, parser)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device; install a CUDA build of torch and the GPU's driver")
    if chosen.peers and chosen.device == "cuda":
        parser.error("--peers run on the CPU: leave out --device cuda")
    if chosen.peers and not chosen.peers.is_dir():
        parser.error(f"--peers {chosen.peers}: there is no such folder; make bench-peers makes build/peers")
    return chosen


def main() -> None:
    """Prints pictures a second of each way, and where the time of a batch goes."""
    chosen = options()
    gpu, batch = chosen.device == "cuda", BATCH[chosen.device]
    clock: Clock = time.monotonic if gpu else own_cpu_s
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    proxies = make_proxies() * (batch // PICTURES)
    with ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="dr-")))
        make_model(folder)
        model = load_model(str(folder), ModelSettings(model_device=chosen.device))
        device = model.device
        single = ClipModel(str(folder), folder, device, torch.float32)
        naive = CLIPModel.from_pretrained(folder, dtype=torch.float32).to(device).eval()
        operations = operations_of_a_picture(naive)
        processor = CLIPImageProcessor.from_pretrained(folder)
        kind, threads = named(model.dtype), os.cpu_count() or 1
        # Beside a GPU all cores decode, as the embedder's helpers do.
        each: Each = cleanup.enter_context(ThreadPoolExecutor(threads)).map if gpu else map
        first, in_float32 = f"ours: {kind}, {batch} at once", f"ours in float32, {batch} at once"
        one, limit = "transformers, float32, one by one", f"limit: {kind} products alone"
        ways: dict[str, Callable[[], Mapping[str, float]]] = {
            first: partial(timed, partial(ours, model, each), proxies, clock),
            in_float32: partial(timed, partial(ours, single, each), proxies, clock),
            one: partial(timed, partial(one_by_one, naive, processor), proxies[:4], clock),
            limit: partial(product, model.dtype, device, operations, clock),
        }
        ratios = [
            Ratio("ours / one by one", first, one, at_least=7),
            Ratio("ours / limit", first, limit, at_least=None if gpu else 0.6),
        ]
        made = preprocessed(model, each, proxies)
        if gpu:
            decoding, network = f"ours: the proxies alone, {threads} threads", f"ours: the network alone, {kind}"
            ways[decoding] = partial(timed, partial(preprocessed, model, each), proxies, clock)
            ways[network] = partial(timed, model.embed_pictures, made, clock)
            ratios.append(Ratio("the network alone / limit", network, limit))
            ratios.append(Ratio("the proxies alone / the network alone", decoding, network, at_least=1))
        others: dict[str, Callable[[], Mapping[str, float]]] = {}
        if find_spec("sentence_transformers"):
            for dtype in dict.fromkeys((model.dtype, torch.float32)):
                label = f"sentence-transformers, {named(dtype)}, {batch} at once"
                others[label] = partial(timed, sentence_transformer(folder, dtype, device), proxies, clock)
        facts: dict[str, Any] = {}
        if chosen.peers:
            wanted = ours(single, each, proxies)
            for label, peer in peers(chosen.peers, folder, model.dtype, proxies, wanted, cleanup):
                others[label] = partial(asked, peer, proxies)
                facts[label] = json.dumps(peer.versions)
        ratios += [Ratio(f"ours / {way}", first, way) for way in others]
        ratios += [Ratio(f"ours in float32 / {way}", in_float32, way) for way in others if "float32" in way]
        ways |= others
        interleaved(ways, 1)
        rounds = interleaved(ways, chosen.rounds)
        if not gpu:
            spent = {
                "preprocessing": timed(partial(preprocessed, model, each), proxies, clock),
                "network": timed(model.embed_pictures, made, clock),
            }
            facts["CPU of a picture, ms"] = json.dumps({k: round(1000 / v["rate"], 1) for k, v in spent.items()})
        unit = "pictures a second" if gpu else "pictures a second of one core"
        comparison = Comparison.of("ViT-B/32 from proxies", unit, rounds, "rate", ratios)
    peak = statistics.median(rounds[limit]["rate"]) * operations / 1e9
    facts |= {
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "operations of a picture, GFLOP": round(operations / 1e9, 2),
        f"matrix products in {kind}, GFLOP/s": round(peak),
    }
    name = "embeddings-cuda" if gpu else "embeddings-peers" if chosen.peers else "embeddings"
    publish(name, [comparison], chosen.results, facts)


if __name__ == "__main__":
    main()
