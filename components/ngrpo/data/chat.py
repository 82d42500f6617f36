"""Conversations: their form, their length under a tokenizer's chat template, and whether that template can be used at all."""

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

_WALL_SECONDS = 60.0  # for a machine that has other things to do; what counts is the time of the processor
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
"""Conversations and whether the response is to follow. The long one shows a template whose time grows with a power of its input."""


def user_turn(problem: str, suffix: str) -> Turns:
    """Return the conversation that asks a problem, followed by the instruction on how to answer."""
    separator = " " if suffix and not suffix[0].isspace() else ""
    return [{"role": "user", "content": f"{problem}{separator}{suffix}"}]


def require_template(tokenizer: PreTrainedTokenizerBase, label: str, day: date = TEMPLATE_DATE) -> None:
    """Refuse a tokenizer whose chat template cannot be used, in bounded time: it is tried once, in a process of its own.

    Args:
        tokenizer: The tokenizer.
        label: What it is called in the error, for example `model 'org/name'`.
        day: The day that it is told.

    Raises:
        DataError: There is no template, or it is no text, does not end, raises, writes too much, or leaves out what is asked.
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
        raise _unusable(label, f"it is no text but of type {type(template).__name__}")
    special = {name: value for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    problem = _tried(template, json.dumps(special, sort_keys=True), day)
    if problem is not None:
        raise _unusable(label, problem)


@lru_cache(maxsize=16)
def _tried(template: str, special: str, day: date) -> str | None:
    """Return what is wrong with a template; none if it can be used. `special` are the special tokens as JSON."""
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
            env={"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUTF8": "1"},  # nothing that is worth stealing
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"it does not end within {_WALL_SECONDS:.0f} seconds"
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"it does not end within {CPU_SECONDS} seconds"
    if done.returncode:
        return f"the process that tried it died (exit code {done.returncode})"
    question, whole = json.loads(done.stdout)
    for result in (question, whole):
        if "error" in result:
            return " ".join(str(result["error"]).split())
    if not question["text"].strip():
        return "it writes nothing"
    if _QUESTION not in question["text"]:
        return "it leaves out what is asked"
    return None


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the token that ends an assistant's turn in a tokenizer's chat template, whether or not it is declared to end anything.

    It is the first special or added token after what the assistant says; some templates end a turn by beginning the next one.

    Args:
        tokenizer: Tokenizer with a chat template that can be used.

    Returns:
        None where the template writes no such token.
    """
    asked, said = [{"role": "user", "content": _QUESTION}], [{"role": "assistant", "content": _ANSWER}]
    for turns in (asked + said + asked, asked + said):  # some templates know a single turn only
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
    """Lengths of conversations in tokens, and what a tokenizer must be able to do with them.

    Args:
        tokenizer: Tokenizer with a chat template.
        rows: Rows of the model's embedding matrix; none where they are not known.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rows: int | None = None) -> None:
        self.tokenizer = tokenizer
        self.rows = rows

    def prompts(self, prompts: Sequence[Turns]) -> list[int]:
        """Return the tokens of each prompt, up to where the response starts."""
        return [len(ids) for ids in self._encode(prompts, generation=True)]

    def conversations(self, conversations: Sequence[Turns]) -> list[int]:
        """Return the tokens of each whole conversation."""
        return [len(ids) for ids in self._encode(conversations, generation=False)]

    def require_known(self, label: str, ids: Sequence[str], conversations: Sequence[Turns]) -> None:
        """Refuse texts that the tokenizer cannot spell. They are named by their ids: not every text may stand in a log.

        Raises:
            DataError: A conversation becomes the unknown token somewhere, or a token that the model has no embedding for.
        """
        texts = [self._text(turns, generation=False) for turns in conversations]
        for identifier, text, tokens in zip(ids, texts, self._tokens(texts), strict=True):
            if self._has_unknown(text, tokens):
                raise DataError(
                    f"{label}: the base model's tokenizer cannot spell problem {identifier!r}; choose a model (model.source) and "
                    "problems that go together"
                )
            if self.rows is not None and tokens and max(tokens) >= self.rows:
                raise DataError(
                    f"{label}: problem {identifier!r} has token {max(tokens)} ({self.tokenizer.convert_ids_to_tokens(max(tokens))!r}), but "
                    f"the model's embedding matrix {self.rows} rows; use the tokenizer the model was trained with, or take that text out"
                )

    def _has_unknown(self, text: str, tokens: list[int]) -> bool:
        """Whether there is the unknown token where its own name is not written: GPT-2 and many since end texts with that token too."""
        unknown = self.tokenizer.unk_token_id
        if unknown is None or unknown not in tokens:
            return False
        if not self.tokenizer.is_fast:  # it cannot say where in the text a token is
            return unknown not in {self.tokenizer.eos_token_id, self.tokenizer.bos_token_id}
        places = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return any(
            token == unknown and text[start:end].strip() != self.tokenizer.unk_token
            for token, (start, end) in zip(tokens, places, strict=True)
        )

    def require_prefix(self, examples: Sequence[tuple[Turns, Turns]], begun: str = "") -> None:
        """Refuse a chat template that does not keep prompt and response as they are: training on responses needs that.

        Args:
            examples: Prompts and completions.
            begun: The text that responses begin after (`model.generation_prompt`); it ends the prompt and begins the completion.

        Raises:
            DataError: The prompt is not the beginning of the whole conversation, or the response is changed.
        """
        for prompt, completion in examples:
            start, whole = self._text(prompt, generation=True), self._text(prompt + completion, generation=False)
            if not whole.startswith(f"{start}{completion[-1]['content'].removeprefix(begun)}"):
                raise DataError(
                    "data.warm_start: the chat template of the base model changes prompts or responses, so responses cannot be "
                    "learned with it; set warm_start.steps=0 and data.warm_start=null, or use another model"
                )
            if begun:
                ids, all_ids = self.tokenizer([start, whole], add_special_tokens=False)["input_ids"]
                if all_ids[: len(ids)] != ids:
                    raise DataError(
                        f"model.generation_prompt={begun!r}: its end is part of a token of the solution that follows, so that the two "
                        "cannot be told apart; end it elsewhere, or let the solutions in data.warm_start begin otherwise"
                    )

    def _encode(self, conversations: Sequence[Turns], *, generation: bool) -> list[list[int]]:
        return self._tokens([self._text(turns, generation=generation) for turns in conversations])

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []

    def _text(self, turns: Turns, *, generation: bool) -> str:
        try:
            text: str = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation)
        except (
            TemplateError
        ) as error:  # templates refuse what they do not know: a system message, two turns of one role
            roles = ", ".join(turn["role"] for turn in turns)
            raise DataError(
                f"the chat template of the base model refuses a chat of {roles}: {' '.join(str(error).split())[:200]}; leave "
                "data.system_prompt out, correct the chats, or name another template in model.chat_template"
            ) from error
        left_out = next(
            (turn for turn in turns if turn["role"] != "assistant" and turn["content"].strip() not in text), None
        )
        if left_out is not None:
            raise DataError(
                f"the chat template of the base model leaves out or changes what the {left_out['role']} says; correct it, or name "
                "another in model.chat_template"
            )
        return text
