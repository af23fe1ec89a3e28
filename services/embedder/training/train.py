"""Trains the bundled model from nothing: `python services/embedder/training/train.py --output DIR`.

Everything follows from SEED: pictures, captions, tokenizer, weights and the order of the batches.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dataset import Pool, implied, make_pool
from numpy.typing import NDArray
from tokenizer import MAX_TOKENS, train_tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from vocabulary import COLOURS, FACTS, SHAPES

SEED = 20_260
SINGLES = 48_000
MIXED = 24_000
STEPS = 3_000
BATCH = 128
WARMUP_STEPS = 150
PEAK_RATE = 1e-3
EASY_STEPS = range(400, 900)
WEIGHT_DECAY = 0.05
WIDTH = 192
# The two threads are part of the recipe: sums are split by thread, and with another number round differently.
THREADS = 2


class Heads(nn.Module):
    """What is thrown away after training: it tells both towers early which facts matter."""

    def __init__(self) -> None:
        super().__init__()
        self.facts = nn.Linear(WIDTH, len(FACTS))  # on the embeddings of pictures and of texts alike
        self.patches = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, len(SHAPES) + 1 + len(COLOURS) + 1))
        # After layer 3: the object's outline within each patch, so that the layers above learn shapes free of colour.
        self.mask = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 64))


def build_model(tokenizer: CLIPTokenizer) -> CLIPModel:
    """The untrained model, float32: about 3.5 million parameters."""
    config = CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": MAX_TOKENS,
            "projection_dim": WIDTH,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": WIDTH,
            "intermediate_size": 4 * WIDTH,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "image_size": 64,
            "patch_size": 8,
            "projection_dim": WIDTH,
        },
        projection_dim=WIDTH,
    )
    # Eager, because the backward pass of fused attention takes half of a step on a CPU.
    model: CLIPModel = CLIPModel._from_config(config, attn_implementation="eager")
    with torch.no_grad():
        model.vision_model.embeddings.position_embedding.weight[1:] = 0.3 * _waves(8)
    return model


def _waves(side: int) -> Tensor:
    """Sines and cosines of each patch's column and row, (side * side, WIDTH): a plane to start from, not noise."""
    y, x = np.mgrid[0:side, 0:side].reshape(2, -1, 1)
    pace = 100.0 ** -(np.arange(WIDTH // 4) / (WIDTH // 4))
    return torch.from_numpy(np.concatenate([np.sin(x * pace), np.cos(x * pace), np.sin(y * pace), np.cos(y * pace)], 1))


def save_checkpoint(model: CLIPModel, tokenizer: CLIPTokenizer, output: Path) -> None:
    """Writes the model in float16, the tokenizer and the image processor, as a model hub would serve them."""
    output.mkdir(parents=True, exist_ok=True)
    half = CLIPModel(model.config).to(torch.float16)
    half.load_state_dict({name: value.to(torch.float16) for name, value in model.state_dict().items()})
    half.save_pretrained(output)
    tokenizer.save_pretrained(output)
    CLIPImageProcessorPil(
        size={"shortest_edge": 64},
        crop_size={"height": 64, "width": 64},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    ).save_pretrained(output)
    # The name that checkpoints on a hub carry: it resolves with torchvision and without.
    processor = output / "preprocessor_config.json"
    settings = json.loads(processor.read_text())
    settings["image_processor_type"] = "CLIPImageProcessor"
    processor.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    for file in output.iterdir():
        file.chmod(0o644)  # save_pretrained writes 0600, which another user's worker could not read


class Batches:
    """Draws batches: half mixed scenes, half single objects of two colours, which only their shapes tell apart."""

    def __init__(self, mixed: Pool, singles: Pool, tokenizer: CLIPTokenizer, seed: int) -> None:
        self._pools = (mixed, singles)
        self._tokens = [self._tokenize(pool, tokenizer) for pool in self._pools]
        self._of_colour = [np.flatnonzero(singles.colour == colour) for colour in range(len(COLOURS))]
        big = singles.facts[:, [FACTS[("size", "big", shape)] for shape in SHAPES]].any(1)
        quiet = singles.facts[:, [FACTS[("background", kind)] for kind in ("plain", "gradient")]].any(1)
        easy = np.logical_and(big, quiet)
        self._easy_of_colour = [rows[easy[rows]] for rows in self._of_colour]
        self._pad, self._eos = int(tokenizer.pad_token_id), int(tokenizer.eos_token_id)
        self._rng = np.random.default_rng(seed)

    @staticmethod
    def _tokenize(pool: Pool, tokenizer: CLIPTokenizer) -> NDArray[np.int64]:
        texts = [text for captions in pool.captions for text in captions]
        encoded = tokenizer(texts, padding=True, truncation=True, max_length=MAX_TOKENS)["input_ids"]
        return np.array(encoded, np.int64).reshape(len(pool.captions), -1, len(encoded[0]))

    def state(self) -> dict[str, object]:
        """Where the stream of batches stands."""
        return dict(self._rng.bit_generator.state)

    def restore(self, state: dict[str, object]) -> None:
        """Goes on from what `state` returned."""
        self._rng.bit_generator.state = state

    def draw(self, *, easy: bool) -> dict[str, Tensor]:
        """One batch of BATCH pictures, each with one of its captions.

        An easy one has three quarters of single objects instead of a half, all large and on quiet backgrounds.
        """
        rng = self._rng
        half = BATCH // 4 if easy else BATCH // 2  # of mixed scenes
        rest = BATCH - half
        mixed = rng.integers(len(self._pools[0].pixels), size=half)
        colours = rng.choice(len(COLOURS), 2, replace=False)
        rows_of = self._easy_of_colour if easy else self._of_colour
        singles = np.concatenate([rng.choice(rows_of[colour], rest // 2) for colour in colours])
        # Captions 1 and 2 name colour and shape of one object: hard batches are mostly of these.
        which = (rng.integers(6, size=half), rng.choice(6, rest, p=(0.12, 0.35, 0.3, 0.08, 0.08, 0.07)))
        rows = (mixed, singles)

        def gather(name: str) -> NDArray[Any]:
            return np.concatenate([getattr(pool, name)[row] for pool, row in zip(self._pools, rows, strict=True)])

        requires = np.concatenate([p.requires[r, w] for p, r, w in zip(self._pools, rows, which, strict=True)])
        length = max(tokens.shape[2] for tokens in self._tokens)
        ids = np.full((BATCH, length), self._pad, np.int64)
        for start, tokens, row, caption in zip((0, half), self._tokens, rows, which, strict=True):
            ids[start : start + len(row), : tokens.shape[2]] = tokens[row, caption]
        longest = int((ids != self._pad).sum(1).max())
        pixels = torch.from_numpy(gather("pixels")).permute(0, 3, 1, 2).float() / 127.5 - 1
        patches = torch.from_numpy(np.stack([gather("shape_patches"), gather("colour_patches")], 1)).long()
        mask = torch.from_numpy(np.unpackbits(gather("mask"), axis=1).reshape(BATCH, 64, 64))
        mirrored = torch.from_numpy(np.less(rng.random(BATCH), 0.5))
        pixels[mirrored] = pixels[mirrored].flip(-1)
        patches[mirrored] = patches[mirrored].flip(-1)
        mask[mirrored] = mask[mirrored].flip(-1)
        gain = torch.from_numpy(rng.uniform(0.93, 1.07, (BATCH, 1, 1, 1)).astype(np.float32))
        return {
            "pixels": ((pixels + 1) * gain - 1).clamp(-1, 1),
            "ids": torch.from_numpy(ids[:, :longest]),
            "facts": torch.from_numpy(gather("facts")).float(),
            "requires": torch.from_numpy(requires).float(),
            "implied": torch.from_numpy(implied(requires)).float(),
            "patches": patches.flatten(2),
            "mask": mask.reshape(BATCH, 8, 8, 8, 8).transpose(2, 3).reshape(BATCH, 64, 64).float(),
        }


# Shapes are the hard part: those facts weigh four times as much.
_WEIGHTS = torch.tensor([4.0 if fact[0] == "shape" else 1.0 for fact in FACTS])


_FIRST_SHAPE = FACTS[("shape", next(iter(SHAPES)))]


def batch_loss(
    model: CLIPModel, heads: Heads, logit_scale: Tensor, batch: dict[str, Tensor]
) -> tuple[Tensor, dict[str, float]]:
    """The loss to minimise and its parts as numbers."""
    vision = model.vision_model(batch["pixels"].to(torch.bfloat16), output_hidden_states=True)
    images = model.visual_projection(vision.pooler_output).float()
    text = model.text_model(batch["ids"])
    texts = model.text_projection(text.pooler_output).float()

    logits = functional.normalize(texts) @ functional.normalize(images).T * logit_scale.exp()
    # A caption that also holds for another picture of the batch is no negative for it.
    holds = batch["requires"] @ batch["facts"].T >= batch["requires"].sum(1, keepdim=True)
    holds.fill_diagonal_(False)
    logits = logits.masked_fill(holds, -1e4)
    target = torch.arange(len(logits))
    contrast = (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2

    def fact_loss(embeddings: Tensor, facts: Tensor) -> Tensor:
        scores = heads.facts(embeddings.to(torch.bfloat16)).float()
        return functional.binary_cross_entropy_with_logits(scores, facts, _WEIGHTS, reduction="sum") / len(facts)

    shown = fact_loss(images, batch["facts"])
    said = fact_loss(texts, batch["implied"])
    patches = heads.patches(vision.last_hidden_state[:, 1:]).float().transpose(1, 2)
    # Most patches are background, which is easy to tell: it counts a fifth.
    rare = torch.ones(len(SHAPES) + 1)
    rare[0] = 0.2
    seen = functional.cross_entropy(patches[:, : len(SHAPES) + 1], batch["patches"][:, 0], rare)
    seen = seen + functional.cross_entropy(patches[:, len(SHAPES) + 1 :], batch["patches"][:, 1])

    outline = heads.mask(vision.hidden_states[3][:, 1:]).float()
    outlined = functional.binary_cross_entropy_with_logits(outline, batch["mask"])

    loss = contrast + 0.06 * shown + 0.03 * said + 0.4 * seen + 2 * outlined
    parts = {"contrast": contrast, "shown": shown, "said": said, "seen": seen, "outlined": outlined}
    shapes = slice(_FIRST_SHAPE, _FIRST_SHAPE + len(SHAPES))
    with torch.no_grad():
        scores = heads.facts(images.to(torch.bfloat16))[-BATCH // 2 :, shapes]
        truth = batch["facts"][-BATCH // 2 :, shapes]
        parts["shape"] = (scores.argmax(1) == truth.argmax(1)).float().mean()
    return loss, {name: float(part.detach()) for name, part in parts.items()}


def rate(step: int) -> float:
    """The share of the peak learning rate at a step.

    A linear warm-up, the first of a half cosine while colours and words are learned, then half the peak, which shapes
    need: at the full rate they are hardly learned. From the end of the easy steps it falls to nothing in two lines.
    """
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    if step < EASY_STEPS.start:
        return 0.5 * (1 + math.cos(math.pi * (step - WARMUP_STEPS) / 2250))
    return float(np.interp(step, [EASY_STEPS.stop, 1400, STEPS], [1 / 2, 1 / 3, 0]))


def train(output: Path, snapshot_every: int, resume: Path | None) -> None:
    """Trains and writes the checkpoint to `output`.

    Every `snapshot_every` steps (0: never) a checkpoint goes to `output`-partial and the whole state to
    `output`-partial/state.pt, from which `resume` goes on as if nothing had happened.
    """
    started = time.monotonic()
    torch.set_num_threads(THREADS)
    torch.manual_seed(SEED)
    singles = make_pool(SEED, "single", SINGLES)
    mixed = make_pool(SEED + 1, "mixed", MIXED)
    tokenizer = train_tokenizer(text for pool in (singles, mixed) for texts in pool.captions for text in texts)
    print(f"{SINGLES + MIXED} pictures, {len(tokenizer)} tokens: {time.monotonic() - started:.0f} s", flush=True)

    batches = Batches(mixed, singles, tokenizer, SEED + 2)
    model, heads = build_model(tokenizer), Heads()
    logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
    # bfloat16 computes six times faster here, but cannot add small updates: the optimizer works on float32 copies.
    computed = [p for name, p in [*model.named_parameters(), *heads.named_parameters()] if name != "logit_scale"]
    masters = [nn.Parameter(p.detach().clone()) for p in computed]
    model.to(torch.bfloat16)
    heads.to(torch.bfloat16)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in masters if p.ndim > 1], "weight_decay": WEIGHT_DECAY, "scale": 1.0},
            {"params": [p for p in masters if p.ndim <= 1], "weight_decay": 0.0, "scale": 1.0},
            {"params": [logit_scale], "weight_decay": 0.0, "scale": 10.0},
        ],
        betas=(0.9, 0.98),
        fused=True,
    )

    def save(folder: Path) -> None:
        exact = dict(zip(_computed_names(model), masters, strict=False))  # the heads' come after and are left
        full = CLIPModel(model.config)
        full.load_state_dict({**full.state_dict(), **exact, "logit_scale": logit_scale.detach()})
        save_checkpoint(full, tokenizer, folder)

    def save_state(step: int, file: Path) -> None:
        state = {"step": step, "masters": masters, "logit_scale": logit_scale, "optimizer": optimizer.state_dict()}
        torch.save({**state, "batches": batches.state()}, file)

    first = 0
    if resume:
        state = torch.load(resume)
        first = int(state["step"])
        batches.restore(state["batches"])
        optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            logit_scale.copy_(state["logit_scale"])
            for master, parameter, saved in zip(masters, computed, state["masters"], strict=True):
                master.copy_(saved)
                parameter.copy_(saved)

    recent: list[dict[str, float]] = []
    trained = time.monotonic()
    for step in range(first, STEPS):
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * group["scale"] * rate(step)
        loss, parts = batch_loss(model, heads, logit_scale, batches.draw(easy=step in EASY_STEPS))
        loss.backward()  # type: ignore[no-untyped-call]
        for master, parameter in zip(masters, computed, strict=True):
            if parameter.grad is not None:
                master.grad = parameter.grad.float()
                parameter.grad = None
        nn.utils.clip_grad_norm_([*masters, logit_scale], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            logit_scale.clamp_(max=math.log(100))
            for master, parameter in zip(masters, computed, strict=True):
                parameter.copy_(master)
        recent.append(parts)
        if step % 50 == 49:
            speed = (step + 1 - first) * BATCH / (time.monotonic() - trained)
            told = "  ".join(f"{name} {np.mean([part[name] for part in recent]):.3f}" for name in parts)
            recent.clear()
            print(f"step {step + 1}/{STEPS}  {told}  scale {logit_scale.exp():.1f}  {speed:.0f}/s", flush=True)
        if snapshot_every and (step + 1) % snapshot_every == 0 and step + 1 < STEPS:
            save(output.with_name(output.name + "-partial"))
            save_state(step + 1, output.with_name(output.name + "-partial") / "state.pt")
    save(output)
    print(f"trained in {(time.monotonic() - started) / 60:.1f} min: {output}", flush=True)


def _computed_names(model: CLIPModel) -> list[str]:
    return [name for name, _ in model.named_parameters() if name != "logit_scale"]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of the checkpoint to write")
    parser.add_argument("--snapshot-every", type=int, default=0, help="also write DIR-partial every so many steps")
    parser.add_argument("--resume", type=Path, help="go on from this state.pt of an interrupted run")
    arguments = parser.parse_args()
    train(arguments.output, arguments.snapshot_every, arguments.resume)


if __name__ == "__main__":
    main()
