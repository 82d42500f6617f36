"""Check the user code that only evaluation runs, which would otherwise fail after hours of training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ngrpo.checking.findings import Finding, refused
from ngrpo.config import RunConfig
from ngrpo.errors import NGRPOError
from ngrpo.rollout.configured_strategy import load_strategy, strategy_source
from ngrpo.user_code import load


def check_evaluation_code(config: RunConfig, work: Path) -> Iterator[Finding]:
    """Import the graders of benchmarks and the strategy of `evaluation.mixing`.

    Args:
        config: Configuration of the run.
        work: Directory to write the user's source files to.
    """
    for name, source in config.data.benchmarks.items():
        compare, setting = source.grading.compare, f"data.benchmarks.{name}.grading.compare"
        if compare.of_user:
            try:
                load(compare, work)
            except NGRPOError as error:
                yield refused(setting, error)
            else:
                yield Finding("ok", setting, f"{compare.function} can be imported")
    mixing = config.evaluation.mixing
    if mixing is not None and mixing.reference is not None:
        try:
            load_strategy(strategy_source(mixing))
        except NGRPOError as error:
            yield refused("evaluation.mixing.strategy", error)
        else:
            yield Finding("ok", "evaluation.mixing.strategy", f"{mixing.strategy} can be imported")
