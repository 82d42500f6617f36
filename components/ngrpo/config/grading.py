r"""How answers are graded: taken out of the column of gold answers, taken out of a response, and compared."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import AfterValidator, BeforeValidator, model_validator

from ngrpo.config.code import UserCode
from ngrpo.section import NonEmpty, Section, refuse

GoldForm = Literal["text", "boxed", "####", "<answer>", "regex"]
ResponseForm = Literal["text", "boxed", "####", "<answer>", "regex", "letter"]
Accepted = Literal["one", "any", "all"]
Gold = str | list[str]
"""A gold answer, or a list of those that are accepted."""


def _one_of(names: tuple[str, ...]) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if isinstance(value, str) and value not in names:
            close = difflib.get_close_matches(value, names, n=1, cutoff=0.5)
            raise ValueError(f"one of {', '.join(names)}" + (f"; did you mean {close[0]!r}?" if close else ""))
        return value

    return check


def _check_pattern(pattern: str) -> str:
    try:
        groups = re.compile(pattern).groups
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"no regular expression: {error}; see Python's `re`") from error
    if groups != 1:
        raise ValueError(
            f"it has {groups or 'no'} groups; exactly one holds the answer, as in `answer is (\\d+)`: write the others (?:...)"
            if groups
            else r"it has no group; one holds the answer, as in `answer is (\d+)`"
        )
    return pattern


def _reference(value: Any) -> Any:
    """Take `compare = "graders.py:grade"` for a reference to a function."""
    return {"function": value} if isinstance(value, str) else value


Pattern = Annotated[NonEmpty, AfterValidator(_check_pattern)]


class Comparison(UserCode):
    """How an answer is compared with the gold answer: `math`, `exact`, `countdown`, or a function of the user's."""

    ready: ClassVar[tuple[str, ...]] = ("math", "exact", "countdown")

    @property
    def of_user(self) -> bool:
        """Whether it is a function of the user's."""
        return self.function not in self.ready


class GradingConfig(Section):
    """How answers of a source are graded (`docs/answers.md`)."""

    gold: Annotated[GoldForm, BeforeValidator(_one_of(get_args(GoldForm)))] = "text"
    r"""How the gold answer stands in its column: `text` (the whole of it), `boxed` (in the last \boxed{}), `####` (behind the last ####,
    as in GSM8K), `<answer>` (in the last <answer>...</answer>) or `regex` (`gold_pattern`)."""
    gold_pattern: Pattern | None = None
    """Regular expression with one group, which holds the gold answer at its last place; for `gold = "regex"`."""
    response: Annotated[ResponseForm, BeforeValidator(_one_of(get_args(ResponseForm)))] = "boxed"
    r"""How the answer stands in a response, after `</think>`: as for `gold`, or `letter` (a line `Answer: X`)."""
    pattern: Pattern | None = None
    """Regular expression with one group, which holds the answer at its last place; for `response = "regex"`."""
    accepted: Annotated[Accepted, BeforeValidator(_one_of(get_args(Accepted)))] = "one"
    """`one`: the column holds one answer. `any`: it holds a list, and a response gives one of them. `all`: it holds a list, and a response
    gives all of them, in any order, and no other."""
    compare: Annotated[Comparison, BeforeValidator(_reference)] = Comparison(function="math")
    """`math`: equal in value, however written. `exact`: the same characters. `countdown`: an expression of the same numbers,
    each used as often, with the same value. Or a function of yours, `file.py:NAME`, which is called
    `grade(response, answer)`: trusted code, which runs outside the sandbox."""

    @model_validator(mode="before")
    @classmethod
    def _letters_are_compared_exactly(cls, tree: Any) -> Any:
        if isinstance(tree, dict) and tree.get("response") == "letter" and "compare" not in tree:
            return tree | {"compare": "exact"}
        return tree

    @model_validator(mode="after")
    def _agreeing(self) -> Self:
        problems = []
        for field, form, pattern in (
            ("gold", "gold_pattern", self.gold_pattern),
            ("response", "pattern", self.pattern),
        ):
            value = getattr(self, field)
            if value == "regex" and pattern is None:
                problems.append(f'{field}="regex" needs {form}: a regular expression with one group')
            if value != "regex" and pattern is not None:
                problems.append(f'{form}={pattern!r} goes with {field}="regex", not with {value!r}: leave one out')
        if self.response == "letter" and self.compare.function == "math":
            problems.append(
                'response="letter" goes with compare="exact": a letter is no mathematical value; leave compare out'
            )
        refuse(problems)
        return self

    @property
    def of_gold(self) -> GradingConfig:
        """What of it decides which gold answers there are; the rest is at its default."""
        kept = self.compare.function if self.compare.function in ("math", "countdown") else "exact"
        return self.model_copy(
            update={
                "response": "letter" if self.response == "letter" else "boxed",
                "pattern": None,
                "compare": Comparison(function=kept),
            }
        )

    @property
    def of_response(self) -> GradingConfig:
        """What of it decides on the verdict on a response, once the gold answers are known; the rest is at its default."""
        return self.model_copy(update={"gold": "text", "gold_pattern": None})


BOXED = GradingConfig()
"""Of every source that says nothing else."""
BY_LETTER = GradingConfig(response="letter", compare=Comparison(function="exact"))
"""Of multiple-choice questions."""


class Graded(Section):
    """A source of problems, whose answers are graded."""

    grading: GradingConfig = GradingConfig()
    """How gold answers and responses' answers are extracted and compared."""

    @model_validator(mode="before")
    @classmethod
    def _choices_are_answered_by_letter(cls, tree: Any) -> Any:
        if not isinstance(tree, dict) or not tree.get("wrong_answer_columns"):
            return tree
        grading = tree.get("grading", {})
        return tree | {"grading": {"response": "letter"} | grading} if isinstance(grading, dict) else tree

    @model_validator(mode="after")
    def _with_its_columns(self) -> Self:
        grading = self.grading
        taken = grading.gold != "text" or grading.accepted != "one"
        where = f"grading.gold={grading.gold!r} and grading.accepted={grading.accepted!r}"
        if taken and not hasattr(self, "answer_column"):
            raise ValueError(f"{where} are for answers of a column; these are generated as they are: leave both out")
        if taken and getattr(self, "wrong_answer_columns", False):
            raise ValueError(
                f"{where} go with no wrong_answer_columns: the right option is taken as it is; leave both out"
            )
        if grading.gold != "text" and getattr(self, "answer_is_boxed", False):
            raise ValueError(
                f'answer_is_boxed=true is another word for grading.gold="boxed", but grading.gold={grading.gold!r}: leave one out'
            )
        return self
