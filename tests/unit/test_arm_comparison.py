"""Comparisons of arms: numbers against the evaluations they come from, what is missing, what is refused, and what is drawn."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

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


# Correct ones of 8 samples: seeds, and of each the problems. `one` has a single problem.
BY_HAND = {
    "grpo": [[2, 5, 0, 8], [3, 4, 1, 8], [2, 6, 0, 7], [4, 5, 1, 8], [3, 5, 2, 8], [2, 4, 0, 8], [3, 6, 1, 7], [3, 5, 0, 8]],
    "ours": [[4, 5, 2, 8], [4, 6, 1, 8], [3, 7, 2, 8], [5, 6, 1, 8], [5, 5, 4, 8], [3, 6, 1, 7], [4, 6, 3, 8], [4, 6, 0, 8]],
    "same": [[2, 5, 1, 8], [3, 5, 1, 8], [3, 5, 0, 7], [3, 5, 1, 8], [3, 5, 1, 8], [2, 4, 1, 8], [3, 5, 1, 8], [3, 6, 0, 8]],
}  # fmt: skip


def test_the_numbers_of_a_small_case_are_those_of_scipy(tmp_path):
    def run(name, seed):
        counts = BY_HAND[name][seed]
        return run_of(tmp_path, name, seed, {"one": counts[:1], "sums": counts}, trained=False)

    arms = [Arm(name, tuple(run(name, seed) for seed in range(len(seeds)))) for name, seeds in BY_HAND.items()]
    found = compare(arms, **SETTINGS | {"margin": 12.0}).benchmarks
    values = {name: 100 * np.array(seeds) / N for name, seeds in BY_HAND.items()}
    for name in ("ours", "same"):
        table = values[name] - values["grpo"]
        one, sums = (found[benchmark].differences[name]["mean@8"] for benchmark in ("one", "sums"))

        # One problem: Student's paired test, and two one-sided ones against the margin.
        test = stats.ttest_rel(values[name][:, 0], values["grpo"][:, 0])
        sides = (
            stats.ttest_1samp(table[:, 0], -12, alternative="greater"),
            stats.ttest_1samp(table[:, 0], 12, alternative="less"),
        )
        assert one.p_value == pytest.approx(test.pvalue, rel=1e-6)
        assert one.interval == pytest.approx(test.confidence_interval(0.95), rel=1e-6)
        assert one.equivalence_p == pytest.approx(max(side.pvalue for side in sides), rel=1e-6)

        # Several: over seeds the same test of their means, and all patterns of signs.
        means = table.mean(axis=1)
        over_seeds = stats.ttest_1samp(means, 0.0)
        flipped = stats.permutation_test((means,), np.mean, permutation_type="samples", n_resamples=np.inf)
        assert sums.value == pytest.approx(table.mean())
        assert sums.seed_p == pytest.approx(over_seeds.pvalue, rel=1e-9)
        assert sums.seed_interval == pytest.approx(over_seeds.confidence_interval(0.95), rel=1e-9)
        assert sums.sign_flip_p == pytest.approx(flipped.pvalue)

        # Over both: draws of the sum of the two parts, where the mean squares of the layout say how much problems add.
        seeds, problems = table.shape
        rest = table - means[:, None] - table.mean(axis=0) + table.mean()
        within, between = (rest**2).sum() / ((seeds - 1) * (problems - 1)), seeds * table.mean(axis=0).var(ddof=1)
        added = np.sqrt(max(0.0, between - within) / between * problems / (problems - 1))
        random = np.random.default_rng(1)
        resampled = random.choice(table.mean(axis=0) - table.mean(), (200_000, problems)).mean(axis=1)
        draws = table.mean() + added * resampled + random.standard_t(seeds - 1, 200_000) * stats.sem(means)
        assert sums.interval == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.5)
        assert sums.p_value == pytest.approx(2 * min((draws < 0).mean(), (draws > 0).mean()), abs=0.01)
        assert sums.equivalence_p == pytest.approx(max((draws < -12).mean(), (draws > 12).mean()), abs=0.01)

    for benchmark in found.values():
        ours, same = (benchmark.differences[name]["mean@8"] for name in ("ours", "same"))
        small, large = sorted((ours, same), key=lambda each: each.p_value)
        assert small.holm_p == pytest.approx(min(1.0, 2 * small.p_value))
        assert large.holm_p == pytest.approx(max(large.p_value, small.holm_p))
        assert ours.holm_p < 0.05
        assert ours.verdict == "better"
        assert same.verdict == "equivalent"


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


def started_from(run, start):
    """The run as it would be if its training had started from the trained model of another."""
    models = run.evaluation["models"]
    began = start.evaluation["models"]["trained"]
    return replace(run, evaluation=run.evaluation | {"models": models | {"warm_start": began}})


def test_what_training_changed_is_paired_with_the_model_that_it_started_from(tmp_path, arms):
    grpo, ngrpo = arms
    pairs = list(zip(ngrpo.runs, grpo.runs, strict=True))
    trained = replace(ngrpo, runs=tuple(started_from(*pair) for pair in pairs))
    found = compare([grpo, trained], **SETTINGS | {"measure": "pass@4"})
    change = found.benchmarks["sums"].changes["ngrpo"]["pass@4"]
    after, before = (
        [
            np.mean(pass_at_k(list(run.evaluation["models"]["trained"]["sums"]["per_problem"].values()), N, 4))
            for run in of
        ]
        for of in zip(*pairs, strict=True)
    )
    assert change.value == pytest.approx(100 * (np.mean(after) - np.mean(before)))
    assert change.seed_p == pytest.approx(stats.ttest_rel(after, before).pvalue)
    assert change.interval[0] < change.value < change.interval[1]
    assert found.benchmarks["sums"].changes["grpo"]["pass@4"].value == 0.0, "training changed nothing"
    shown = f"{change.value:+.2f}", f"{change.interval[0]:+.2f} to {change.interval[1]:+.2f}"
    row = next(line for line in printed(found).split("what training changed")[1].splitlines() if shown[0] in line)
    assert shown[1] in row
    assert f"{shown[0]} [{shown[1]}]" in text_of(page_of(found, tmp_path)).replace("−", "-")


def test_an_arm_with_a_run_that_did_not_measure_its_start_has_no_change(arms):
    grpo, ngrpo = arms
    lacking = {name: of for name, of in ngrpo.runs[1].evaluation["models"].items() if name != "warm_start"}
    runs = list(ngrpo.runs)
    runs[1] = replace(runs[1], evaluation=runs[1].evaluation | {"models": lacking})
    found = compare([grpo, replace(ngrpo, runs=tuple(runs))], **SETTINGS)
    assert list(found.benchmarks["sums"].changes) == ["grpo"]


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


def test_arms_may_differ_in_the_mixing_that_samples_were_drawn_with_and_it_is_said(tmp_path, arms):
    mixing = {"sampling": {"samples": N, "mixing": {"strategy": "neighbor", "rate": 0.1}}}
    found = compare([*arms, arm_of(tmp_path, "inference", 0.4, 3, **mixing)], **SETTINGS)
    said = [note for note in found.notes if "evaluation.mixing" in note]
    assert said == [
        "The samples of inference were drawn with other mixing (evaluation.mixing) than those of grpo: their difference is that of the "
        "models and of this."
    ]
    hotter = {"sampling": mixing["sampling"] | {"temperature": 2.0}}
    with pytest.raises(ConfigError, match="differ in their sampling settings"):
        compare([*arms, arm_of(tmp_path, "hotter", 0.4, 3, **hotter)], **SETTINGS)


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
