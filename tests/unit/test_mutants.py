"""The mutants of `make mutants` fit the code: each changes a text that its file holds once."""

from pathlib import Path

from mutants import MUTANTS

ROOT = Path(__file__).parents[2]


def test_mutants_fit_the_code():
    """The mutants named here must be updated to the code that they change."""
    stale = [each.name for each in MUTANTS if (ROOT / each.file).read_text(encoding="utf-8").count(each.text) != 1]
    assert stale == []
    assert all(each.text != each.replacement for each in MUTANTS)
    assert len({each.name for each in MUTANTS}) == len(MUTANTS)
