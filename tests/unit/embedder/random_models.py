"""Small untrained models in the files that `save_pretrained` writes: real architectures, no download."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

torch.set_num_threads(1)  # small matrices on shared cores: more threads would only take turns

WORDS = ("a", "red", "blue", "circle", "square", "photo", "of")
SPECIAL = ("<unk>", "<pad>", "<bos>", "<eos>")
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def save_clip(folder: Path, *, seed: int = 0, image_size: int = 32) -> Path:
    """A CLIP that scales by the shorter side, cuts out the centre, and answers with 24 numbers."""
    torch.manual_seed(seed)
    text = TOWER | {"vocab_size": 11, "max_position_embeddings": 16}
    text |= {"bos_token_id": 9, "eos_token_id": 10, "pad_token_id": 8}
    config = CLIPConfig(
        text_config=text, vision_config=TOWER | {"image_size": image_size, "patch_size": 8}, projection_dim=24
    )
    CLIPModel(config).save_pretrained(folder)
    side = {"height": image_size, "width": image_size}
    CLIPImageProcessorPil(size={"shortest_edge": image_size}, crop_size=side).save_pretrained(folder)
    _save_tokenizer(folder, 16)
    return folder


def save_siglip(folder: Path) -> Path:
    """A SigLIP, which squeezes every picture into a square and pads texts to their full length."""
    torch.manual_seed(1)
    text = TOWER | {"vocab_size": 11, "max_position_embeddings": 8, "projection_size": 32}
    config = SiglipConfig(text_config=text, vision_config=TOWER | {"image_size": 32, "patch_size": 8})
    SiglipModel(config).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    _save_tokenizer(folder, 8)
    return folder


def _save_tokenizer(folder: Path, length: int) -> None:
    vocabulary = {word: number for number, word in enumerate((*WORDS, *SPECIAL))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 9), ("<eos>", 10)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        model_max_length=length,
    ).save_pretrained(folder)
