"""Whether a model has an embedding for every token that its tokenizer writes."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from ngrpo.errors import DataError


def require_rows(tokenizer: PreTrainedTokenizerBase, rows: int, label: str) -> None:
    """Refuse a tokenizer with tokens that the model has no embedding for.

    Added tokens that no chat needs may lie beyond the matrix: Gemma 3 without images has one, for images.

    Args:
        tokenizer: The tokenizer.
        rows: Rows of the model's embedding matrix.
        label: What the model is called in the error.

    Raises:
        DataError: An ordinary token lies beyond the matrix, or one that chats begin, end, are filled or written with.
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
            f"{label}: its tokenizer has {len(tokenizer)} tokens but its embedding matrix {rows} rows; use the tokenizer the model was "
            f"trained with, or resize the model's embeddings (token {index} is {token!r})"
        )
