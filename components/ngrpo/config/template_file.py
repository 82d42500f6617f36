"""Templates that a preset names by a file. The text is what counts, and becomes the setting."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from ngrpo.config.located import absolute, relative_to
from ngrpo.section import LongText

_LONGEST = 100_000
"""Characters; the longest templates of published models have about ten thousand."""
PLAIN = (
    "{% if bos_token and bos_token != eos_token %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}{{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '\\n\\n' }}{% endfor %}"
)
"""The template called `plain`: what is said, and nothing else, for base models that have none.

A text begins with the tokenizer's beginning token, unless that is its end token too: models whose token for both is one (GPT-2,
SmolLM2) were trained without it in front. A response ends with the end token.
"""


def text_of_template(value: Any, what: str, cure: str = "name a Jinja file") -> Any:
    """Return the text of the template that a value names; a value that is a template already, as in settings that are read again, stays.

    Args:
        value: The value of the setting.
        what: What is expected, for messages: `chat template`.
        cure: What may be written.

    Raises:
        ValueError: It names no file of that kind.
    """
    if not isinstance(value, str) or "{{" in value or "{%" in value:
        return value
    if not 0 < len(value) <= 1000 or not value.isprintable():
        raise ValueError(cure)
    path = Path(absolute(value))
    try:
        if not path.is_file():
            raise ValueError(f"no such file: {path}; {relative_to(value)}")
        text = path.read_bytes()[: 4 * _LONGEST + 1].decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason} at byte {error.start}); save the file as UTF-8") from error
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror}); name a Jinja file") from error
    if len(text) > _LONGEST:
        raise ValueError(f"a template of more than {_LONGEST} characters; name a Jinja file")
    if "{{" not in text and "{%" not in text:
        raise ValueError(f"no {what}: it has neither {{{{ }}}} nor {{% %}}; name a Jinja file")
    return text.replace("\r\n", "\n")


def _chat_template(value: Any) -> Any:
    """Return the chat template that a value names: ours for base models, or a file's."""
    return PLAIN if value == "plain" else text_of_template(value, "chat template", "name a Jinja file, or 'plain'")


TemplateFromFile = Annotated[LongText, BeforeValidator(_chat_template)]
"""`plain`, or a Jinja file, relative to the file that it stands in; read once, when the settings are."""
