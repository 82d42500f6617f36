"""Examine a configuration: cheap checks first; slower ones, which take seconds, only if those pass."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from ngrpo.checking.decoding_time import check_decoding_time
from ngrpo.checking.endpoint import check_endpoint
from ngrpo.checking.engine import check_engine
from ngrpo.checking.exploration import check_exploration
from ngrpo.checking.findings import Examination, Finding
from ngrpo.checking.light_imports import import_transformers
from ngrpo.checking.needs import check_needs
from ngrpo.checking.notifications import check_templates
from ngrpo.checking.places import (
    check_data_files,
    check_lengths,
    check_model_files,
    is_training,
    known_positions,
)
from ngrpo.config import RunConfig
from ngrpo.errors import ConfigError

_UNSEEN = "tokenizer, prompts and rewards were not checked: correct this first"


def examine_quickly(config: RunConfig) -> Examination:
    """Run the cheap checks: files, lengths, resources. No slow imports."""
    examination = Examination()
    examination.add(check_model_files(config))
    examination.add(check_data_files(config))
    examination.add(check_decoding_time(config))
    examination.add(check_exploration(config))
    examination.add(check_endpoint(config))
    examination.add(check_engine(config))
    examination.add(check_needs(config))
    examination.add(check_templates(config))
    if not examination.errors:
        examination.add(check_lengths(config, known_positions(config)))
    return examination


def require_possible(config: RunConfig) -> None:
    """Refuse a run that fails the cheap checks.

    Raises:
        ConfigError: A check failed; the message has a line for each error.
    """
    errors = examine_quickly(config).errors
    if errors:
        raise ConfigError("\n".join(finding.line for finding in errors))


def examine(config: RunConfig) -> Examination:
    """Run all checks that are possible before a run starts: the cheap ones, and if they pass, the rest.

    Nothing is trained, no GPU is used, and no weights are loaded.
    """
    examination = examine_quickly(config)
    if examination.errors:
        examination.unseen = _UNSEEN
        return examination
    with TemporaryDirectory() as scratch:
        _look_inside(config, examination, Path(scratch))
    return examination


def _look_inside(config: RunConfig, examination: Examination, scratch: Path) -> None:
    from ngrpo.checking.samples import check_samples, read_samples

    samples = read_samples(config, examination)
    examination.add(check_samples(config, samples))
    # These imports take seconds.
    import_transformers()
    from ngrpo.checking.evaluation import check_evaluation_code
    from ngrpo.checking.rewards import check_rewards
    from ngrpo.checking.tokens import Spelling, check_tokens, prompts_of, rendered
    from ngrpo.data import models
    from ngrpo.data.adapter_targets import require_targets
    from ngrpo.data.vllm_service import services

    examination.add(check_evaluation_code(config, scratch / "code"))
    with examination.catch("model.source"):
        model = config.model
        tokenizer, facts = models.examine(
            model.source, scratch / "model", model.template_date, model, services(config, cluster=False)
        )
        examination.add(Finding("warning", "model.source", note) for note in (*facts.notes, *facts.on_cluster))
        for section, lora in config.adapters.items():
            with examination.catch(f"{section}.lora.targets"):
                require_targets(lora, facts.linear, section)
        spelling = Spelling(config, tokenizer, facts, prompts_of(config, samples))
        examination.prompt = rendered(spelling)
        check_tokens(spelling, examination)
        for prompts in spelling.prompts:
            if is_training(prompts.subject):
                examination.add(check_rewards(config, prompts.problems, prompts.turns, tokenizer, scratch / "code"))
                break
