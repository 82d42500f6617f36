"""The bytes that each token of a tokenizer adds to a text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> list[bytes]:
    """Return the bytes that each token adds to a non-empty text, by id; none for an id without a token.

    A token may hold part of a character. Its bytes are read off by decoding it after another token, because some tokenizers put a space
    between two words, or mark the start of one.
    """
    by_id = {token_id: token for token, token_id in tokenizer.get_vocab().items()}
    tokens = [by_id.get(token_id) for token_id in range(max(by_id) + 1)]
    kinds = _decoders(tokenizer)
    if "ByteLevel" in kinds:
        of_letter = {letter: byte for byte, letter in bytes_to_unicode().items()}
        return [_of_letters(token or "", of_letter) for token in tokens]
    texts = _after_another(tokenizer, tokens)
    if "ByteFallback" in kinds:
        for token_id, token in enumerate(tokens):
            match = _BYTE.fullmatch(token or "")
            if match is not None:
                texts[token_id] = bytes([int(match[1], 16)])
    return texts


def _of_letters(token: str, of_letter: dict[str, int]) -> bytes:
    """Return the bytes that a token of a byte-level vocabulary stands for; an added token stands for its own text."""
    values = [of_letter.get(letter) for letter in token]
    return token.encode() if None in values else bytes(value for value in values if value is not None)


def _after_another(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str | None]) -> list[bytes]:
    decode = _decoder(tokenizer)
    known = [token_id for token_id, token in enumerate(tokens) if token is not None]
    # Any text token will do; a letter or a digit is least likely to be joined with the next one.
    alone = decode([[token_id] for token_id in known])
    first = next((at for at, text in enumerate(alone) if len(text) == 1 and text.isalnum()), None)
    if first is None:
        first = next((at for at, text in enumerate(alone) if text.strip()), 0)
    texts = [b""] * len(tokens)
    pairs = decode([[known[first], token_id] for token_id in known])
    for token_id, text, pair in zip(known, alone, pairs, strict=True):
        texts[token_id] = (pair[len(alone[first]) :] if pair.startswith(alone[first]) else text).encode()
    return texts


def _decoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[list[int]]], list[str]]:
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return lambda sequences: list(backend.decode_batch(sequences, skip_special_tokens=False))
    return lambda sequences: [tokenizer.decode(ids, skip_special_tokens=False) for ids in sequences]


def _decoders(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Return the kinds of the steps that a tokenizer decodes in; none for one that is not of the library `tokenizers`."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None:
        return set()
    tree = json.loads(decoder.__getstate__())
    return {step["type"] for step in tree.get("decoders", [tree])}
