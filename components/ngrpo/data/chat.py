"""Conversations: their form, and their length under a tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from ngrpo.errors import DataError

Turns = list[dict[str, str]]


def user_turn(problem: str, suffix: str) -> Turns:
    """Return the conversation that asks a problem, followed by the instruction on how to answer."""
    separator = " " if suffix and not suffix[0].isspace() else ""
    return [{"role": "user", "content": f"{problem}{separator}{suffix}"}]


class ChatLengths:
    """Lengths of conversations in tokens, and what a tokenizer must be able to do with them.

    Args:
        tokenizer: Tokenizer with a chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def prompts(self, prompts: Sequence[Turns]) -> list[int]:
        """Return the tokens of each prompt, up to where the response starts."""
        return [len(ids) for ids in self._encode(prompts, generation=True)]

    def conversations(self, conversations: Sequence[Turns]) -> list[int]:
        """Return the tokens of each whole conversation."""
        return [len(ids) for ids in self._encode(conversations, generation=False)]

    def require_known(self, label: str, ids: Sequence[str], conversations: Sequence[Turns]) -> None:
        """Refuse texts that the tokenizer cannot spell. They are named by their ids: not every text may stand in a log.

        Raises:
            DataError: A conversation becomes the unknown token somewhere.
        """
        unknown = self.tokenizer.unk_token_id
        for identifier, tokens in zip(ids, self._encode(conversations, generation=False), strict=True):
            if unknown in tokens:
                raise DataError(
                    f"{label}: the base model's tokenizer cannot spell problem {identifier!r}; choose a model (model.source) and "
                    "problems that go together"
                )

    def require_prefix(self, examples: Sequence[tuple[Turns, Turns]]) -> None:
        """Refuse a chat template that does not keep prompt and response as they are: training on responses needs that.

        Raises:
            DataError: The prompt is not the beginning of the whole conversation, or the response is changed.
        """
        for prompt, completion in examples:
            start = self.tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
            whole = self.tokenizer.apply_chat_template(prompt + completion, tokenize=False)
            if not whole.startswith(f"{start}{completion[-1]['content']}"):
                raise DataError(
                    "data.warm_start: the chat template of the base model changes prompts or responses, so responses cannot be "
                    "learned with it; set warm_start.steps=0 and data.warm_start=null, or use another model"
                )

    def _encode(self, conversations: Sequence[Turns], *, generation: bool) -> list[list[int]]:
        texts = [
            self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation)
            for turns in conversations
        ]
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
