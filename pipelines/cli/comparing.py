"""The command that compares runs: `ngrpo compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ngrpo_kfp.pipelines.cli.help import INSPECT
from ngrpo_kfp.pipelines.cli.lazy import terminal, workspace

app = typer.Typer()


@app.command(rich_help_panel=INSPECT)
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]RUN...",
            help="name or directory of a run, or EXPERIMENT:ARM; runs that differ by their seed alone are one arm, and so are runs with "
            "the same NAME",
        ),
    ],
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline", metavar="ARM", help="the arm that the others are compared with (default: the first)"
        ),
    ] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(
            "--benchmark", metavar="NAME", help="benchmark of the primary comparison (default: the promotion's)"
        ),
    ] = None,
    measure: Annotated[
        str | None,
        typer.Option(
            "--measure", metavar="MEASURE", help="mean, maj, pass@K or best@K (default: the promotion's statistic)"
        ),
    ] = None,
    equivalence: Annotated[
        float | None,
        typer.Option(
            "--equivalence",
            metavar="POINTS",
            help="arms within this many points are equivalent (default: 1, or the experiment's)",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", metavar="DIR", help="where comparison.html and comparison.json go (default: into the workspace)"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the comparison as JSON")] = False,
) -> None:
    """Compare the results of runs, over problems and seeds."""
    from ngrpo_kfp.pipelines.local.comparing import Asked, compare_runs

    asked = Asked(baseline=baseline, benchmark=benchmark, measure=measure, equivalence=equivalence)
    compare_runs(runs, asked, workspace(), terminal(), output, as_json=as_json)
