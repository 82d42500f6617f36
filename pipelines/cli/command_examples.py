"""Examples that end the help of each command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import typer

from ngrpo_kfp.pipelines.cli.help import examples

_EXAMPLES: Mapping[str, Sequence[str]] = {
    "init": ("ngrpo init --model my-model --data problems.jsonl -o mine.toml",),
    "check": ("ngrpo check mine.toml", "ngrpo check mine.toml --json"),
    "plan": (
        "ngrpo plan                             # what a run of preset tiny would do",
        "ngrpo plan smollm2 --set training.steps=40",
        "ngrpo plan --json                      # for programs",
    ),
    "run": ("ngrpo run", "ngrpo run mine.toml --seed 3", "ngrpo run smollm2 --dry-run"),
    "rerun": ("ngrpo rerun benchmark_evaluation", "ngrpo rerun ngrpo_training --from RUN   # a run on the cluster"),
    "evaluate": (
        "ngrpo evaluate champion",
        "ngrpo evaluate my-model --preset mine.toml",
        "ngrpo evaluate champion --json         # for programs",
    ),
    "compile": ("ngrpo compile paper-7b --cluster mine.toml -o paper-7b.yaml",),
    "submit": ("ngrpo submit --preset paper-7b --cluster mine.toml", "ngrpo submit --cluster mine.toml --wait"),
    "cancel": ("ngrpo cancel RUN",),
    "doctor": ("ngrpo doctor --cluster mine.toml --preset paper-7b",),
    "regrade": ("ngrpo regrade                          # of the latest run",),
    "promote": ("ngrpo promote 3", "ngrpo promote 3 --override 'the benchmark had a wrong answer'"),
    "rollback": ("ngrpo rollback 'answers too long in production'",),
    "history": ("ngrpo history",),
    "export": ("ngrpo export champion my-model", "ngrpo export 3 my-adapter --adapter --model ngrpo-tiny"),
    "chat": ("ngrpo chat", "ngrpo chat champion --prompt 'What is 7+4?'", "ngrpo chat latest < questions.txt"),
    "exec": ("ngrpo exec mlflow models serve -m models:/ngrpo-tiny@champion --env-manager local",),
    "verify": ("ngrpo verify champion --public-key signing.pub", "ngrpo verify my-model"),
    "serve": ("ngrpo serve champion", "ngrpo serve champion --cluster mine.toml > champion.yaml"),
    "deploy": ("ngrpo deploy champion --cluster mine.toml",),
    "watch": (
        "ngrpo watch --endpoint http://127.0.0.1:8000/v1",
        "ngrpo watch --endpoint http://127.0.0.1:8000/v1 --json",
        "ngrpo watch mine.toml --schedule nightly --cron @daily --cluster cluster.toml",
    ),
    "runs": ("ngrpo runs", "ngrpo runs --json"),
    "prune": (
        "ngrpo prune                            # what would go",
        "ngrpo prune --keep 3 --yes",
        "ngrpo prune --json",
    ),
    "mirror": ("ngrpo mirror s3://team/copies --preset paper-7b",),
    "status": ("ngrpo status", "ngrpo status RUN --json"),
    "logs": ("ngrpo logs ngrpo_training --follow",),
    "report": ("ngrpo report",),
    "config": ("ngrpo config training", "ngrpo config training.rewards"),
    "ui": ("ngrpo ui",),
    "neighbors": ("ngrpo neighbors tiny 1 +",),
    "compare": ("ngrpo compare before=RUN after=RUN", "ngrpo compare laptop:k1 laptop:grpo --json"),
}
"""Example command lines by command, except for commands that declare their own `epilog`."""


def give_examples(app: typer.Typer) -> None:
    """Append the examples to the help of each command of a group."""
    for command in app.registered_commands:
        name = command.name or (command.callback.__name__ if command.callback is not None else "")
        if name in _EXAMPLES:
            command.epilog = examples(*_EXAMPLES[name])
