"""The end marker is found in the text that tokens spell, however they divide it."""

import random

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ngrpo.config.mixing import MixingConfig
from ngrpo.data.word_tokenizer import word_tokenizer
from ngrpo.errors import ConfigError
from ngrpo.mixing.end_marker import EndMarker
from ngrpo.rollout.configured_mixer import configured_end_marker
from ngrpo.rollout.token_bytes import token_bytes


def first_end(marker: EndMarker, tokens: list[int]) -> int | None:
    """Number of tokens after which mixing has ended."""
    progress = torch.zeros(1, dtype=torch.long)
    for count, token in enumerate(tokens, start=1):
        progress = marker.advance(progress, torch.tensor([token]))
        if marker.passed(progress):
            return count
    return None


@pytest.mark.parametrize("marker", ["aab", "abab", "aaaa", "b", "abcabd", "é", "aéa"])
def test_it_is_what_reading_the_text_finds(marker):
    draw = random.Random(marker)
    letters = [letter.encode() for letter in marker] + [b"a", b"b", b"c", b"\xc3", b"\xa9", b""]
    cuts = [draw.randint(0, len(marker.encode())) for _ in range(5)]
    texts = [*letters, *(marker.encode()[:cut] for cut in cuts), *(marker.encode()[cut:] for cut in cuts)]
    texts += [b"".join(draw.choices(letters, k=draw.randint(2, 5))) for _ in range(30)]
    automaton = EndMarker.of(marker, texts)
    found = 0
    for _ in range(300):
        tokens = draw.choices(range(len(texts)), k=40)
        expected = next(
            (n for n in range(1, 41) if marker.encode() in b"".join(texts[token] for token in tokens[:n])), None
        )
        assert first_end(automaton, tokens) == expected
        found += expected is not None
    assert found > 5


def test_rows_go_on_by_themselves():
    automaton = EndMarker.of("ab", [b"a", b"b", b"xab"])
    progress = automaton.advance(torch.tensor([0, 1, 2, 0]), torch.tensor([0, 1, 0, 2]))
    assert progress.tolist() == [1, 2, 2, 2]
    assert automaton.passed(progress).tolist() == [False, True, True, True]


def byte_level() -> PreTrainedTokenizerFast:
    """Bytes, and pieces that end in the middle of a word or of a character; nothing is one token but by its merges."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("<", "/"), (">", "\\"), ("t", "h"), ("th", "i"), ("n", "k")]
    words = [*letters, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    fast.add_tokens(["</answer>"])
    return fast


def test_a_marker_that_its_context_divides_otherwise_is_found():
    tokenizer = byte_level()
    alone, inside = (tokenizer.encode(text) for text in ("</think>", "2</think>\\boxed{2}"))
    assert ">\\" in tokenizer.convert_ids_to_tokens(inside)
    assert not any(inside[at : at + len(alone)] == alone for at in range(len(inside))), "no fixed sequence is in there"
    marker = configured_end_marker(MixingConfig(), tokenizer, len(tokenizer) + 3)
    count = first_end(marker, inside)
    assert tokenizer.decode(inside[:count]) == "2</think>\\"
    assert first_end(marker, [*inside[: count - 1], len(tokenizer) + 1]) is None, "a row without a token adds nothing"


def test_a_character_may_be_divided_among_tokens():
    tokenizer = byte_level()
    marker = configured_end_marker(MixingConfig(end_marker="答案"), tokenizer, len(tokenizer))
    tokens = tokenizer.encode("so 答案: 3")
    count = first_end(marker, tokens)
    assert len(tokens) > 10
    assert tokenizer.decode(tokens[:count]) == "so 答案"


def test_an_added_token_counts_as_it_is_written():
    tokenizer = byte_level()
    marker = configured_end_marker(MixingConfig(end_marker="answer>"), tokenizer, len(tokenizer))
    tokens = tokenizer.encode("x</answer>y")
    assert tokens[1] == tokenizer.convert_tokens_to_ids("</answer>")
    assert first_end(marker, tokens) == 2


def sentence_pieces() -> PreTrainedTokenizerFast:
    """As of Llama 2: a mark for a space, and bytes for what is in no piece."""
    words = ["<unk>", "<s>", "▁", "▁so", "think", "</", ">", "▁</", "a", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<s>")


def word_pieces() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "so": 1, "##me": 2, "a": 3, ".": 4}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def words() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "stop": 2}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@pytest.mark.parametrize(
    ("make", "first"),
    [(byte_level, "a"), (sentence_pieces, "a"), (word_pieces, "a"), (words, "a"), (word_tokenizer, "1")],
)
def test_what_tokens_add_is_what_the_tokenizer_decodes_them_to(make, first):
    tokenizer = make()
    texts = token_bytes(tokenizer)
    assert len(texts) == len(tokenizer)
    known = [token for token, text in enumerate(texts) if text.isascii()]
    begun = tokenizer.convert_tokens_to_ids(first)
    draw = random.Random(0)
    for _ in range(100):
        tokens = [begun, *draw.choices(known, k=8)]
        decoded = tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
        assert b"".join(texts[token] for token in tokens[1:]).decode() == decoded.removeprefix(first)


@pytest.mark.parametrize(
    ("make", "marker"),
    [(words, "</think>"), (words, "astop"), (word_tokenizer, "</answer>"), (word_pieces, "some a-")],
)
def test_a_marker_that_no_tokens_spell_is_refused(make, marker):
    tokenizer = make()
    with pytest.raises(ConfigError, match=r"mixing\.end_marker='.*' cannot be written with this tokenizer: choose"):
        configured_end_marker(MixingConfig(end_marker=marker), tokenizer, len(tokenizer))


@pytest.mark.parametrize(
    ("make", "marker"), [(words, "a stop"), (words, "top"), (word_pieces, "some a"), (sentence_pieces, "</think>")]
)
def test_a_marker_that_several_tokens_spell_is_taken(make, marker):
    tokenizer = make()
    assert configured_end_marker(MixingConfig(end_marker=marker), tokenizer, len(tokenizer)) is not None


def test_there_may_be_none():
    assert configured_end_marker(MixingConfig(end_marker=None), words(), 3) is None
