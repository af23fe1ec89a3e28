"""A CLIP tokenizer whose byte-pair merges are learned from the captions."""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

MAX_TOKENS = 77
_BOS, _PAD, _EOS = "<|startoftext|>", "<|pad|>", "<|endoftext|>"


def train_tokenizer(captions: Iterable[str], merges: int = 750) -> CLIPTokenizer:
    """A tokenizer with at most `merges` merges on top of all bytes, so that no text is unknown to it.

    The three special tokens come last and the end of text has the highest id, as in every CLIP vocabulary.
    """
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2 * len(alphabet) + merges,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
        min_frequency=2,
    )
    learner.train_from_iterator(captions, trainer)
    learned = _merges(learner)[:merges]
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *(left + right for left, right in learned)]
    tokens = [*dict.fromkeys(tokens), _BOS, _PAD, _EOS]
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=learned,
        bos_token=_BOS,
        eos_token=_EOS,
        pad_token=_PAD,
        unk_token=_EOS,
        model_max_length=MAX_TOKENS,
    )


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    return [(left, right) for left, right in json.loads(tokenizer.to_str())["model"]["merges"]]
