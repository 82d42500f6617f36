"""Tables in a terminal: at 60, 80 and 200 columns no line is longer than the terminal, and nothing is cut without an ellipsis."""

from collections import Counter
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from rich.cells import cell_len
from rich.console import Group
from rich.table import Table
from rich.text import Text
from small_house import EVALUATION
from test_experiment import ARMS, HEAD, plan_of

from compared_arms import arm_of
from ngrpo.config import load_config
from ngrpo.report.comparison import compare, comparison_table
from ngrpo_kfp.pipelines.cli import promotion
from ngrpo_kfp.pipelines.cli.options import PRESETS
from ngrpo_kfp.pipelines.cli.terminal import Terminal
from ngrpo_kfp.pipelines.planning.experiment import read_experiment
from ngrpo_kfp.pipelines.planning.experiment_plan import show_experiment
from ngrpo_kfp.pipelines.planning.needs import show_needs
from ngrpo_kfp.pipelines.planning.nodes import History
from ngrpo_kfp.pipelines.planning.plan import make_plan
from ngrpo_kfp.pipelines.planning.summary import plan_table, results_table

LONG = "a-name-that-is-so-long-that-it-fits-into-no-column-of-a-small-terminal"


class Seen(Terminal):
    """A terminal that remembers its tables."""

    def __init__(self):
        super().__init__()
        self.tables = []

    def print(self, *objects, **settings):
        for shown in objects:
            parts = shown.renderables if isinstance(shown, Group) else [shown]
            self.tables += [part for part in parts if isinstance(part, Table)]
        super().print(*objects, **settings)


def plan_and_needs(terminal, tmp_path, monkeypatch):
    config = load_config(PRESETS / "paper-7b.toml", [f'model.end_of_turn=["{LONG}"]'])
    planned = make_plan(config, run="", store=None, rerun_tokens={}, history=History(), contents={})
    terminal.print(plan_table(planned, config))
    show_needs(config, planned, terminal)


def results(terminal, tmp_path, monkeypatch):
    of = {"arithmetic": EVALUATION, LONG: EVALUATION}
    terminal.print(results_table({"models": {"base": of, "warm_start": of, "trained": of}}, {"arithmetic": "Sums [1]"}))


def history(terminal, tmp_path, monkeypatch):
    entry = {
        "sequence": 12,
        "time": "2026-11-29T15:54:09.123456+00:00",
        "version": "12",
        "decision": "rolled_back",
        "reason": f"{LONG} is worse on real traffic [see there]",
        "before": {"champion": "12"},
        "after": {"champion": None},
    }
    registry = SimpleNamespace(name="ngrpo", aliases=lambda: {"champion": "3", "challenger": None})

    @contextmanager
    def promotions(*_, **__):
        yield SimpleNamespace(history=lambda: [entry] * 3, registry=registry)

    monkeypatch.setattr(promotion, "_promotions", promotions)
    promotion.show_history(load_config(PRESETS / "tiny.toml"), None, terminal)


def comparison(terminal, tmp_path, monkeypatch):
    arms = [
        arm_of(tmp_path, name, 0.3 + 0.1 * number, 2) for number, name in enumerate(("grpo", "ngrpo", "soft", LONG))
    ]
    terminal.print(comparison_table(compare(arms, baseline="grpo", benchmark=None, measure="pass@8", margin=1.0)))


def experiment(terminal, tmp_path, monkeypatch):
    file = tmp_path / "lab.toml"
    file.write_text(HEAD + ARMS + f"[arms.{LONG[:30]}.mixing]\nk = 1\n")
    read = read_experiment(
        file, PRESETS, ["resources.ngrpo_training.gpus=4", "resources.ngrpo_training.gpu_memory_gib=80"]
    )
    show_experiment(plan_of(read), terminal, {})


SHOWN = (plan_and_needs, results, history, comparison, experiment)


BOX = "│┃┏┓┗┛┳┻┡┩╇┬┴┼├┤┌┐└┘─━╍"


def characters(*texts):
    """Count what is no space and no part of a box."""
    return Counter("".join(texts).translate(str.maketrans("", "", BOX)).replace(" ", "").replace("\n", ""))


def plain(text):
    return text.plain if isinstance(text, Text) else Text.from_markup(text or "").plain


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("show", SHOWN, ids=lambda each: each.__name__)
def test_tables_hold_and_cut_nothing_silently(show, width, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    terminal = Seen()
    show(terminal, tmp_path, monkeypatch)
    assert terminal.tables
    capsys.readouterr()
    for table in list(terminal.tables):
        terminal.print(table)
        shown = capsys.readouterr().out
        assert max(map(cell_len, shown.splitlines())) <= width
        assert shown.count("\n") > len(table.rows)
        cells = [plain(cell) for column in table.columns for cell in (column.header, *column.cells)]
        wanted = characters(plain(table.title), plain(table.caption), *cells)
        assert "…" in shown or not wanted - characters(shown), f"{table.title!r} has lost {wanted - characters(shown)}"
        words = {word for cell in cells for word in plain(cell).split() if cell_len(word) <= 24}
        assert {word for word in words if word not in shown} == set(), "cut"
