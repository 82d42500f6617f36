"""Tables in the terminal match the stored ones; if a test fails because a table was changed on purpose: `make golden`."""

import pytest
from golden_tables import GOLDEN, TABLES, WIDTHS, drawn, printed
from rich.cells import cell_len


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_drawn_as_stored(name, monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    text = drawn(name)
    assert text == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")
    assert "\x1b" not in text, "colours where there is no terminal"
    for width, part in zip(WIDTHS, text.split(" columns\n")[1:], strict=True):
        assert max(map(cell_len, part.splitlines())) <= width


def test_no_color_takes_the_colours_and_nothing_else(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    colours, none = (printed("plan", 80, FORCE_COLOR="1", **more) for more in ({}, {"NO_COLOR": "1"}))
    assert "\x1b[33m" in colours
    assert "\x1b[3" not in none.replace("\x1b[3m", "")
    assert colours.replace("\x1b[33m", "").replace("\x1b[0m", "") == none.replace("\x1b[0m", "")
