"""Training problems that a benchmark holds too: the same text, or so many words in a row that it is the same problem told again.

Some scripts do not separate words. There runs are made of characters, as many as that number of words has about.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate

from ngrpo.data.problem import Problem
from ngrpo.data.screening import fingerprint

_COMMAND = re.compile(r"\\[A-Za-z]+")  # of LaTeX
# Han, kana, bopomofo and Yi, of which one or two characters are a word, and the scripts of South-East Asia, of which three are:
# Thai, Lao, Myanmar, Khmer, Tai Le, New Tai Lue, Tai Tham, Balinese, Javanese, Tai Viet, Cham.
_DENSE = (
    "\u3005-\u3007\u3021-\u3029\u3038-\u303b\u3040-\u30ff\u3105-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua000-\ua48f\uf900-\ufaff"
    "\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
_SPELT = (
    "\u0e00-\u0e4f\u0e80-\u0ecf\u1000-\u103f\u1050-\u109f\u1780-\u17df\u1950-\u19df\u1a20-\u1aad\u1b00-\u1b4f\ua980-\ua9cf\ua9e0-\ua9ef\ua9fa-\ua9ff"
    "\uaa00-\uaa4f\uaa60-\uaadf"
)
_PIECE = re.compile(rf"(?P<dense>[{_DENSE}])|(?P<spelt>(?=[^\W_])[{_SPELT}])|(?:(?![{_DENSE}{_SPELT}])[^\W_])+")
_SIZES = {"dense": 4, "spelt": 2, None: 6}
"""How much of a word each kind of piece is, in sixths."""


@dataclass(frozen=True)
class Match:
    """The benchmark's problem that a text is like, and whether it is the whole text or a run of words."""

    benchmark: str
    problem: str
    how: str


class BenchmarkProblems:
    """The problems of all benchmarks, to be kept out of training.

    Texts are compared without case, white space and dollar signs, or as words, letters and digits without LaTeX's commands and
    without punctuation. A run has a number of words; where words are not separated it has characters, two thirds or a third of a
    word each, and a run that is mixed has as much of both. Runs that several problems of a benchmark share are phrases of its
    kind ("where m and n are relatively prime positive integers"), not of a problem: they prove nothing and are passed over.
    """

    def __init__(self, words: int):
        """Compare runs of that many words."""
        self._words = words
        self._texts: dict[str, Match] = {}
        self._runs: dict[tuple[str, ...], Match] = {}

    def add(self, benchmark: str, problems: Iterable[Problem]) -> None:
        """Add a benchmark."""
        runs: dict[tuple[str, ...], Match | None] = {}
        for problem in problems:
            self._texts[fingerprint(problem.problem)] = Match(benchmark, problem.id, "text")
            for run in set(self._of(problem.problem)):
                how = f"{len(run)} {'words' if len(run) == self._words else 'words and characters'}"
                runs[run] = None if run in runs else Match(benchmark, problem.id, how)
        self._runs |= {run: match for run, match in runs.items() if match is not None}

    def match(self, text: str) -> Match | None:
        """Return the problem that a text is like; none if there is none."""
        same = self._texts.get(fingerprint(text))
        return same or next((self._runs[run] for run in self._of(text) if run in self._runs), None)

    def _of(self, text: str) -> Iterator[tuple[str, ...]]:
        """Yield the run that starts at each word or character, less those that the text's end cuts off."""
        plain = unicodedata.normalize("NFKC", _COMMAND.sub(" ", text)).casefold()
        found = list(_PIECE.finditer(plain))
        pieces = [piece[0] for piece in found]
        ends = list(accumulate((_SIZES[piece.lastgroup] for piece in found), initial=0))
        stop = 0
        for start in range(len(pieces)):
            while stop < len(pieces) and ends[stop] - ends[start] < 6 * self._words:
                stop += 1
            if ends[stop] - ends[start] < 6 * self._words:
                return
            yield tuple(pieces[start:stop])
