"""Check cheaply that configured files exist and that lengths fit the model, without importing transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ngrpo.checking.findings import Finding, refused
from ngrpo.config import Copied, CopiedModel, FilesSource, InitializedModel, RunConfig, Source
from ngrpo.config.sources import is_bucket
from ngrpo.data.copies import files_of, is_copy
from ngrpo.data.locations import local_directory
from ngrpo.data.model_files import (
    require_no_adapter,
    require_no_code,
    require_unquantized,
    settings_of,
    tensor_shapes,
)
from ngrpo.data.own_files import own_files
from ngrpo.data.placeholders import placeholder
from ngrpo.data.problems import first_problems
from ngrpo.errors import DataError, NGRPOError, StoreError

_SOON_READ = 16 << 20
"""Size of files, in bytes, that can be read within one or two tenths of a second."""
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


def sources(config: RunConfig) -> dict[str, Source]:
    """Return every source of problems, by setting."""
    found: dict[str, Source] = {f"data.{name}": source for name, source in config.data.training_sets().items()}
    if config.data.warm_start is not None:
        found["data.warm_start"] = config.data.warm_start
    return found | {f"data.benchmarks.{name}": source for name, source in config.data.benchmarks.items()}


def is_training(subject: str) -> bool:
    """Return whether a setting is a training set: `data.train`, or `data.train.NAME` if there are several."""
    return f"{subject}.".startswith("data.train.")


def model_directory(config: RunConfig) -> Path | None:
    """Return the local directory of the base model, or None if the model is elsewhere."""
    source = config.model.source
    if isinstance(source, CopiedModel) and _is_here(source):
        return Path(source.location).expanduser()
    return None


def check_model_files(config: RunConfig) -> Iterator[Finding]:
    """Check that a local base model has configuration, tokenizer and weights."""
    subject, place, source = "model.source", model_directory(config), config.model.source
    if place is None or not isinstance(source, CopiedModel):
        return
    try:
        local_directory(source.location, source.named)
    except DataError as error:
        yield _not_here(subject, source, error)
        return
    names = sorted(path.name for path in place.iterdir())
    missing = [
        what
        for what, there in (
            ("config.json", "config.json" in names),
            (f"tokenizer ({' or '.join(_TOKENIZERS)})", any(name in names for name in _TOKENIZERS)),
            ("weights (*.safetensors)", any(name.endswith(".safetensors") for name in names)),
        )
        if not there
    ]
    if missing:
        yield Finding("error", subject, f"{place} has no {', no '.join(missing)}", cure_of_no_model(place))
        return
    for name in names:
        if not name.endswith((".json", ".safetensors", ".model")) or not (place / name).is_file():
            continue
        instead = placeholder(place / name)
        if instead is not None:
            found, _, cure = instead.partition("; ")
            yield Finding("error", subject, f"{place / name} is {found}", cure)
            return
    if _settings(place) is None:
        yield Finding("error", subject, f"{place}/config.json is not a JSON object", "copy it again")
        return
    try:
        _require_sound(place, f"model {source.location!r}")
    except DataError as error:
        yield refused(subject, error)
        return
    yield Finding("ok", subject, f"{place}: config.json, tokenizer, weights")


def _require_sound(place: Path, label: str) -> None:
    """Refuse what can be refused without loading the model: the first stage would refuse it too, but seconds later."""
    require_no_code(place, label)
    require_no_adapter(place, label)
    require_unquantized(place, label)
    if (place / "tokenizer.json").is_file():
        settings_of(place / "tokenizer.json", label)
    tensor_shapes(place, label)


def cure_of_no_model(place: Path) -> str:
    """Return the cure for a directory without a model, judging by its contents."""
    names = {path.name for path in place.iterdir()}
    inside = sorted(path.parent.name for path in place.glob("*/config.json"))
    if "adapter_config.json" in names:
        return "it is an adapter without its model: merge the two (peft's merge_and_unload, then save_pretrained)"
    if "config.json" not in names and inside:
        return f"it contains models: name one, {', '.join(str(place / name) for name in inside[:4])}"
    if any(name.endswith((".bin", ".pt", ".pth")) for name in names):
        return "its weights are pickles, which are not read: save the model with save_pretrained (safetensors)"
    return "save model and tokenizer there with save_pretrained"


def check_data_files(config: RunConfig) -> Iterator[Finding]:
    """Check that every local data set exists, and that the user's files, if they are small, have the configured columns."""
    for subject, source in sources(config).items():
        if not isinstance(source, Copied) or not _is_here(source):
            continue
        try:
            # Contents are not hashed here; planning does that.
            files = own_files(source, _unread) if isinstance(source, FilesSource) else files_of(source, _unread)
        except (DataError, StoreError) as error:
            yield _not_here(subject, source, error)
            continue
        if isinstance(source, FilesSource) and sum(file.size for file in files.values()) <= _SOON_READ:
            try:
                first_problems(source, 1)
            except DataError as error:
                yield refused(subject, error)
                continue
        yield Finding("ok", subject, f"{source.location}: {len(files)} file{'s' * (len(files) > 1)}")


def check_lengths(config: RunConfig, positions: int | None) -> Iterator[Finding]:
    """Check that responses fit into the model's context; the length of prompts is not known yet.

    Args:
        config: Configuration of the run.
        positions: Context length of the model in tokens; None if unknown.
    """
    if positions is None:
        return
    wrong = False
    for setting, tokens in (
        ("rollout.max_tokens", config.rollout.max_tokens),
        ("evaluation.max_tokens", config.evaluation.max_tokens),
    ):
        if tokens >= positions:
            wrong = True
            yield Finding(
                "error",
                setting,
                f"{setting}={tokens} and a prompt: more than the model's {positions} positions",
                f"lower it to {positions} less the length of the longest prompt",
            )
    if not wrong:
        yield Finding("ok", "rollout.max_tokens", f"responses fit into the model's {positions} positions")


def known_positions(config: RunConfig) -> int | None:
    """Return the context length of the base model in tokens, or None if `config.json` is not at hand or does not give it."""
    if isinstance(config.model.source, InitializedModel):
        return config.model.source.positions
    place = model_directory(config)
    return None if place is None else positions_of(place)


def positions_of(place: Path) -> int | None:
    """Return the context length in a model directory's `config.json`, in tokens; None if it is missing or scaled."""
    settings = _settings(place) or {}
    inner = settings.get("text_config")
    trees = (inner if isinstance(inner, dict) else {}, settings)
    if any(tree.get("rope_scaling") or "factor" in str(tree.get("rope_parameters")) for tree in trees):
        return None  # `ngrpo.data.model_check` knows each rope type
    for tree in trees:
        for name in ("max_position_embeddings", "n_positions"):
            if type(tree.get(name)) is int and tree[name] > 0:
                return int(tree[name])
    return None


def _unread(path: Path) -> str:
    """Replace the hash of a file, which is not needed here."""
    return ""


def _is_here(source: Copied) -> bool:
    """Return whether a source must exist on this machine. If its digest is configured, it may be visible only to stages."""
    return is_copy(source) and source.digest is None and not is_bucket(source.location)


def _not_here(subject: str, source: Copied, error: NGRPOError) -> Finding:
    if Path(source.location).expanduser().exists():
        return refused(subject, error)
    return refused(subject, error, f"if only the stages can read this place, set {subject}.digest")


def _settings(place: Path) -> dict[str, Any] | None:
    try:
        tree = json.loads((place / "config.json").read_bytes())
    except (OSError, ValueError):
        return None
    return tree if isinstance(tree, dict) else None
