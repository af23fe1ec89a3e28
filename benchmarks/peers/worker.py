"""A peer, run by the Python of an environment of its own: embeddings of proxies, and the CPU time that they took.

    PEER/bin/python benchmarks/peers/worker.py open_clip|infinity MODEL float32|bfloat16 BATCH

MODEL is a folder that transformers wrote with `save_pretrained`. The first line out is a JSON object with the versions.
Each line in is a JSON list of proxies (JPEG in base64), one batch. Its answer is a line with `cpu_s`, the seconds of
user and system time of this process from the JPEGs' bytes on, and `vectors`, rows of length 1. The other end is
`benchmarks/peer.py`.
"""

import asyncio
import base64
import io
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version
from typing import Any

Embed = Callable[[list[bytes]], list[list[float]]]
"""Proxies in; out one vector of length 1 for each."""


def open_clip(folder: str, dtype: str, batch: int, cleanup: ExitStack) -> Embed:
    """The peer as its README uses it, with the weights of a transformers CLIP."""
    import torch
    from PIL import Image
    from safetensors.torch import load_file

    try:
        import torchvision  # noqa: F401
    except RuntimeError:  # one that is built for CUDA, beside a torch that is not: its compiled operators do not load
        for operator in ("nms", "qnms"):  # declared, it can be imported; open_clip takes its Python alone
            torch.library.define(
                f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
    import open_clip

    precision = {"float32": "fp32", "bfloat16": "bf16"}[dtype]
    model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32-quickgelu", precision=precision)
    model.visual.load_state_dict(_as_open_clip(load_file(f"{folder}/model.safetensors")))
    model.eval()

    @torch.inference_mode()
    def embed(proxies: list[bytes]) -> list[list[float]]:
        pictures = torch.stack([preprocess(Image.open(io.BytesIO(proxy))) for proxy in proxies])
        features = model.encode_image(pictures.to(getattr(torch, dtype)))
        # Its own normalize=True rounds a length in bfloat16, and misses 1 by 0.003.
        return torch.nn.functional.normalize(features.float(), dim=-1).tolist()

    return embed


def _as_open_clip(weights: dict[str, Any]) -> dict[str, Any]:
    """The image tower of a transformers CLIP under open_clip's names."""
    import torch

    renamed = {"proj": weights["visual_projection.weight"].T}
    for name, weight in weights.items():
        tower, _, inner = name.partition(".")
        if tower != "vision_model" or ".k_proj." in inner or ".v_proj." in inner:
            continue
        if ".q_proj." in inner:  # which open_clip keeps together with k and v
            weight = torch.cat([weights[name.replace("q_proj", f"{each}_proj")] for each in "qkv"])
        for pattern, replacement in _NAMES:
            inner = re.sub(pattern, replacement, inner)
        renamed[inner] = weight
    return renamed


_NAMES = (
    (r"^embeddings\.class_embedding$", "class_embedding"),
    (r"^embeddings\.patch_embedding\.", "conv1."),
    (r"^embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^pre_layrnorm\.", "ln_pre."),
    (r"^post_layernorm\.", "ln_post."),
    (r"^encoder\.layers\.", "transformer.resblocks."),
    (r"\.layer_norm(\d)\.", r".ln_\1."),
    (r"\.self_attn\.q_proj\.", ".attn.in_proj_"),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)


def infinity(folder: str, dtype: str, batch: int, cleanup: ExitStack) -> Embed:
    """The peer's engine in this process: what its server calls, without HTTP."""
    from infinity_emb import AsyncEmbeddingEngine, EngineArgs

    runner = cleanup.enter_context(asyncio.Runner())
    settings = EngineArgs(
        model_name_or_path=folder,
        batch_size=batch,
        device="cpu",
        dtype=dtype,
        model_warmup=False,
        bettertransformer=False,
    )
    engine = AsyncEmbeddingEngine.from_args(settings)
    runner.run(engine.astart())
    cleanup.callback(lambda: runner.run(engine.astop()))

    def embed(proxies: list[bytes]) -> list[list[float]]:
        vectors, _ = runner.run(engine.image_embed(images=proxies))
        return [vector.tolist() for vector in vectors]

    return embed


PEERS = {"open_clip": (open_clip, "open_clip_torch"), "infinity": (infinity, "infinity_emb")}
"""How each is loaded, and the name of its package."""


def main() -> None:
    """Answers until standard input ends."""
    name, folder, dtype, batch = sys.argv[1:]
    load, package = PEERS[name]
    logging.disable(logging.WARNING)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints is no answer
    with ExitStack() as cleanup:
        embed = load(folder, dtype, int(batch), cleanup)
        print(json.dumps({each: version(each) for each in (package, "torch")}), file=answers)
        for line in sys.stdin:
            proxies = [base64.b64decode(proxy) for proxy in json.loads(line)]
            begun = time.process_time()
            vectors = embed(proxies)
            spent = time.process_time() - begun
            print(json.dumps({"cpu_s": spent, "vectors": vectors}), file=answers)


if __name__ == "__main__":
    main()
