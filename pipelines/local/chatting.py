"""`ngrpo chat`: a conversation with a model in the terminal, or over the standard input."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ngrpo.config import RunConfig
from ngrpo.errors import ConfigError
from ngrpo.report.phases import phase, standard_error
from ngrpo_kfp.pipelines.local.interrupted import Interrupted
from ngrpo_kfp.pipelines.local.named_model import (
    NamedModel,
    named_model,
    require_name,
    settings_of,
)
from ngrpo_kfp.pipelines.local.runs import latest_settings
from ngrpo_kfp.pipelines.local.services import services
from ngrpo_kfp.pipelines.local.workspace import Workspace

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ngrpo.data.chat import Turns

_MAX_TOKENS = 1024
_MOST_TOKENS = 1_000_000


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn; none to use the evaluation settings of the model's run."""

    max_tokens: int | None = None
    temperature: float | None = None


def chat(what: str, model_name: str | None, prompt: str | None, sampling: Sampling, workspace: Workspace) -> None:
    """Talk with a model until the input ends, or answer one prompt. Text is written as it is generated.

    Args:
        what: See `named_model`.
        model_name: The registered model; see `named_model`.
        prompt: The only prompt; none to read prompts one after the other.
        sampling: How responses are drawn.
        workspace: Where runs and services are.

    Raises:
        ConfigError: The prompt is empty, or a number is invalid; or see `named_model`.
        DataError: The model cannot be loaded, or the conversation exceeds its positions.
        NGRPOError: See `named_model`.
    """
    if prompt is not None and not prompt.strip():
        raise ConfigError("--prompt: empty; write what to ask")
    if sampling.max_tokens is not None and not 1 <= sampling.max_tokens <= _MOST_TOKENS:
        raise ConfigError(f"--max-tokens {sampling.max_tokens}: a response has 1 to {_MOST_TOKENS:,} tokens")
    if sampling.temperature is not None and not 0 <= sampling.temperature <= 10:
        raise ConfigError(
            f"--temperature {sampling.temperature:g}: name a number from 0 (the most likely tokens) to 10"
        )
    require_name(what, model_name, workspace)
    said = standard_error()  # the standard output has the answers alone
    with phase(said, "fetching the model"), services(workspace) as around:
        found = named_model(what, model_name, around, workspace)
    config = _configuration(found, workspace)
    try:
        with phase(said, "loading the model"):
            conversation = _Conversation(found.directory, config, sampling)
        if prompt is not None:
            conversation.ask(prompt)
            return
        if sys.stdin.isatty():
            version = "" if found.version is None else f", version {found.version.version} of {found.model_name}"
            print(f"{what}{version}; Ctrl-D ends", flush=True)
        for text in _typed() if sys.stdin.isatty() else _piped():
            if text.strip():
                conversation.ask(text)
    except Interrupted:
        raise
    except KeyboardInterrupt:
        print()


def _configuration(found: NamedModel, workspace: Workspace) -> RunConfig | None:
    """Return the configuration of the run that trained the model, otherwise that of the latest run of the same registered model.

    If it is not that of the model's own run, print which settings are used.
    """
    own = settings_of(found, workspace)
    if own is not None:
        return own.config
    latest = latest_settings(workspace)
    known = latest is not None and latest.config.promotion.model_name == found.model_name
    whose = (
        f"settings of the latest run, {latest.name}"
        if known and latest is not None
        else "no system prompt, temperature 1"
    )
    print(f"{found.name}: {whose}, for no run here made it", file=sys.stderr, flush=True)
    return latest.config if known and latest is not None else None


def _typed() -> Iterator[str]:
    """Yield typed lines, with line editing."""
    import readline  # noqa: F401  (it changes `input`)

    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return


def _piped() -> Iterator[str]:
    """Yield the lines of the standard input."""
    for line in sys.stdin.buffer:
        yield line.decode("utf-8", errors="replace").rstrip("\r\n")


class _Conversation:
    """A conversation: the turns so far, and the model."""

    def __init__(self, directory: Path, config: RunConfig | None, sampling: Sampling):
        from ngrpo.config.sections import TEMPLATE_DATE
        from ngrpo.data.model_check import positions_of
        from ngrpo.data.model_directory import read_bare_tokenizer, read_config
        from ngrpo.rollout.loading import end_of_sequence_ids, load_model, load_tokenizer

        label = f"model directory {directory}"
        settings = read_config(directory, label)
        self._positions = positions_of(settings)
        self._tokenizer: PreTrainedTokenizerBase = read_bare_tokenizer(directory, label)
        self._has_template = self._tokenizer.chat_template is not None
        if self._has_template:
            day = TEMPLATE_DATE if config is None else config.model.template_date
            self._tokenizer = load_tokenizer(directory, settings.get_text_config().vocab_size, day)
        self._model: PreTrainedModel = load_model(directory, str(settings.dtype or "float32").removeprefix("torch."))
        ends = end_of_sequence_ids(self._model, self._tokenizer) if self._has_template else []
        self._ends = ends or [token for token in [self._tokenizer.eos_token_id] if token is not None]
        evaluation = None if config is None else config.evaluation
        self._max_tokens = sampling.max_tokens or (_MAX_TOKENS if evaluation is None else evaluation.max_tokens)
        self._top_p = 1.0 if evaluation is None else evaluation.top_p
        self._temperature = 1.0 if evaluation is None else evaluation.temperature
        if sampling.temperature is not None:
            self._temperature = sampling.temperature
        self._turns: Turns = []
        if config is not None and config.data.system_prompt:
            self._turns = [{"role": "system", "content": config.data.system_prompt}]

    def ask(self, text: str) -> None:
        """Answer a prompt, and write the answer while it is generated."""
        import torch
        from transformers import GenerationConfig

        from ngrpo.errors import DataError

        if self._has_template:
            self._turns.append({"role": "user", "content": text})
            ids = self._tokenizer.apply_chat_template(
                self._turns, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        else:
            ids = self._tokenizer(text)["input_ids"]
        room = self._max_tokens if self._positions is None else min(self._max_tokens, self._positions - len(ids))
        if room < 1:
            raise DataError(
                f"the conversation has {len(ids)} tokens, and the model {self._positions} positions: begin a new one"
            )
        prompt = torch.tensor([ids], device=self._model.device)
        # Sample as the evaluation does, which ignores all other generation settings of the model.
        self._model.generation_config = GenerationConfig(
            max_new_tokens=room,
            eos_token_id=self._ends,
            pad_token_id=self._tokenizer.pad_token_id if self._tokenizer.pad_token_id is not None else self._ends[0],
            use_cache=True,
            **self._drawn(),
        )
        written = self._model.generate(
            prompt, attention_mask=torch.ones_like(prompt), streamer=_streamer(self._tokenizer)
        )
        answer = self._tokenizer.decode(written[0, len(ids) :], skip_special_tokens=True)
        self._turns.append({"role": "assistant", "content": answer})

    def _drawn(self) -> dict[str, float | bool]:
        if self._temperature == 0:
            return {"do_sample": False}
        return {"do_sample": True, "temperature": self._temperature, "top_p": self._top_p, "top_k": 0}


def _streamer(tokenizer: PreTrainedTokenizerBase) -> object:
    """Return a streamer that writes a response to the standard output, with control characters replaced."""
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            harmless = "".join(
                letter if letter.isprintable() or letter in "\n\t" else "\N{REPLACEMENT CHARACTER}" for letter in text
            )
            super().on_finalized_text(harmless, stream_end)

    return Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
