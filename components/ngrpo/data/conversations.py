"""Read chats from table cells: lists of messages with role and content, the format of TRL and of data sets on the hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ngrpo.data.cells import kind_of, text_at
from ngrpo.errors import DataError

_ROLES = ("system", "user", "assistant")
_MEANING = ("tool_calls", "function_call", "reasoning_content", "thinking")
"""Message fields that change the prompt and are not supported."""

Turns = list[dict[str, str]]


@dataclass(frozen=True)
class Conversation:
    """A chat.

    Attributes:
        before: The turns before the question.
        question: The user's last turn.
        reply: The assistant's reply to it; None if the chat ends with the question.
    """

    before: Turns
    question: str
    reply: str | None


def is_chat(cell: Any) -> bool:
    """Return whether a cell looks like a chat: an empty list, or a list of objects."""
    return isinstance(cell, list) and (not cell or isinstance(cell[0], Mapping))


def read_conversation(cell: Any, place: str) -> Conversation:
    """Return the chat of a cell.

    Args:
        cell: The cell.
        place: Where it is, for messages: table, row and column.

    Raises:
        DataError: The cell is not a valid chat, a role or content is not supported, or the prompt does not end with a user turn.
    """
    if not cell:
        raise DataError(f"{place} holds an empty list: a chat has at least the user's turn")
    turns = [_turn(message, f"{place}, message {number}", number) for number, message in enumerate(cell, 1)]
    reply = turns.pop()["content"] if turns[-1]["role"] == "assistant" else None
    if not turns or turns[-1]["role"] != "user":
        whose = turns[-1]["role"] if turns else "assistant"
        raise DataError(
            f"{place}: the last turn{' before the reply' if turns and reply else ''} is the {whose}'s; a prompt ends with the user's"
        )
    return Conversation(turns[:-1], turns[-1]["content"], reply)


def read_reply(cell: Any, place: str) -> str:
    """Return the assistant's last turn of a chat; a chat of that turn alone (TRL's `completion`) is accepted.

    Raises:
        DataError: The chat is not valid, or does not end with an assistant turn.
    """
    if not cell:
        raise DataError(f"{place} holds an empty list: a chat ends with the assistant's turn here")
    turns = [_turn(message, f"{place}, message {number}", number) for number, message in enumerate(cell, 1)]
    if turns[-1]["role"] != "assistant":
        raise DataError(
            f"{place}: the last turn is the {turns[-1]['role']}'s: a solution or an answer comes from the assistant"
        )
    return turns[-1]["content"]


def _turn(message: Any, place: str, number: int) -> dict[str, str]:
    if not isinstance(message, Mapping):
        what = "a text" if isinstance(message, str) else kind_of(message)
        raise DataError(f"{place} is {what}: a message is an object with role and content")
    if "role" not in message or "content" not in message:
        raise DataError(
            f"{place} has {', '.join(map(repr, message)) or 'nothing'}: a message is an object with role and content"
        )
    unknown = next((name for name in _MEANING if message.get(name)), None)
    if unknown is not None:
        raise DataError(f"{place} has {unknown!r}, which is not supported: write it into content, or remove the row")
    role = message["role"]
    if role not in _ROLES:
        raise DataError(f"{place}: role {role!r} is not one of {', '.join(_ROLES)}")
    if role == "system" and number > 1:
        raise DataError(f"{place}: a system message must come first in a chat; move it there")
    content = text_at(_joined(message["content"]), f"{place}: content")
    if not content:
        raise DataError(f"{place}: content is empty; write it, or remove the row")
    return {"role": role, "content": content}


def _joined(content: Any) -> Any:
    """Join a content that is a list of text parts; return any other content unchanged."""
    if (
        isinstance(content, list)
        and content
        and all(isinstance(p, Mapping) and p.get("type") == "text" for p in content)
    ):
        texts = [part.get("text") for part in content]
        return "".join(texts) if all(isinstance(text, str) for text in texts) else content
    return content
