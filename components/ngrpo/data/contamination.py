"""Find training problems that also occur in a benchmark: the same text, or a shared run of words (n-gram) of a given length.

In scripts that do not separate words, a run consists of characters, about as many as that number of words contains.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate

from ngrpo.data.problem import Problem
from ngrpo.data.screening import fingerprint

_COMMAND = re.compile(r"\\[A-Za-z]+")  # a LaTeX command
# Dense: Han, kana, bopomofo and Yi, with one or two characters per word. Spelt: scripts of South-East Asia, with about three:
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
"""Share of a word that each kind of piece counts for, in sixths."""


@dataclass(frozen=True)
class Match:
    """A benchmark problem that a text matches.

    Attributes:
        benchmark: Name of the benchmark.
        problem: Id of the problem.
        how: `text` if the whole text is the same, else the length of the shared run.
    """

    benchmark: str
    problem: str
    how: str


class BenchmarkProblems:
    """The problems of all benchmarks, for decontamination of training data.

    Whole texts are compared without case, white space and dollar signs. Runs are compared as words of letters and digits, without
    LaTeX commands and punctuation. In scripts that do not separate words, each character counts as two thirds or one third of a word.
    Runs that several problems of one benchmark share are stock phrases ("where m and n are relatively prime positive integers") and
    are ignored.
    """

    def __init__(self, words: int):
        """Create an empty collection.

        Args:
            words: Length of the runs that are compared, in words.
        """
        self._words = words
        self._texts: dict[str, Match] = {}
        self._runs: dict[tuple[str, ...], Match] = {}

    def add(self, benchmark: str, problems: Iterable[Problem]) -> None:
        """Add the problems of a benchmark."""
        runs: dict[tuple[str, ...], Match | None] = {}
        for problem in problems:
            self._texts[fingerprint(problem.problem)] = Match(benchmark, problem.id, "text")
            for run in set(self._of(problem.problem)):
                how = f"{len(run)} {'words' if len(run) == self._words else 'words and characters'}"
                runs[run] = None if run in runs else Match(benchmark, problem.id, how)
        self._runs |= {run: match for run, match in runs.items() if match is not None}

    def match(self, text: str) -> Match | None:
        """Return the benchmark problem that a text matches, or None."""
        same = self._texts.get(fingerprint(text))
        return same or next((self._runs[run] for run in self._of(text) if run in self._runs), None)

    def _of(self, text: str) -> Iterator[tuple[str, ...]]:
        """Yield the run that starts at each word or character, except runs that the end of the text would cut short."""
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
