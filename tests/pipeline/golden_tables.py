"""The tables of the terminal at 60, 80 and 200 columns, from made-up results; run as a script, writes them again (`make golden`).

Numbers, keys and times are made up, so that a stored table changes only when its layout or wording changes.
"""

import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))  # as a script

from compared_arms import arm_of
from ngrpo.checking.findings import Examination, Finding
from ngrpo.config import load_config
from ngrpo.report.comparison import compare, comparison_table
from ngrpo_kfp.pipelines.cli import checking, promotion, run_list
from ngrpo_kfp.pipelines.cli.options import PRESETS
from ngrpo_kfp.pipelines.cli.terminal import Terminal
from ngrpo_kfp.pipelines.local.run_artifacts import Sizes
from ngrpo_kfp.pipelines.local.run_views import NodeView, RunView
from ngrpo_kfp.pipelines.local.workspace import Workspace
from ngrpo_kfp.pipelines.planning.nodes import History, Plan
from ngrpo_kfp.pipelines.planning.plan import make_plan
from ngrpo_kfp.pipelines.planning.summary import plan_table, results_table

GOLDEN = Path(__file__).with_name("golden") / "tables"
WIDTHS = (60, 80, 200)


def drawn(name: str) -> str:
    """Return a table as it is printed, once for each width, without spaces at the ends of lines."""
    text = "\n".join(f"{width} columns\n{printed(name, width)}" for width in WIDTHS)
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def printed(name: str, width: int, **environment: str) -> str:
    """Return what a table prints on a standard output that is no terminal."""
    with patch.dict(os.environ, {"COLUMNS": str(width), **environment}), patch.object(sys, "stdout", StringIO()) as out:
        TABLES[name](Terminal())
    return out.getvalue()


def _plan(terminal: Terminal) -> None:
    config = load_config(PRESETS / "tiny.toml", ['model.end_of_turn=["<|im_end|>"]'])
    planned = make_plan(config, run="", store=None, rerun_tokens={}, history=History(), contents={})
    reasons = {
        "ngrpo_training": ("configuration changed: training.steps 30 → 40", "code changed: ngrpo/mixing/mixer.py")
    }
    nodes = {
        node.name: replace(node, key=f"{number:032x}"[::-1], reasons=reasons.get(node.name, node.reasons))
        for number, node in enumerate(planned, 10)
    }
    terminal.print(plan_table(Plan(nodes), config))


def _results(terminal: Terminal) -> None:
    def result(mean: float) -> dict:
        within = {"1": mean, "4": mean + 0.2, "16": mean + 0.5}
        return {"mean": mean, "mean_ci": [mean - 0.025, mean + 0.025], "pass_at_k": within, "n_samples": 16}

    means = {"base": 0.0312, "warm_start": 0.238, "trained": 0.395}
    terminal.print(results_table({"models": {model: {"arithmetic": result(mean)} for model, mean in means.items()}}))


def _history(terminal: Terminal) -> None:
    def entry(number: int, decision: str, before: str | None, after: str | None, reason: str) -> dict:
        time = f"2026-11-{number:02}T15:54:09+00:00"
        change = {"before": {"champion": before}, "after": {"champion": after}}
        return {
            "sequence": number,
            "time": time,
            "version": str(number),
            "decision": decision,
            "reason": reason,
            **change,
        }

    entries = [
        entry(1, "promoted", None, "1", "+12.1 points [+10.2, +14.1] over the model it started from; 0.0 wanted"),
        entry(2, "kept_champion", "1", "1", "+0.3 points [-1.1, +1.8] over version 1; more than 0.0 wanted"),
        entry(3, "rolled_back", "1", None, "worse on real traffic"),
    ]
    registry = SimpleNamespace(name="ngrpo-tiny", aliases=lambda: {"champion": None, "challenger": "2"})

    @contextmanager
    def promotions(*_, **__):
        yield SimpleNamespace(history=lambda: entries, registry=registry)

    with patch.object(promotion, "_promotions", promotions):
        promotion.show_history(load_config(PRESETS / "tiny.toml"), None, terminal)


def _comparison(terminal: Terminal) -> None:
    arms = [arm_of(Path(), name, skill, 3) for name, skill in (("grpo", 0.3), ("k1", 0.4), ("neighbor", 0.45))]
    terminal.print(comparison_table(compare(arms, baseline="grpo", benchmark=None, measure="pass@8", margin=1.0)))


def _view(day: int, preset: str, **changes: object) -> RunView:
    name = f"202611{day}-155409-123456-{preset}"
    made = RunView(
        kind="run",
        name=name,
        directory=Path("outputs/runs") / name,
        preset=preset,
        model=f"ngrpo-{preset}",
        state="done",
        stage=None,
        began=datetime(2026, 11, day, 15, 54, tzinfo=UTC),
        seconds=151.0,
        gain=None,
        interval=None,
        decision=None,
        version=None,
        nodes=(),
    )
    return replace(made, **changes)


def _runs(terminal: Terminal) -> None:
    views = [
        _view(29, "smollm2", state="stopped", seconds=8.0),
        _view(28, "tiny", gain=0.3, interval=(-1.1, 1.8), decision="kept_champion", version=2),
        _view(27, "tiny", gain=12.1, interval=(10.2, 14.1), decision="promoted", version=1),
    ]
    kept = {view.directory: Sizes(directory=2 << 20, store=310 << 20, cache=0, unknown=0) for view in views}
    of = {view.directory: view for view in views}
    with (
        patch.object(run_list, "sizes", lambda _: kept),
        patch.object(run_list, "everything", lambda _: [("run", view.directory) for view in views]),
        patch.object(run_list, "look", lambda kind, directory, workspace: of[directory]),
    ):
        run_list.show_runs(None, terminal, as_json=False)


def _check(terminal: Terminal) -> None:
    findings = [
        Finding("ok", "data.train", "/home/somebody/problems/of/mine/train.jsonl: 1 file"),
        Finding("warning", "evaluation.max_tokens", "half of the gold answers are longer", "raise it"),
        Finding(
            "error",
            "rollout.max_tokens",
            "rollout.max_tokens=4096 and a prompt: more than there is room for",
            "lower it",
        ),
    ]
    with patch.object(checking, "terminal", lambda: terminal):
        checking._show(Examination(findings))


def _status(terminal: Terminal) -> None:
    nodes = (
        NodeView("prepare_data", "cached", "a" * 32),
        NodeView("benchmark_evaluation", "running", "b" * 32, 75.0, "base", (1600, 6400), "samples", 167.0),
        NodeView("model_promotion", "waiting", "c" * 32),
    )
    view = replace(_view(29, "tiny", state="running", stage="benchmark_evaluation"), nodes=nodes)
    with patch.object(run_list, "look", lambda *_: view):
        run_list.show_status("run", view.directory, Workspace(Path("outputs")), terminal, as_json=False)


TABLES: dict[str, Callable[[Terminal], None]] = {
    "plan": _plan,
    "results": _results,
    "history": _history,
    "comparison": _comparison,
    "runs": _runs,
    "check": _check,
    "status": _status,
}

if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name in TABLES:
        (GOLDEN / f"{name}.txt").write_text(drawn(name), encoding="utf-8")
