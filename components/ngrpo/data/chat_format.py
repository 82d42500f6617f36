"""What a run sets for a model's chats: another template, a text that responses begin after, further tokens that end them.

It is written into the files of the base model once, where they are provided. From there every stage has it, both engines and TRL among
them, and the trained model carries it: it is served as it was trained.
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
"""What `with_generation_prompt` puts at the end of a template."""
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def with_generation_prompt(template: str, text: str) -> str:
    """Return a chat template that writes a text where the response follows, after what it writes there by itself.

    What an earlier call has put there is replaced: the base model may be one that was trained with it.
    """
    # Jinja leaves out the line break at the end of a template.
    before = _PROMPT.sub("", re.sub(r"(\r\n|\r|\n)\Z", "", template))
    # A text of JSON is one of Jinja too, where characters beyond ASCII stay as they are.
    return f'{before}{{{{ {json.dumps(text, ensure_ascii=False)} if add_generation_prompt else "" }}}}'


def write_chat_format(chat: ChatFormat, place: Path, directory: Path, label: str) -> Path:
    """Return a directory with the files of a model, and with what a run sets for its chats.

    Args:
        chat: What is set.
        place: The model's files; they stay as they are.
        directory: Where to write; what is there is replaced.
        label: What the model is called in errors.

    Returns:
        `place` where nothing is set, else `directory`.

    Raises:
        DataError: Tokenizer or a file is missing or damaged, there is no template to add the text to, or a token is not the model's.
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
            f"model.end_of_turn: {token!r} is no token of {label}; its special and added tokens are {special or 'none'}"
        )
    return int(ids[0])


def _write_ends(directory: Path, ends: list[int], tokenizer: PreTrainedTokenizerBase, label: str) -> None:
    """Declare tokens as ends of a response, besides those that are declared."""
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
