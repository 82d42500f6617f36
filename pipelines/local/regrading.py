"""Grade the stored samples of a finished run again with the current graders."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ngrpo.evaluation.benchmark import read_benchmarks
from ngrpo.evaluation.verdicts import graded
from ngrpo.grading.grader import Grader
from ngrpo.report.phases import phase
from ngrpo_kfp.pipelines.local.reporting import finished_run
from ngrpo_kfp.pipelines.local.run_pipeline import run
from ngrpo_kfp.pipelines.local.workspace import Workspace
from ngrpo_kfp.pipelines.planning.nodes import find_node, of_stage


def regrade_run(run_directory: Path, workspace: Workspace, console: Console) -> None:
    """Show which verdicts of a run have changed; if any have, evaluate and decide again from the stored samples.

    Args:
        run_directory: Directory of a finished run.
        workspace: Where everything is kept.
        console: Where verdicts and results are shown.

    Raises:
        NGRPOError: There is no such run, its artifacts are gone, or evaluation or promotion fail.
    """
    shown = Table(title="Verdicts")
    for column in ("model", "benchmark", "samples", "now correct", "no longer correct", "mean before", "mean now"):
        shown.add_column(column, justify="left" if column in ("model", "benchmark") else "right")
    changed: dict[str, None] = {}
    with (
        phase(console, "fetching the samples") as grading,
        finished_run(run_directory, workspace) as (_summary, config, references, store),
        Grader() as grader,
    ):
        console.print(
            escape(f"model  {config.promotion.model_name}  (settings of run {run_directory.resolve().name})"),
            soft_wrap=True,
        )
        problems = store.fetch(references[find_node("prepare_data", references)]) / "benchmarks"
        found = [
            (node, path, benchmark)
            for node in of_stage("benchmark_evaluation", references)
            for samples in [store.fetch(references[node]) / "samples"]
            for benchmark in read_benchmarks(problems, config.benchmark_gradings)
            for path in sorted(samples.glob(f"*/{benchmark.name}.parquet"))
        ]
        for node, path, benchmark in grading.each(found, "grading", "tables"):
            before = pq.read_table(path)
            was, now = before["correct"], graded(before, benchmark, grader)["correct"]
            gained, lost = _count(pc.and_not(now, was)), _count(pc.and_not(was, now))
            if gained or lost:
                changed[node] = None
            numbers = [
                str(before.num_rows),
                str(gained),
                str(lost),
                *(f"{pc.mean(v).as_py():.2%}" for v in (was, now)),
            ]
            # One of several nodes is identified by its labels.
            model = ".".join([*node.split(".")[1:], path.parent.name])
            shown.add_row(model, benchmark.name, *numbers)
    console.print(shown)
    for node in changed:
        run(config, workspace, console, rerun=node)


def _count(flags: pa.ChunkedArray) -> int:
    return int(pc.sum(flags).as_py() or 0)
