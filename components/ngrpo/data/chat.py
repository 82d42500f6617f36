"""Conversations: how they are built, their length in tokens, and checks of the tokenizer's chat template."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from functools import lru_cache

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from ngrpo.config.sections import TEMPLATE_DATE
from ngrpo.data.template_trial import CPU_SECONDS
from ngrpo.errors import DataError

Turns = list[dict[str, str]]

_WALL_SECONDS = 60.0  # generous, for busy machines; CPU_SECONDS is the real limit
_QUESTION = "what is 7+4-2?"
_ANSWER = "It is 9."
_LONG = "First 7+4=11, then 11-2=9. " * 100
_TRIALS: tuple[tuple[Turns, bool], ...] = (
    ([{"role": "user", "content": _QUESTION}], True),
    (
        [{"role": "user", "content": _LONG}, {"role": "assistant", "content": rf"<think>{_LONG}</think>\boxed{{9}}"}],
        False,
    ),
)
"""Conversations, each with its `add_generation_prompt`. The long one exposes templates that take superlinear time."""


def user_turn(problem: str, suffix: str) -> Turns:
    """Return a conversation of one user turn: the problem, followed by `suffix`, the instruction on how to answer."""
    separator = " " if suffix and not suffix[0].isspace() else ""
    return [{"role": "user", "content": f"{problem}{separator}{suffix}"}]


def require_template(tokenizer: PreTrainedTokenizerBase, label: str, day: date = TEMPLATE_DATE) -> None:
    """Refuse a tokenizer whose chat template cannot be used. The template is tried once, in a subprocess with a time limit.

    Args:
        tokenizer: The tokenizer.
        label: Name of the model in errors, for example `model 'org/name'`.
        day: Date that the template sees as today.

    Raises:
        DataError: There is no template, or it is not text, does not finish, raises, writes too much, or leaves out the question.
    """
    if tokenizer.chat_template is None:
        raise DataError(
            f"{label}: its tokenizer has no chat template; for a base model set model.chat_template='plain', or name a Jinja file there"
        )
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:  # several, and none is called `default`
        raise _unusable(label, str(error)) from error
    if not isinstance(template, str):
        raise _unusable(label, f"it is of type {type(template).__name__}, not text")
    special = {name: value for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    problem = _tried(template, json.dumps(special, sort_keys=True), day)
    if problem is not None:
        raise _unusable(label, problem)


@lru_cache(maxsize=16)
def _tried(template: str, special: str, day: date) -> str | None:
    """Return what is wrong with a template, or None if it can be used. `special` holds the special tokens as JSON."""
    conversations = [
        {**json.loads(special), "messages": turns, "add_generation_prompt": follows, "tools": None, "documents": None}
        for turns, follows in _TRIALS
    ]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "ngrpo.data.template_trial"],
            input=json.dumps({"template": template, "conversations": conversations, "day": day.isoformat()}),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            timeout=_WALL_SECONDS,
            env={
                "PYTHONPATH": os.pathsep.join(sys.path),
                "PYTHONUTF8": "1",
            },  # a template sees no secrets of the environment
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"it does not finish within {_WALL_SECONDS:.0f} seconds"
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"it does not finish within {CPU_SECONDS} seconds"
    if done.returncode:
        return f"the process that rendered it died (exit code {done.returncode})"
    question, whole = json.loads(done.stdout)
    for result in (question, whole):
        if "error" in result:
            return " ".join(str(result["error"]).split())
    if not question["text"].strip():
        return "it writes nothing"
    if _QUESTION not in question["text"]:
        return "it leaves out the question"
    return None


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the token that ends an assistant's turn in a tokenizer's chat template, declared as `eos_token_id` or not.

    This is the first special or added token after the assistant's text. Some templates end a turn only by beginning the next one.

    Args:
        tokenizer: Tokenizer with a usable chat template.

    Returns:
        The token id, or None if the template writes no such token.
    """
    asked, said = [{"role": "user", "content": _QUESTION}], [{"role": "assistant", "content": _ANSWER}]
    for turns in (asked + said + asked, asked + said):  # some templates accept only a single exchange
        try:
            text = tokenizer.apply_chat_template(turns, tokenize=False)
        except TemplateError:
            continue
        before, _, after = text.rpartition(_ANSWER)
        if not before:
            return None
        marks = {*tokenizer.get_added_vocab().values(), *tokenizer.all_special_ids} - {tokenizer.unk_token_id}
        following = tokenizer(after.partition(_QUESTION)[0], add_special_tokens=False)["input_ids"]
        return next((token for token in following if token in marks), None)
    return None


def _unusable(label: str, problem: str) -> DataError:
    return DataError(
        f"{label}: its chat template cannot be used: {problem}; use another model, or correct chat_template.jinja in a copy of it"
    )


