"""What the report says of the promotion: what was decided, and the problems that decided it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup

from ngrpo.contracts import promotion as contract
from ngrpo.contracts.evaluation import Evaluation, Result
from ngrpo.contracts.promotion import Promotion
from ngrpo.evaluation.gate import per_problem
from ngrpo.report.figures import difference_chart


@dataclass(frozen=True)
class Comparison:
    """The paired differences on a benchmark of the gate: how many problems each model is better on, and a chart."""

    benchmark: str
    better: int
    worse: int
    figure: Markup


def promotion_sentence(promotion: Promotion) -> str:
    """Return what became of the model in one sentence; `promotion` is `promotion.json` of the stage `model_promotion`."""
    name, version, champion = promotion["model"], promotion["version"], promotion["champion_version"]
    stays = "there is no champion" if champion is None else f"version {champion} stays the champion"
    return {
        "promoted": f"Promoted: version {version} of {name} is the champion.",
        "kept": f"Not promoted: version {version} of {name} is a challenger; {stays}.",
        "unchanged": f"Unchanged: this model is version {version} of {name}, the champion already.",
    }[promotion["decision"]]


def signature_sentence(promotion: Promotion) -> str:
    """Return by whom a version is signed in one sentence; nothing for a decision of an earlier version of the library."""
    if "signed" not in promotion:
        return ""
    signed = promotion["signed"]
    if signed is None:
        return "Unsigned: signing.private_key names no key."
    return f"Signed by the key sha256 {signed['key']}; beside the model are {', '.join(signed['files'])}, which ngrpo verify checks."


def comparisons(promotion: Promotion, evaluation: Evaluation, champion: Evaluation | None) -> list[Comparison]:
    """Return the differences that the gate looked at, benchmark by benchmark; none where it compared nothing.

    Args:
        promotion: `promotion.json` of the stage `model_promotion`.
        evaluation: `evaluation.json` of the candidate.
        champion: That of the champion which the candidate met, if it is available.
    """
    compared = promotion["comparison"]
    if compared is None or (champion is None and promotion["champion_version"] is not None):
        return []
    theirs = evaluation["models"]["warm_start"] if champion is None else champion["models"]["trained"]
    entries: list[contract.Comparison] = [compared, *compared["regressions"].values()]
    return [
        _comparison(entry, evaluation["models"]["trained"], theirs, compared["against"])
        for entry in {entry["benchmark"]: entry for entry in entries}.values()
    ]


def _comparison(
    entry: contract.Comparison, ours: Mapping[str, Result], theirs: Mapping[str, Result], against: str
) -> Comparison:
    name = entry["benchmark"]
    statistic = entry["statistic"] if entry["statistic"].startswith("pass") else entry["statistic"].partition("@")[0]
    problems = sorted(ours[name]["per_problem"])
    candidate, opponent = (100.0 * per_problem(statistic, results[name], problems) for results in (ours, theirs))
    differences = (candidate - opponent).tolist()
    figure = difference_chart(
        differences,
        (entry["gain"], entry["interval"][0], entry["interval"][1]),
        label=f"Candidate less {against} on each problem of {name}, sorted, with the mean and its interval",
        x_label=f"{len(problems)} problems, sorted by difference",
    )
    better, worse = sum(value > 0 for value in differences), sum(value < 0 for value in differences)
    return Comparison(name, better, worse, figure)
