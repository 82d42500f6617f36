"""Apply a run's chat settings to a model: another template, a generation prompt, additional end-of-turn tokens.

The settings are written once, into the files of the base model. Every stage, both engines and TRL read them from there, and the trained
model inherits them, so it is served as it was trained.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ngrpo.config.sections import ChatFormat
from ngrpo.data.locations import explained
from ngrpo.data.model_directory import read_bare_tokenizer
from ngrpo.errors import DataError

_TEMPLATE, _GENERATION, _CONFIG = "chat_template.jinja", "generation_config.json", "config.json"
_PROMPT = re.compile(r'\{\{ "(?:[^"\\]|\\.)*" if add_generation_prompt else "" \}\}\Z')
"""Matches what `with_generation_prompt` appends to a template."""
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def with_generation_prompt(template: str, text: str) -> str:
    """Return a chat template that appends a text to its own generation prompt.

    The text of an earlier call is replaced: the base model may itself be the result of a run with a generation prompt.
    """
    # Jinja drops a line break at the end of a template.
    before = _PROMPT.sub("", re.sub(r"(\r\n|\r|\n)\Z", "", template))
    # A JSON string is a valid Jinja string if non-ASCII characters are not escaped.
    return f'{before}{{{{ {json.dumps(text, ensure_ascii=False)} if add_generation_prompt else "" }}}}'


def write_chat_format(chat: ChatFormat, place: Path, directory: Path, label: str) -> Path:
    """Return a directory with the files of a model and the chat settings of a run.

    Args:
        chat: The chat settings.
        place: Directory with the model's files; it is not changed.
        directory: Directory to write links and changed files to; existing contents are deleted.
        label: Name of the model in errors.

    Returns:
        `place` if nothing is set, otherwise `directory`.

    Raises:
        DataError: The tokenizer or another file is missing or damaged, there is no template to add the generation prompt to, or an
            end-of-turn token is not in the vocabulary.
    """
    if chat == ChatFormat():
        return place
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    for path in sorted(place.iterdir()):
        if path.is_file():
            (directory / path.name).symlink_to(path.absolute())
    tokenizer = read_bare_tokenizer(directory, label)
    template = chat.chat_template or _own_template(tokenizer, label)
    if chat.generation_prompt:
        template = with_generation_prompt(template, chat.generation_prompt)
    if chat.chat_template or chat.generation_prompt:
        _write(directory / _TEMPLATE, template)
    ends = [_token_id(tokenizer, token, label) for token in chat.end_of_turn]
    if ends and (directory / _CONFIG).is_file():
        _write_ends(directory, ends, tokenizer, label)
    return directory


def _own_template(tokenizer: PreTrainedTokenizerBase, label: str) -> str:
    if tokenizer.chat_template is None:
        raise DataError(
            f"{label}: its tokenizer has no chat template; for a base model set model.chat_template='plain', or name a Jinja file there"
        )
    with explained(f"{label}: its chat template cannot be used", "name one in model.chat_template"):
        template: str = tokenizer.get_chat_template()
    return template


def _token_id(tokenizer: PreTrainedTokenizerBase, token: str, label: str) -> int:
    known = tokenizer.get_vocab().get(token)
    ids = [known] if known is not None else tokenizer(token, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or (ids[0] == tokenizer.unk_token_id and token != tokenizer.unk_token):
        special = ", ".join(sorted({*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens})[:20])
        raise DataError(
            f"model.end_of_turn: {token!r} is not a token of {label}; its special and added tokens are {special or 'none'}"
        )
    return int(ids[0])


def _write_ends(directory: Path, ends: list[int], tokenizer: PreTrainedTokenizerBase, label: str) -> None:
    """Add tokens to `eos_token_id` in `generation_config.json`."""
    path = directory / _GENERATION
    with explained(f"{label}: {path.name} cannot be used", "copy it again", directory):
        if path.is_file():
            settings: dict[str, Any] = json.loads(path.read_bytes())
        else:
            config = json.loads((directory / _CONFIG).read_bytes())
            settings = {name: config[name] for name in _TOKENS if config.get(name) is not None}
        declared = settings.get("eos_token_id")
        before = declared if isinstance(declared, list) else [declared, tokenizer.eos_token_id]
        settings["eos_token_id"] = [*dict.fromkeys(token for token in [*before, *ends] if token is not None)]
    _write(path, json.dumps(settings, indent=2, sort_keys=True) + "\n")


def _write(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)  # a link to the model's own file
    path.write_text(text, encoding="utf-8")