class ChatLengths:
    """Lengths of conversations in tokens, and checks that the tokenizer can represent them.

    Args:
        tokenizer: Tokenizer with a chat template.
        rows: Rows of the model's embedding matrix; None if unknown.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rows: int | None = None) -> None:
        self.tokenizer = tokenizer
        self.rows = rows

    def prompts(self, prompts: Sequence[Turns]) -> list[int]:
        """Return the number of tokens of each prompt, up to where the response starts."""
        return [len(ids) for ids in self._encode(prompts, generation=True)]

    def conversations(self, conversations: Sequence[Turns]) -> list[int]:
        """Return the number of tokens of each whole conversation."""
        return [len(ids) for ids in self._encode(conversations, generation=False)]

    def require_known(self, label: str, ids: Sequence[str], conversations: Sequence[Turns]) -> None:
        """Refuse texts that the tokenizer cannot encode. Errors name problems by id, because some texts must not be logged.

        Args:
            label: Name of the data set in errors.
            ids: Ids of the problems, one per conversation.
            conversations: Whole conversations.

        Raises:
            DataError: A conversation contains the unknown token, or a token without an embedding in the model.
        """
        texts = [self._text(turns, generation=False) for turns in conversations]
        for identifier, text, tokens in zip(ids, texts, self._tokens(texts), strict=True):
            if self._has_unknown(text, tokens):
                raise DataError(
                    f"{label}: the base model's tokenizer cannot encode problem {identifier!r}; choose a model (model.source) and "
                    "problems that fit each other"
                )
            if self.rows is not None and tokens and max(tokens) >= self.rows:
                raise DataError(
                    f"{label}: problem {identifier!r} has token {max(tokens)} ({self.tokenizer.convert_ids_to_tokens(max(tokens))!r}), but "
                    f"the model's embedding matrix has {self.rows} rows; use the tokenizer of the model's training, or remove that problem"
                )

    def _has_unknown(self, text: str, tokens: list[int]) -> bool:
        """Whether the unknown token stands for text other than its own name (GPT-2 also uses it as the end of text)."""
        unknown = self.tokenizer.unk_token_id
        if unknown is None or unknown not in tokens:
            return False
        if not self.tokenizer.is_fast:  # slow tokenizers have no offsets
            return unknown not in {self.tokenizer.eos_token_id, self.tokenizer.bos_token_id}
        places = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return any(
            token == unknown and text[start:end].strip() != self.tokenizer.unk_token
            for token, (start, end) in zip(tokens, places, strict=True)
        )

    def require_prefix(self, examples: Sequence[tuple[Turns, Turns]], begun: str = "") -> None:
        """Refuse a chat template that changes prompts or responses: the loss on responses needs the prompt as an exact prefix.

        Args:
            examples: Prompts and completions.
            begun: `model.generation_prompt`: the text that ends the prompt, and that the completion also begins with.

        Raises:
            DataError: The prompt is not a prefix of the whole conversation, in text or tokens, or the response is changed.
        """
        for prompt, completion in examples:
            start, whole = self._text(prompt, generation=True), self._text(prompt + completion, generation=False)
            if not whole.startswith(f"{start}{completion[-1]['content'].removeprefix(begun)}"):
                raise DataError(
                    "data.warm_start: the chat template of the base model changes prompts or responses, so it cannot be "
                    "used to train on responses; set warm_start.steps=0 and data.warm_start=null, or use another model"
                )
            if begun:
                ids, all_ids = self.tokenizer([start, whole], add_special_tokens=False)["input_ids"]
                if all_ids[: len(ids)] != ids:
                    raise DataError(
                        f"model.generation_prompt={begun!r}: its end shares a token with the beginning of the solution, so that the "
                        "two cannot be separated; end it elsewhere, or change how the solutions in data.warm_start begin"
                    )

    def _encode(self, conversations: Sequence[Turns], *, generation: bool) -> list[list[int]]:
        return self._tokens([self._text(turns, generation=generation) for turns in conversations])

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []

    def _text(self, turns: Turns, *, generation: bool) -> str:
        try:
            text: str = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation)
        except TemplateError as error:  # raised for roles that a template does not support, e.g. system
            roles = ", ".join(turn["role"] for turn in turns)
            raise DataError(
                f"the chat template of the base model refuses a chat of {roles}: {' '.join(str(error).split())[:200]}; remove "
                "data.system_prompt, correct the chats, or name another template in model.chat_template"
            ) from error
        left_out = next(
            (turn for turn in turns if turn["role"] != "assistant" and turn["content"].strip() not in text), None
        )
        if left_out is not None:
            raise DataError(
                f"the chat template of the base model leaves out or changes the {left_out['role']} message; correct it, or name "
                "another in model.chat_template"
            )
        return text
