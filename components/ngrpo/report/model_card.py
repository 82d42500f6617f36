"""The card of a promoted or challenging model: what it is, how it was measured, why it was decided so, where it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from huggingface_hub import EvalResult, ModelCardData

from ngrpo.config import HubModel, HubSource, ModelPromotionConfig, Source
from ngrpo.contracts.evaluation import Evaluation, Result
from ngrpo.contracts.promotion import Promotion
from ngrpo.data.copies import is_copy
from ngrpo.report.promotion import signature_sentence
from ngrpo.report.wording import describe, method_name


def model_card(
    config: ModelPromotionConfig,
    *,
    version: int,
    evaluation: Evaluation,
    decision: Promotion,
    lineage: Mapping[str, str],
    spent: Sequence[str] = (),
) -> str:
    r"""Return the card in the form of the Hugging Face hub: metadata in YAML, then Markdown.

    It holds numbers, settings and keys, and no text of any data set.

    Args:
        config: Settings of the promotion and of what led to it.
        version: Version of the model in the registry.
        evaluation: `evaluation.json`.
        decision: `promotion.json`.
        lineage: Keys and digests that lead back to the data, by name.
        spent: What the model took, in lines (`ngrpo.report.costs`); none where that is not known.
    """
    method = method_name(config.mixing, config.training)
    trained = evaluation["models"]["trained"]
    rows = [
        f"| {name} | {model.replace('_', ' ')} | {_percent(result['mean'], result['mean_ci'])} | {_pass_at(result)} "
        f"| {result['n_problems']} × {result['n_samples']} |"
        for name in trained
        for model, result in ((model, results[name]) for model, results in evaluation["models"].items())
    ]
    settings = {
        "base model": describe(config.model.source.model_dump(mode="json")),
        "training data": describe(config.data.model_dump(mode="json")["train"]),
        "mixing": f"rate {config.mixing.rate:g}, k {config.mixing.k}",
        "rollouts": f"group size {config.rollout.group_size}, temperature {config.rollout.temperature:g}",
        "training": f"{config.training.steps} steps, learning rate {config.training.learning_rate:g}",
    }
    return "\n".join(
        [
            "---",
            _metadata(config, trained),
            "---",
            f"# {config.promotion.model_name}, version {version}",
            f"\nPost-trained with {method} (seed {config.seed}).\n",
            *_items(settings),
            "\n## Evaluation\n",
            "Percent, with the interval of the mean over problems; the warm start is the model that training started from.\n",
            "| benchmark | model | mean@n | pass@k, unbiased | problems × samples |",
            "|---|---|---|---|---|",
            *rows,
            "\n## Decision\n",
            f"**{decision['decision']}**: {decision['reason']}.",
            *(["\n## Cost\n", *spent] if spent else []),
            "\n## Lineage\n",
            *_items(lineage),
            *(["\n## Signature\n", signature] if (signature := signature_sentence(decision)) else []),
            "\n## Limits\n",
            "The figures hold for these benchmarks, prompts and sampling settings. The model was trained to give answers that a grader "
            "accepts; nothing was done for safety, and other uses were not measured.\n",
        ]
    )


def _metadata(config: ModelPromotionConfig, trained: Mapping[str, Result]) -> str:
    source, sets = config.model.source, config.data.training_sets().values()
    on_hub = isinstance(source, HubModel) and not is_copy(source)
    on_hub_too = [train.id for train in sets if isinstance(train, HubSource) and not is_copy(train)]
    return ModelCardData(
        base_model=source.id if on_hub and isinstance(source, HubModel) else None,
        datasets=on_hub_too or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        model_name=config.promotion.model_name,
        eval_results=[
            EvalResult(
                task_type="text-generation",
                dataset_type=name,
                dataset_name=name,
                dataset_revision=_revision(config.data.benchmarks.get(name)),
                metric_type="accuracy",
                metric_name=f"mean@{result['n_samples']}",
                metric_value=round(100 * result["mean"], 2),
            )
            for name, result in trained.items()
        ],
    ).to_yaml()


def _revision(source: Source | None) -> str | None:
    """Return the commit of a data set on the hub; what is named for a copy, nobody has checked."""
    return source.revision if isinstance(source, HubSource) and not is_copy(source) else None


def _items(values: Mapping[str, str]) -> list[str]:
    return [f"- {name}: `{value}`" for name, value in values.items()]


def _percent(value: float, interval: Sequence[float]) -> str:
    low, high = interval
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _pass_at(result: Result) -> str:
    return ", ".join(f"@{k} {100 * value:.1f}" for k, value in result["pass_at_k"].items())
