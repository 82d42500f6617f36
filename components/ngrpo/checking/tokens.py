"""Check tokenizer and chat template of the base model on the first problems."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from ngrpo.checking.findings import Examination, Finding, refused
from ngrpo.checking.places import is_training, sources
from ngrpo.checking.samples import HEAD
from ngrpo.config import Columns, EvaluationConfig, RolloutConfig, RunConfig
from ngrpo.data.chat import ChatLengths, Turns
from ngrpo.data.model_check import ModelFacts, require_positions
from ngrpo.data.problem import Problem
from ngrpo.data.prompts import prompt_of
from ngrpo.errors import ConfigError, DataError, NGRPOError
from ngrpo.rollout.configured_mixer import configured_end_marker
from ngrpo.rollout.configured_strategy import load_strategy, strategy_source


@dataclass(frozen=True)
class Prompts:
    """The first problems of a source with their prompts."""

    subject: str
    """The setting of the source."""
    problems: Sequence[Problem]
    turns: Sequence[Turns]


@dataclass(frozen=True)
class Spelling:
    """A tokenizer and the prompts to check it on."""

    config: RunConfig
    tokenizer: PreTrainedTokenizerBase
    model: ModelFacts
    """Facts about the model that do not need its weights."""
    prompts: Sequence[Prompts]

    @cached_property
    def lengths(self) -> ChatLengths:
        """The token counts and checks of the stage `prepare_data`."""
        return ChatLengths(self.tokenizer, self.model.rows)


def prompts_of(config: RunConfig, samples: Mapping[str, Sequence[Problem]]) -> list[Prompts]:
    """Return the prompts of every source that could be read."""
    found = []
    for subject, source in sources(config).items():
        problems = [problem for problem in samples.get(subject, ())[:HEAD] if problem.problem]
        if problems:
            suffix = source.prompt_suffix if isinstance(source, Columns) else None
            found.append(Prompts(subject, problems, [prompt_of(each, config.data, suffix) for each in problems]))
    return found


def rendered(spelling: Spelling) -> str | None:
    """Return the first training prompt, rendered with the chat template, or None if there is none."""
    for prompts in spelling.prompts:
        if is_training(prompts.subject):
            text: str = spelling.tokenizer.apply_chat_template(
                prompts.turns[0], tokenize=False, add_generation_prompt=True
            )
            return text
    return None


def check_tokens(spelling: Spelling, examination: Examination) -> None:
    """Run all checks that depend on the tokenizer."""
    spelled = list(check_known_tokens(spelling))
    examination.add(spelled)
    if not any(finding.level == "error" for finding in spelled):
        examination.add(check_prompt_lengths(spelling))
        examination.add(check_room(spelling))
        examination.add(check_examples(spelling))
    examination.add(check_mixing(spelling))


def check_known_tokens(spelling: Spelling) -> Iterator[Finding]:
    """Check that the tokenizer can encode the prompts without unknown tokens."""
    wrong = 0
    for prompts in spelling.prompts:
        try:
            spelling.lengths.require_known(prompts.subject, [p.id for p in prompts.problems], prompts.turns)
        except DataError as error:
            wrong += 1
            yield refused(prompts.subject, error)
    if spelling.prompts and not wrong:
        tokens = sum(spelling.lengths.prompts([turns for prompts in spelling.prompts for turns in prompts.turns]))
        count = sum(len(prompts.turns) for prompts in spelling.prompts)
        yield Finding("ok", "model.source", f"the tokenizer encodes the prompts, with {tokens / count:.0f} tokens each")


def check_prompt_lengths(spelling: Spelling) -> Iterator[Finding]:
    """Report training prompts that are too long."""
    limit = spelling.config.data.max_prompt_tokens
    for prompts in spelling.prompts:
        if not is_training(prompts.subject):
            continue
        yield from _too_long("prompts", spelling.lengths.prompts(prompts.turns), "data.max_prompt_tokens", limit)


def check_room(spelling: Spelling) -> Iterator[Finding]:
    """Check that the first prompts and their responses fit into the context length."""
    config = spelling.config
    for prompts in spelling.prompts:
        lengths = spelling.lengths.prompts(prompts.turns)
        if is_training(prompts.subject):
            lengths = [length for length in lengths if length <= config.data.max_prompt_tokens]
        longest = max(lengths, default=0)
        for section in _generating(prompts.subject, config.serving.selection):
            generation: RolloutConfig | EvaluationConfig = getattr(config, section)
            setting = f"{section}.max_tokens"
            try:
                require_positions(
                    spelling.model, prompts.subject, longest, setting, generation.max_tokens, generation.engine
                )
            except DataError as error:
                yield refused(setting, error)


def _generating(subject: str, selection: str | None) -> tuple[str, ...]:
    """Return the sections whose `max_tokens` limits responses to a source's problems."""
    if is_training(subject):
        return ("rollout",)
    if not subject.startswith("data.benchmarks."):
        return ()
    return ("evaluation", "rollout") if subject == f"data.benchmarks.{selection}" else ("evaluation",)


def check_examples(spelling: Spelling) -> Iterator[Finding]:
    """Check that the warm start can be trained on its first solutions."""
    for prompts in spelling.prompts:
        if prompts.subject != "data.warm_start":
            continue
        examples = [
            (turns, [{"role": "assistant", "content": problem.solution}])
            for problem, turns in zip(prompts.problems, prompts.turns, strict=True)
            if problem.solution is not None
        ]
        whole = [prompt + completion for prompt, completion in examples]
        try:
            spelling.lengths.require_known(prompts.subject, [p.id for p in prompts.problems if p.solution], whole)
            spelling.lengths.require_prefix(examples, spelling.config.model.generation_prompt)
        except DataError as error:
            yield refused(prompts.subject, error)
            continue
        limit = spelling.config.warm_start.max_tokens
        yield from _too_long("examples", spelling.lengths.conversations(whole), "warm_start.max_tokens", limit)


def _too_long(what: str, lengths: Sequence[int], setting: str, limit: int) -> Iterator[Finding]:
    long = [length for length in lengths if length > limit]
    if long:
        yield Finding(
            "error" if len(long) == len(lengths) else "warning",
            setting,
            f"{len(long)} of {len(lengths)} {what} are longer than {limit} tokens, up to {max(long)}, and will be dropped",
            "raise it",
        )


def check_mixing(spelling: Spelling) -> Iterator[Finding]:
    """Check that the strategy can be loaded, and that its end marker can be detected in responses."""
    mixing = spelling.config.mixing
    try:
        load_strategy(strategy_source(mixing))
    except NGRPOError as error:
        yield refused("mixing.strategy", error)
    if mixing.end_marker is None or mixing.strategy == "token":
        return
    rows = spelling.model.rows or len(spelling.tokenizer)
    try:
        if not _writes(spelling.tokenizer, mixing.end_marker, rows):
            configured_end_marker(mixing, spelling.tokenizer, rows)
    except ConfigError as error:
        yield refused("mixing.end_marker", error)
    else:
        yield Finding(
            "ok",
            "mixing.end_marker",
            f"{mixing.end_marker!r} is found in responses, however it is tokenized",
        )


def _writes(tokenizer: PreTrainedTokenizerBase, text: str, rows: int) -> bool:
    """Return whether a text survives encoding and decoding, so that responses can contain it; if not, other tokens may produce it."""
    ids = tokenizer(f"a{text}", add_special_tokens=False)["input_ids"]
    return max(ids, default=0) < rows and text in tokenizer.decode(ids)
