"""Of 500 different gold answers no two are accepted for each other: every pair, both ways; the suite has the near ones and a sample."""

import itertools

from different_golds import GOLDS
from ngrpo.grading.answer_forms import canonical
from ngrpo.grading.comparison import respond


def test_no_two_of_500_answers_are_accepted_for_each_other():
    golds = {gold: canonical(gold) for kind in GOLDS.values() for gold in kind}
    assert len(golds) == 500
    pairs = list(itertools.permutations(golds, 2))
    accepted = [pair for pair in pairs if respond(golds[pair[0]], golds[pair[1]])[0]]
    print(f"{len(pairs)} pairs, {len(accepted)} accepted")
    assert not accepted
