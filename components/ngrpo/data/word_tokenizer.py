"""The word-level tokenizer of a generated task, with the chat template of a model that is trained from scratch."""

from __future__ import annotations

from typing import Literal

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ngrpo.data.arithmetic import END_THINK, THINK
from ngrpo.data.vocabularies import VOCABULARIES

PAD, END, UNKNOWN, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|unknown|>", "<|user|>", "<|assistant|>"

_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '"
    + ASSISTANT
    + "' + message['content'] + '"
    + END
    + "' }}{% else %}{{ '"
    + USER
    + "' + message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + ASSISTANT + "' }}{% endif %}"
)


def word_tokenizer(task: Literal["arithmetic", "countdown"] = "arithmetic") -> PreTrainedTokenizerFast:
    """Build a tokenizer with one token for each word of a task's problems and solutions.

    Decoding restores the text exactly. `<think>` and `</think>` are added tokens that are not special, so they stay in
    decoded text. Words outside the vocabulary become the unknown token.
    """
    special = [PAD, END, UNKNOWN, USER, ASSISTANT]
    vocabulary = VOCABULARIES[task]
    words = [*special, THINK, END_THINK, *vocabulary]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=UNKNOWN))
    # Longest first, so that 1 does not split 12.
    pieces = "|".join(_escape(word) for word in sorted(vocabulary, key=len, reverse=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pieces), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in (THINK, END_THINK)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        chat_template=_CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        extra_special_tokens=[USER, ASSISTANT],
    )


def _escape(word: str) -> str:
    """Quote a word for the regular expression language of `tokenizers` (Oniguruma)."""
    return "".join(f"\\{character}" if character in "\\.?+-=(){}[]|^$*" else character for character in word)
