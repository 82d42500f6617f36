"""Comparisons of arms: numbers against the evaluations they come from, what is missing, what is refused, and what is drawn."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from compared_arms import N, arm_of, counts_of, run_of
from ngrpo.errors import ConfigError
from ngrpo.evaluation.statistics import best_at_k, pass_at_k
from ngrpo.report.comparison import Arm, compare, comparison_table, write_comparison
from page import text_of

SETTINGS = {"baseline": "grpo", "benchmark": None, "measure": "mean", "margin": 1.0}


@pytest.fixture
def arms(tmp_path):
    return [arm_of(tmp_path, "grpo", 0.35, 3), arm_of(tmp_path, "ngrpo", 0.6, 3)]


def printed(comparison, width=80):
    console = Console(width=width, file=None, record=True, quiet=False, force_terminal=False)
    with console.capture() as capture:
        console.print(comparison_table(comparison))
    return capture.get()


def page_of(comparison, directory):
    write_comparison(comparison, directory)
    return (directory / "comparison.html").read_text()


def test_measures_are_means_over_seeds_of_each_estimator(arms):
    found = compare(arms, **SETTINGS).benchmarks["sums"]
    assert found.measures == ["mean@8", "maj@8", "pass@4", "pass@8", "best@4", "best@8"]
    counts = [list(run.evaluation["models"]["trained"]["sums"]["per_problem"].values()) for run in arms[1].runs]
    ours = found.arms["ngrpo"]
    assert ours["mean@8"].value == pytest.approx(100 * np.mean(counts) / N)
    assert ours["pass@4"].value == pytest.approx(100 * np.mean([pass_at_k(each, N, 4) for each in counts]))
    assert ours["best@4"].value == pytest.approx(100 * np.mean([best_at_k(each, N, 4) for each in counts]))
    assert ours["best@4"].value < ours["pass@4"].value
    assert ours["maj@8"].by_seed[1] == pytest.approx(
        100 * arms[1].runs[1].evaluation["models"]["trained"]["sums"]["maj"]
    )
    assert found.pass_curves["ngrpo"].mean[3] == pytest.approx(ours["pass@4"].value)


def test_differences_are_paired_by_seed_and_problem(arms):
    found = compare(arms, **SETTINGS)
    difference = found.benchmarks["sums"].differences["ngrpo"]["mean@8"]
    values = found.benchmarks["sums"].arms
    assert difference.seeds == [0, 1, 2]
    assert difference.value == pytest.approx(values["ngrpo"]["mean@8"].value - values["grpo"]["mean@8"].value)
    assert difference.verdict == "better"
    assert difference.interval[0] > 0
    assert difference.seed_interval is not None
    backwards = compare(arms, **SETTINGS | {"baseline": "ngrpo"}).benchmarks["sums"].differences["grpo"]["mean@8"]
    assert backwards.verdict == "worse"
    assert backwards.interval == pytest.approx([-end for end in reversed(difference.interval)], abs=0.5)


def test_p_values_are_adjusted_for_the_number_of_arms(tmp_path, arms):
    several = [*arms, arm_of(tmp_path, "k1", 0.36, 3), arm_of(tmp_path, "soft", 0.7, 3)]
    differences = compare(several, **SETTINGS).benchmarks["sums"].differences
    by_p = sorted((each["mean@8"].p_value, each["mean@8"].holm_p) for each in differences.values())
    assert by_p[0][1] == pytest.approx(3 * by_p[0][0])
    assert differences["k1"]["mean@8"].verdict == "undecided"


def test_arms_that_are_the_same_are_equivalent_and_not_undecided(tmp_path):
    counts = {"sums": [4] * 20}
    arms = [
        Arm(name, tuple(run_of(tmp_path, name, seed, counts, trained=False) for seed in range(3)))
        for name in ("grpo", "k1")
    ]
    difference = compare(arms, **SETTINGS).benchmarks["sums"].differences["k1"]["mean@8"]
    assert (difference.value, difference.verdict) == (0.0, "equivalent")


def test_problems_that_one_arm_solves_alone_are_counted(tmp_path):
    runs = {"grpo": [0, 0, 3, 5], "ngrpo": [1, 0, 0, 8]}
    arms = [Arm(name, (run_of(tmp_path, name, 0, {"sums": counts}, trained=False),)) for name, counts in runs.items()]
    found = compare(arms, **SETTINGS).benchmarks["sums"].solved["ngrpo"]
    assert (found.arm_only, found.baseline_only, found.both, found.neither) == (1.0, 1.0, 1.0, 1.0)


def test_a_run_without_training_or_samples_shows_what_is_missing_and_no_zeros(tmp_path):
    arms = [arm_of(tmp_path, "grpo", 0.35, 2, trained=True), arm_of(tmp_path, "ngrpo", 0.6, 2, trained=True)]
    found = compare([*arms, arm_of(tmp_path, "bare", 0.5, 2)], **SETTINGS)
    assert found.facts["bare"]["tokens_per_second"].value is None
    assert found.benchmarks["sums"].facts["bare"]["self_bleu"].value is None
    assert found.benchmarks["sums"].facts["bare"]["mean_tokens"].value == 13.5
    grpo = {name: fact.value for name, fact in found.facts["grpo"].items()}
    assert grpo["both_outcomes"] == pytest.approx(0.75)
    assert grpo["tokens_per_second"] == pytest.approx(300)
    assert {name: grpo[name] for name in ("minutes", "processor_hours", "gpu_hours", "kwh", "run_minutes")} == {
        "minutes": 45.0,
        "processor_hours": 1.0,
        "gpu_hours": 1.5,
        "kwh": None,
        "run_minutes": 60.0,
    }
    assert "each counted once: 3.5 h, 4 processor-hours, 6 GPU-hours, energy unknown." in " ".join(
        printed(found).split()
    )
    assert grpo["logp_mixed"] is None
    assert list(found.curves["reward"]) == ["grpo", "ngrpo"]
    line = found.curves["reward"]["grpo"]
    assert line.x == list(range(1, 13))
    assert all(low <= mean <= high for low, mean, high in zip(line.low, line.mean, line.high, strict=True))
    row = next(line for line in printed(found).splitlines() if "tokens/s" in line)
    assert row.split()[-3:] == ["300", "300", "–"]


def test_an_arm_that_failed_for_some_seeds_counts_with_the_others_and_the_report_says_so(tmp_path, arms):
    arms[1] = replace(arms[1], runs=arms[1].runs[:2], failed={2: "the loss is not finite"})
    lost = Arm("soft", (), {0: "no memory"})
    found = compare([*arms, lost], **SETTINGS)
    assert found.benchmarks["sums"].differences["ngrpo"]["mean@8"].seeds == [0, 1]
    assert found.seeds == {"grpo": [0, 1, 2], "ngrpo": [0, 1], "soft": []}
    page = text_of(page_of(found, tmp_path))
    for text in (page, " ".join(printed(found).split())):
        assert "ngrpo failed with seed 2 (the loss is not finite); its other 2 count." in text
        assert "soft failed with seed 0 (no memory); it has no other run and is left out." in text
        assert "ngrpo is paired with grpo by seeds 0, 1, which both have." in text
    with pytest.raises(ConfigError, match="no run of the baseline soft has an evaluation"):
        compare([*arms, lost], **SETTINGS | {"baseline": "soft"})


def test_with_one_seed_the_problems_alone_are_compared_and_it_is_said(tmp_path):
    arms = [arm_of(tmp_path, "grpo", 0.4, 1), arm_of(tmp_path, "ngrpo", 0.5, 1)]
    found = compare(arms, **SETTINGS)
    difference = found.benchmarks["sums"].differences["ngrpo"]["mean@8"]
    assert (difference.seeds, difference.seed_interval, difference.sign_flip_p) == ([0], None, None)
    assert any("over problems alone and say nothing of another training run" in note for note in found.notes)
    assert "problems alone" in text_of(page_of(found, tmp_path))


def test_arms_without_a_common_seed_are_paired_by_problem(tmp_path):
    arms = [Arm(name, (run_of(tmp_path, name, seed, {"sums": counts_of(0.5, name, seed)}),)) for name, seed in
            (("grpo", 0), ("ngrpo", 7))]  # fmt: skip
    found = compare(arms, **SETTINGS)
    assert found.benchmarks["sums"].differences["ngrpo"]["mean@8"].seeds == []
    assert found.benchmarks["sums"].solved["ngrpo"] is None
    assert any("share no seed" in note for note in found.notes)


def test_eight_seeds_have_a_sign_flip_test(tmp_path):
    arms = [arm_of(tmp_path, name, skill, 8, size=5) for name, skill in (("grpo", 0.3), ("ngrpo", 0.7))]
    found = compare(arms, **SETTINGS)
    assert found.benchmarks["sums"].differences["ngrpo"]["mean@8"].sign_flip_p == 2 / 256
    assert not any("sign-flip" in note for note in found.notes)


@pytest.mark.parametrize(("counts", "seeds"), [([N] * 6, 3), ([0] * 6, 1), ([N], 1), ([3], 2), ([N] * 6, 9)])
def test_nothing_is_nan_where_nothing_varies(tmp_path, counts, seeds):
    arms = [
        Arm(name, tuple(run_of(tmp_path, name, seed, {"sums": counts}) for seed in range(seeds)))
        for name in ("grpo", "k1")
    ]
    found = compare(arms, **SETTINGS)
    page = page_of(found, tmp_path)
    tree = json.loads((tmp_path / "comparison.json").read_text(), parse_constant=pytest.fail)
    assert tree["benchmarks"]["sums"]["differences"]["k1"]["mean@8"]["value"] == 0
    for text in (page, printed(found)):
        assert not re.search(r"\b(nan|inf)\b", text, re.IGNORECASE)
    assert any("one problem" in note for note in found.notes) == (len(counts) == 1)


@pytest.mark.parametrize(
    ("protocol", "words"),
    [
        ({"grader": "other"}, "differ in their graders"),
        ({"sampling": {"samples": 9}}, "differ in their sampling settings"),
        ({"problems": "other"}, "differ in their problems or gold answers"),
    ],
)
def test_runs_that_were_not_measured_alike_are_refused_as_promotion_refuses_them(tmp_path, arms, protocol, words):
    other = arm_of(tmp_path, "k1", 0.5, 2, **protocol)
    with pytest.raises(
        ConfigError, match=f"grpo with seed 0 and of k1 with seed 0 on sums {words}; evaluate both alike"
    ):
        compare([*arms, other], **SETTINGS)


def test_a_run_that_does_not_say_how_it_was_measured_is_refused(arms):
    del arms[1].runs[2].evaluation["protocols"]
    with pytest.raises(ConfigError, match="ngrpo with seed 2 on sums differ in their protocol"):
        compare(arms, **SETTINGS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"baseline": "other"}, "baseline 'other' is not an arm: choose one of grpo, ngrpo"),
        ({"benchmark": "aime"}, "benchmark 'aime' was not measured in all runs: choose one of sums"),
        ({"measure": "pass@9"}, "measure 'pass@9': K is at most the 8 samples"),
        ({"measure": "best"}, "measure 'best': choose mean, maj, pass@K or best@K"),
        ({"margin": 0.0}, "margin of equivalence 0: it must be a positive number"),
        ({"margin": math.nan}, "margin of equivalence nan"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line(arms, change, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as refusal:
        compare(arms, **SETTINGS | change)
    assert "\n" not in str(refusal.value)


def test_two_arms_of_one_name_and_two_runs_of_one_seed_are_refused(arms):
    with pytest.raises(ConfigError, match="two arms are called 'grpo'"):
        compare([arms[0], arms[0]], **SETTINGS)
    with pytest.raises(ConfigError, match="arm grpo has two runs with seed 0"):
        compare([replace(arms[0], runs=arms[0].runs[:1] * 2), arms[1]], **SETTINGS)


def test_a_benchmark_that_not_all_measured_is_left_out_and_named(tmp_path, arms):
    counts = {"sums": counts_of(0.5, "k1", 0), "words": [3, 4]}
    found = compare([*arms, Arm("k1", (run_of(tmp_path, "k1", 0, counts),))], **SETTINGS)
    assert list(found.benchmarks) == ["sums"]
    assert "Left out, for not all runs measured them: words." in found.notes


def test_published_numbers_stand_beside_ours_under_the_name_of_their_estimator(tmp_path, arms):
    published = {"base": {"sums": {"best@8": 41.19}}, "grpo": {"sums": {"mean@32": 21.35}}}
    found = compare(arms, **SETTINGS, published=published)
    ours = found.benchmarks["sums"].references["base"]["best@8"]
    page = text_of(page_of(found, tmp_path))
    assert f"base best@8 41.19 {ours:.2f}" in page
    assert "grpo mean@32 21.35 –" in page, "ours has 8 samples"
    assert "best@k is 1 − (1 − c/n) k , which papers often call pass@k" in page


def test_tables_hold_at_80_columns_and_cut_nothing(tmp_path, arms):
    several = [
        *arms,
        *(arm_of(tmp_path, f"a-rather-long-name-{number}", 0.4, 2) for number in range(4)),
    ]
    text = printed(compare(several, **SETTINGS | {"measure": "pass@8"}))
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "undecided" in text
    assert "better" in text or "equivalent" in text or "worse" in text or "undecided" in text


def test_the_page_needs_nothing_else_escapes_names_and_is_fit_for_a_phone_and_print(tmp_path):
    arms = [
        arm_of(tmp_path, "grpo", 0.4, 2, trained=True),
        replace(arm_of(tmp_path, "other", 0.5, 2, trained=True), name="<script>alert(1)</script>"),
    ]
    page = page_of(compare(arms, **SETTINGS), tmp_path)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"https?://|\bsrc=|@import", page)
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert "default-src 'none'" in page
    assert "@media print" in page
    assert page.count("<table>") == page.count('<div class="scroll"><table>')
    dashes = re.findall(r"\.curve\.arm\d \{ stroke: var\(--arm\d\); stroke-dasharray: ([\d. a-z]+);", page)
    assert len(set(dashes)) == len(dashes) == 10, "lines are told apart without their colour"
    for lines in re.findall(r"<svg viewBox[^>]*aria-label=\"([^\"]+)\"", page):
        assert lines


def test_the_json_has_every_number_of_the_comparison(tmp_path, arms):
    found = compare(arms, **SETTINGS)
    write_comparison(found, tmp_path)
    tree = json.loads((tmp_path / "comparison.json").read_text())
    assert tree["layout"] == 1
    difference = found.benchmarks["sums"].differences["ngrpo"]["pass@8"]
    assert tree["benchmarks"]["sums"]["differences"]["ngrpo"]["pass@8"]["interval"] == list(difference.interval)
    assert tree["benchmarks"]["sums"]["arms"]["grpo"]["mean@8"]["by_seed"].keys() == {"0", "1", "2"}
