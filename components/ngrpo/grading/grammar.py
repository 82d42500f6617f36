r"""The grammar of `latex2sympy2_extended`, parsed in two stages, as ANTLR's manual advises: fast first, exactly where that fails.

A prediction of the next rule either takes the calling rules into account (LL), and its result cannot be cached, or ignores them (SLL), and
its result is cached for further texts. SLL gives the same tree as LL, or a syntax error that LL may not have; so only errors of LL count.
"""

from __future__ import annotations

from typing import Any

from antlr4 import CommonTokenStream, InputStream
from antlr4.atn.ParserATNSimulator import ParserATNSimulator
from antlr4.atn.PredictionMode import PredictionMode
from latex2sympy2_extended.antlr_parser import PSLexer, PSParser

_AMBIGUOUS = frozenset(
    number for number, state in enumerate(PSParser.atn.decisionToState) if state.ruleIndex == PSParser.RULE_atom_expr
)
"""Decisions that SLL gets wrong in every power (`x^2`). The first stage uses LL for them too, and then seldom fails."""


_SET_BEGINS = frozenset(PSParser.atn.nextTokens(PSParser.atn.ruleToStartState[PSParser.RULE_set_atom]))
"""The tokens that a set can begin with."""

_WHOLE, _ELEMENT = (
    next(number for number, state in enumerate(PSParser.atn.decisionToState) if state.ruleIndex == rule)
    for rule in (PSParser.RULE_math, PSParser.RULE_element)
)
_SET_RELATIONS = {PSParser.IN, PSParser.NOTIN, PSParser.ASSIGNMENT}

_ELEMENTS_ALTERNATIVE, _RELATION_ALTERNATIVE = 2, 3
"""The alternative of `math` for a list of elements, and the alternative of `element` for a relation, which includes expressions."""


class _Predictions(ParserATNSimulator):
    exact = False
    tokens: frozenset[int] = frozenset()
    """The kinds of token in the text."""

    def adaptivePredict(self, input: Any, decision: int, outerContext: Any) -> int:
        # Both decisions would read the text to its end, for a sign that most texts do not contain.
        if decision in (_WHOLE, _ELEMENT) and input.LA(1) not in _SET_BEGINS:
            if decision == _WHOLE and not self.tokens & _SET_RELATIONS:
                return _ELEMENTS_ALTERNATIVE
            if decision == _ELEMENT and PSParser.PLUS_MINUS not in self.tokens:
                return _RELATION_ALTERNATIVE
        exact = self.exact or decision in _AMBIGUOUS
        self.predictionMode = PredictionMode.LL if exact else PredictionMode.SLL
        prediction: int = super().adaptivePredict(input, decision, outerContext)
        return prediction


class _Parser(PSParser):
    def __init__(self, tokens: CommonTokenStream):
        super().__init__(tokens)
        self._interp = _Predictions(self, self.atn, self.decisionsToDFA, self.sharedContextCache)

    def math(self) -> Any:
        try:
            return super().math()
        except Exception:  # the listener's, for a syntax error
            self.reset()
            self._interp.exact = True
            return super().math()


def parser(text: str, listener: Any) -> PSParser:
    """Return a parser of a text, whose method `math` parses all of it.

    Args:
        text: LaTeX.
        listener: Told of errors; it raises for each.

    Raises:
        Exception: The listener's, for a character that no token begins with.
    """
    lexer = PSLexer(InputStream(text))
    tokens = CommonTokenStream(lexer)
    parser_ = _Parser(tokens)
    for part in (lexer, parser_):
        part.removeErrorListeners()
        part.addErrorListener(listener)
    tokens.fill()  # so that an error of the lexer is raised here, and not in the first stage
    parser_._interp.tokens = frozenset(token.type for token in tokens.tokens)
    return parser_
