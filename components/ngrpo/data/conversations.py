"""Chats in a cell of a table: a list of messages with role and content, as TRL and the hub's data sets write them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ngrpo.data.cells import kind_of, text_at
from ngrpo.errors import DataError

_ROLES = ("system", "user", "assistant")
_MEANING = ("tool_calls", "function_call", "reasoning_content", "thinking")
"""Parts of a message that a prompt would be another one without, and that are not understood here."""

Turns = list[dict[str, str]]


@dataclass(frozen=True)
class Conversation:
    """A chat.

    Attributes:
        before: The turns before the question.
        question: What the user says last.
        reply: What the assistant says to that; none where the chat ends with the question.
    """

    before: Turns
    question: str
    reply: str | None


def is_chat(cell: Any) -> bool:
    """Say whether a cell looks like a chat: a list of objects."""
    return isinstance(cell, list) and (not cell or isinstance(cell[0], Mapping))


def read_conversation(cell: Any, place: str) -> Conversation:
    """Return the chat of a cell.

    Args:
        cell: The cell.
        place: Where it is, for messages: table, row and column.

    Raises:
        DataError: It is none, a role or a content is unfit, or it ends with neither a user's nor an assistant's turn.
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
    """Return what the assistant says last in the chat of a cell; a chat of that turn alone is one too (TRL's `completion`).

    Raises:
        DataError: There is no such turn.
    """
    if not cell:
        raise DataError(f"{place} holds an empty list: a chat ends with the assistant's turn here")
    turns = [_turn(message, f"{place}, message {number}", number) for number, message in enumerate(cell, 1)]
    if turns[-1]["role"] != "assistant":
        raise DataError(
            f"{place}: the last turn is the {turns[-1]['role']}'s: a solution or an answer is the assistant's"
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
        raise DataError(
            f"{place} has {unknown!r}, which is not understood here: write it into content, or leave the row out"
        )
    role = message["role"]
    if role not in _ROLES:
        raise DataError(f"{place}: role {role!r} is none of {', '.join(_ROLES)}")
    if role == "system" and number > 1:
        raise DataError(f"{place}: a system message stands first in a chat; move it there")
    content = text_at(_joined(message["content"]), f"{place}: content")
    if not content:
        raise DataError(f"{place}: content is empty; write it, or leave the row out")
    return {"role": role, "content": content}


def _joined(content: Any) -> Any:
    """Return a content that comes as a list of parts as one text, where all of them are text."""
    if (
        isinstance(content, list)
        and content
        and all(isinstance(p, Mapping) and p.get("type") == "text" for p in content)
    ):
        texts = [part.get("text") for part in content]
        return "".join(texts) if all(isinstance(text, str) for text in texts) else content
    return content
