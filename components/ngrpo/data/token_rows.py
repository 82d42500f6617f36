"""Check that a model has an embedding for every token of its tokenizer."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from ngrpo.errors import DataError


def require_rows(tokenizer: PreTrainedTokenizerBase, rows: int, label: str) -> None:
    """Refuse a tokenizer with tokens that the model has no embedding for.

    Added tokens that chats do not use may lie beyond the matrix, such as the image token of the text-only Gemma 3.

    Args:
        tokenizer: The tokenizer.
        rows: Rows of the model's embedding matrix.
        label: Name of the model in errors.

    Raises:
        DataError: An ordinary token lies beyond the matrix, or a BOS, EOS, padding or chat template token.
    """
    added = set(tokenizer.get_added_vocab().values())
    needed = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    if tokenizer.chat_template is not None:
        turns = [{"role": "user", "content": "1"}]
        needed |= {*tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)}
    beyond = {token: index for token, index in tokenizer.get_vocab().items() if index >= rows}
    missing = {token: index for token, index in beyond.items() if index not in added or index in needed}
    if missing:
        token, index = max(missing.items(), key=lambda item: item[1])
        raise DataError(
            f"{label}: its tokenizer has {len(tokenizer)} tokens but its embedding matrix has {rows} rows; use the tokenizer the model was "
            f"trained with, or resize the model's embeddings (token {index} is {token!r})"
        )
