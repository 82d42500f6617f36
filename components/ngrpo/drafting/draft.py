"""From the files that a user names to a preset."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ngrpo.config import RunConfig, validate
from ngrpo.config.rewards import RewardConfig
from ngrpo.drafting.own_data import OwnData, held_out, look_at_data
from ngrpo.drafting.own_model import look_at_model
from ngrpo.drafting.preset import Draft, preset_text
from ngrpo.errors import ConfigError
from ngrpo.section import check_name, slug

_REWARD = re.compile(r"(?P<file>.+\.py):(?P<function>[^\W\d]\w*)")


@dataclass(frozen=True)
class Named:
    """What the user named."""

    model: Path
    data: Path
    rewards: Sequence[str] = ()
    """`FILE:NAME` each."""
    benchmark: Path | None = None
    chat_template: Path | None = None
    problem_column: str | None = None
    answer_column: str | None = None
    extends: RunConfig | None = None
    """The preset that is extended."""


def write_preset(named: Named, file: Path, *, force: bool = False) -> list[str]:
    """Write a preset, and a benchmark beside it where none is named.

    Args:
        named: What the user named.
        file: Where to write.
        force: Whether to replace what is there.

    Returns:
        What was guessed and written, a line each.

    Raises:
        ConfigError: Something that is named is not there or cannot be used, or a file would be overwritten.
        DataError: A file of the model or of the data is damaged.
    """
    _require_writable(file, force)
    model = look_at_model(named.model)
    if named.chat_template is not None and not named.chat_template.is_file():
        raise ConfigError(
            f"--chat-template {str(named.chat_template)!r}: no such file (seen from {Path.cwd()}); name a Jinja file"
        )
    rewards = [_reward(text) for text in named.rewards]
    twice = next(
        (name for name in (each[0] for each in rewards) if [each[0] for each in rewards].count(name) > 1), None
    )
    if twice is not None:
        raise ConfigError(f"--reward: {twice!r} is named twice; leave one out")
    data = look_at_data("--data", named.data, named.problem_column, named.answer_column)
    said = [_guess("data", data)]
    if named.chat_template is None and not model.has_template:
        said.append(
            "model: its tokenizer has no chat template, so it gets problems as they are: chat_template = 'plain'"
        )
    beside: dict[Path, str] = {}
    if named.benchmark is not None:
        benchmark = look_at_data("--benchmark", named.benchmark)
        said.append(_guess("benchmark", benchmark))
    else:
        path = file.with_name(f"{file.stem}-held-out.jsonl")
        _require_writable(path, force)
        lines = held_out(data)
        beside[path] = "".join(f"{line}\n" for line in lines)
        benchmark = OwnData(path, [], data.columns, data.form)
        said.append(f"benchmark: none is named, so {len(lines)} of {len(data.rows)} problems are held out in {path}")
    draft = Draft(
        file=file,
        model=model,
        data=data,
        benchmark=benchmark,
        benchmark_name="held-out" if named.benchmark is None else slug(named.benchmark.stem) or "own",
        rewards=rewards,
        chat_template=named.chat_template,
        inherited=named.extends,
    )
    # Write nothing before everything is known: files left by a failed try would block the next one.
    for path, text in {**beside, file: preset_text(draft)}.items():
        path.write_text(text, encoding="utf-8")
    return said


def _require_writable(file: Path, force: bool) -> None:
    if file.suffix != ".toml" and file.suffix != ".jsonl":
        raise ConfigError(f"-o {str(file)!r}: a preset is a .toml file; name one")
    try:
        check_name(file.stem)
    except ValueError as error:
        raise ConfigError(f"-o {str(file)!r}: {error}") from error
    if file.is_dir() or not file.parent.is_dir():
        raise ConfigError(
            f"-o {str(file)!r}: its directory does not exist, or it is not a file; name a file in an existing directory"
        )
    if file.exists() and not force:
        raise ConfigError(f"{str(file)!r} is there already: name another by -o, or replace it with --force")


def _reward(text: str) -> tuple[str, Path, str]:
    """Return name, file and function of a reward.

    Raises:
        ConfigError: There is no such file or function.
    """
    match = _REWARD.fullmatch(text)
    if match is None:
        raise ConfigError(f"--reward {text!r}: write FILE.py:NAME, a function in a Python file")
    try:
        validate(RewardConfig, {"function": text})
    except ConfigError as error:
        raise ConfigError(f"--reward {text!r}: {str(error).partition(': ')[2]}") from error
    return match["function"], Path(match["file"]), match["function"]


def _guess(what: str, data: OwnData) -> str:
    columns, form = data.columns, {"hashes": "#### 5", "boxed": r"\boxed{5}", "plain": "the answer alone"}[data.form]
    others = f"; further columns: {', '.join(columns.others)}" if columns.others else ""
    return (
        f"{what}: {len(data.rows)} rows, problems in {columns.problem!r}, answers in {columns.answer!r} (guessed {columns.why}), in the "
        f"form {form}{others}"
    )
