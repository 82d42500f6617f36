import html
import json
import re
import subprocess
import sys
import tomllib
from statistics import fmean

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from made_up_run import PRESETS, PROBLEMS, STAGES, N, Run, key, rollout
from ngrpo.config import PromotionConfig, RunConfig, load_config, validate
from ngrpo.config.cluster import ClusterConfig
from ngrpo.evaluation.gate import Measured, compare
from ngrpo.evaluation.statistics import paired_difference
from ngrpo.report.last_run import LastRun
from ngrpo.report.lineage import settings_text
from ngrpo.report.page import write_report
from ngrpo.report.rollouts import rollout_views
from ngrpo.report.training import learning_curves
from page import Page, text_of

MODELS = ("base", "warm_start", "trained")
EVIL = "<script>alert(1)</script>"
HUB = {"kind": "hub", "id": "Idavidrein/gpqa", "revision": "0" * 40, "split": "train"}


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def test_the_table_has_every_number_of_the_evaluation(run):
    text = text_of(run.report())
    for model in MODELS:
        result = run.evaluation["models"][model]["arithmetic"]
        for value, (low, high) in [
            (result["mean"], result["mean_ci"]),
            (result["maj"], result["maj_ci"]),
            *((result["pass_at_k"][k], result["pass_at_k_ci"][k]) for k in result["pass_at_k"]),
            *((result["best_at_k"][k], result["best_at_k_ci"][k]) for k in result["best_at_k"]),
        ]:
            assert f"{100 * value:.1f} {100 * low:.1f} to {100 * high:.1f}" in text
        assert f"{result['mean_tokens']:.1f}" in text
        assert f"{100 * result['ungraded_rate']:.1f}" in text
    shares = (100 * run.evaluation["models"][model]["arithmetic"]["distinct_answers"] for model in MODELS)
    assert "different answers among samples, % {:.1f} {:.1f} {:.1f}".format(*shares) in text
    assert f"{PROBLEMS} problems, {N} samples each" in text


def test_the_headline_gives_both_means_and_their_paired_difference(run):
    before, after = (run.evaluation["models"][model]["arithmetic"] for model in ("warm_start", "trained"))
    found = re.search(
        r"seed 0 Promoted: version 1 of ngrpo-tiny is the champion\. Gain mean@16 on arithmetic: ([\d.]+) → ([\d.]+) %, "
        r"a difference of \+([\d.]+) points \(95 % interval \+([\d.]+) to \+([\d.]+)\) Champion there was none",
        text_of(run.report()),
    )
    counts = [[result["per_problem"][problem] / N for problem in before["per_problem"]] for result in (after, before)]
    difference = paired_difference(*counts, confidence=0.95, draws=500, seed=0)
    expected = [f"{100 * value:.1f}" for value in (before["mean"], after["mean"], *difference)]
    assert list(found.groups()) == expected


def test_the_page_says_where_the_weights_are_and_how_to_use_them(run):
    assert "ngrpo export latest DIR writes the model as files that transformers and vLLM load" in text_of(run.report())
    run.summary["promotion"] = {"alias": "champion", "version": 3}
    assert "ngrpo export champion DIR writes" in text_of(run.report())
    run.summary["promotion"]["alias"] = "challenger"
    assert "ngrpo export 3 DIR writes" in text_of(run.report())


def test_the_string_match_has_a_line_of_its_own(run):
    assert "by string match" not in text_of(run.report())
    run.change('evaluation.string_match=["arithmetic"]')
    run.write_benchmark("arithmetic", 0.7, 0.96, by_string=True)
    results = [run.evaluation["models"][model]["arithmetic"] for model in MODELS]
    ends = [(100 * result["string_match"], *(100 * end for end in result["string_match_ci"])) for result in results]
    shown = " ".join("{:.1f} {:.1f} to {:.1f}".format(*end) for end in ends)
    assert f"mean@16 by string match {shown}" in text_of(run.report())
    assert results[-1]["string_match"] < results[-1]["mean"]


def test_the_deciding_benchmark_comes_first(run):
    run.add_source("aaa", {"kind": "arithmetic", "fold": "held_out", "size": PROBLEMS})
    run.write_benchmark("aaa", 0.3, 0.4)
    page = run.report()
    assert re.findall("<h3>(arithmetic|aaa)</h3>", page) == ["arithmetic", "aaa"] * 2
    assert "mean@16 on arithmetic" in page


def test_the_curve_of_pass_at_k_ends_at_the_table_s_value(run):
    page = run.report()
    for model in MODELS:
        values = run.evaluation["models"][model]["arithmetic"]["pass_at_k"]
        for k in ("1", "4", "16"):
            assert f"<title>{k}: {100 * values[k]:.4g} %</title>" in page
    assert page.count('class="band') == 3


def test_without_a_warm_start_the_base_model_has_one_column_and_one_curve(run):
    run.change("warm_start.steps=0")
    del run.evaluation["models"]["base"]
    run.write("benchmark_evaluation", "evaluation.json", run.evaluation)
    page = run.report()
    assert page.count('class="band') == 2
    assert "base model trained gain mean@16" in text_of(page)


def test_the_champion_that_the_candidate_met_has_a_curve(run):
    run.write_champion(0.85)
    page = run.report()
    assert page.count('class="band') == 4
    champion = json.loads((run.artifacts["model_promotion"] / "champion_evaluation.json").read_text())
    value = champion["models"]["trained"]["arithmetic"]["pass_at_k"]["4"]
    assert f"<title>4: {100 * value:.4g} %</title>" in page
    text = text_of(page)
    assert "base model warm start trained champion, version 2 arithmetic: problems solved" in text
    assert "base model warm start trained champion, version 2 gain mean@16" in text
    low, high = champion["models"]["trained"]["arithmetic"]["mean_ci"]
    assert f"{100 * low:.1f} to {100 * high:.1f}" in text


def test_a_champion_that_was_not_asked_for_a_statistic_has_a_dash_for_it(run):
    run.write_champion(0.85)
    place = run.artifacts["model_promotion"] / "champion_evaluation.json"
    champion = json.loads(place.read_text())
    del champion["models"]["trained"]["arithmetic"]["pass_at_k"]["4"]
    run.write("model_promotion", place.name, champion)
    assert re.search(r"pass@4( [\d.]+ [\d.]+ to [\d.]+){3} – \+", text_of(run.report()))


def test_best_at_k_of_an_evaluation_of_an_earlier_version_follows_from_its_counts(run):
    expected = run.evaluation["models"]["trained"]["arithmetic"]["best_at_k"]["16"]
    for benchmarks in run.evaluation["models"].values():
        for field in ("best_at_k", "best_at_k_ci"):
            del benchmarks["arithmetic"][field]
    run.write("benchmark_evaluation", "evaluation.json", run.evaluation)
    text = text_of(run.report())
    assert re.search(rf"best@16 [\d.]+ [\d.]+ {100 * expected:.1f} [+−]", text)
    assert "best@k is 1 − (1 − c/n) k (with replacement)" in text


@pytest.mark.parametrize(
    ("protocol", "reason"),
    [
        ({"grader": "other"}, "was not measured alike: graders"),
        ({"problems": "other"}, "was not measured alike: problems or gold"),
    ],
)
def test_a_champion_that_was_measured_otherwise_has_none(run, protocol, reason):
    verdict = run.write_champion(0.85, **protocol)
    assert verdict["comparison"] is None
    page = run.report()
    assert page.count('class="band') == 3
    assert f"arithmetic has no curve of the champion, which {reason}" in text_of(page)
    assert "on each problem" not in page


def test_the_differences_that_decided_are_shown_problem_by_problem(run):
    verdict = run.write_champion(0.85)
    page = run.report()
    chart = page[page.index('aria-label="Candidate less the champion on each problem of arithmetic') :]
    chart = chart[: chart.index("</svg>")]
    bars = [float(title) for title in re.findall(r"<title>([+-][\d.]+)</title>", chart)]
    assert len(bars) == PROBLEMS
    assert bars == sorted(bars)
    assert fmean(bars) == pytest.approx(verdict["comparison"]["gain"], abs=0.05)
    better, worse = sum(bar > 0 for bar in bars), sum(bar < 0 for bar in bars)
    assert f"Better on {better} problems, worse on {worse}." in text_of(page)
    assert 0 < worse < better
    # The heights of mean and interval, against the axis that the bars stand on.
    zero = float(re.search(r'class="axis" d="M50 ([\d.]+)H', chart[chart.index("<rect") :])[1])
    top, height = map(float, re.search(r'class="gain" .*?y="([\d.]+)" .*?height="([\d.]+)"', chart).groups())
    mean = float(re.search(r'class="reference" d="M50 ([\d.]+)H', chart)[1])
    points = (zero - mean) / verdict["comparison"]["gain"]
    low, high = verdict["comparison"]["interval"]
    assert (zero - top, zero - top - height) == pytest.approx((points * high, points * low), abs=0.3)


def test_without_a_champion_the_opponent_is_the_warm_start(run):
    measured = run.evaluation | {
        "protocols": {model: {"arithmetic": {"grader": "g"}} for model in ("warm_start", "trained")}
    }
    models = (
        Measured.of(measured, model, name)
        for model, name in (("trained", "the candidate"), ("warm_start", "the warm start"))
    )
    run.write_promotion(**compare(run.config.promotion, *models, 0))
    page = run.report()
    assert "arithmetic: candidate less the warm start on each problem, points" in text_of(page)
    assert page.count('class="band') == 3


def test_what_models_and_data_say_is_escaped(run):
    hostile = rollout(0, 0)
    hostile |= {"prompt": EVIL, "tokens": [EVIL, *hostile["tokens"][1:]], "neighbors": [['"><img src=x>', EVIL]] * 2}
    hostile["weights"] = [[0.5, 0.5]] * 2
    run.write_rollouts([hostile])
    run.write_benchmark("arithmetic", 0.7, 0.9, word=EVIL, wrong_text=EVIL)
    run.write_promotion(reason=EVIL)
    examples = [{"token": EVIL, "neighbors": [{"token": EVIL, "similarity": 0.5}]}]
    run.write("ngrpo_training", "example_neighbors.json", examples)
    run.write_index(token=EVIL)
    page = run.report()
    tags = {tag for tag, _ in Page(page).elements}
    assert not tags & {"script", "img"}
    assert page.count("&lt;script&gt;") >= 7


def test_the_page_asks_for_nothing(run):
    page = run.report()
    parsed = Page(page)
    assert not {tag for tag, _ in parsed.elements} & {
        "script",
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "base",
        "form",
    }
    assert all(target.startswith("#") for target in parsed.attributes("href"))
    assert not [name for name in ("src", "srcset", "xlink:href", "action", "poster", "data") if parsed.attributes(name)]
    assert not re.search(r"https?:|url\(|@import", page)
    policy = {"http-equiv": "Content-Security-Policy", "content": "default-src 'none'; style-src 'unsafe-inline'"}
    assert ("meta", policy) in parsed.elements


def test_the_page_is_well_formed_and_its_links_lead_somewhere(run):
    parsed = Page(run.report())
    ids = parsed.attributes("id")
    assert len(ids) == len(set(ids)) == 13
    assert {f"#{identifier}" for identifier in ids} == set(parsed.attributes("href"))


@pytest.mark.parametrize(
    ("name", "source"), [("GPQA-diamond", {"kind": "arithmetic", "fold": "held_out", "size": 3}), ("science", HUB)]
)
def test_text_of_gpqa_is_left_out(run, name, source):
    run.add_source(name, source)
    run.write_benchmark(name, 0.3, 0.4, word="confidential question", wrong_text="confidential response")
    page = run.report()
    assert "confidential" not in page
    assert f"{name}-" not in page  # not even ids of its problems
    text = text_of(page)
    assert f"{name} Left out: the text of this benchmark may not be published." in text
    result = run.evaluation["models"]["trained"][name]
    assert f"{100 * result['mean']:.1f}" in text  # its numbers may be


def test_rollouts_on_gpqa_are_left_out(run):
    run.change(f"data.train={json.dumps(HUB)}")
    page = run.report()
    assert "7 + 4 - 0 =" not in page
    assert "the text of the training problems may not be published" in page


def test_neither_paths_nor_addresses_of_services_are_shown(run):
    local = HUB | {"id": str(run.directory / "mirror" / "physics")}
    run.add_source("physics", local)
    table = {"source": local, "rows": 3, "sha256": "5a" * 32}
    run.write("prepare_data", "sources.json", {"layout": 1, "tables": {"train.parquet": table}})
    run.summary["mlflow"]["tracking_uri"] = "https://user:hunter2@mlflow.example"
    page = run.report()
    assert str(run.directory) not in page
    assert "hunter2" not in page
    assert 'href="https://mlflow.example/#/' in page, "a link, without the user"
    assert page.count("local directory physics") == 2
    assert "1234abcd" in page


def test_several_training_sets_are_named_without_the_paths_of_own_files(run):
    sets = {
        "easy": {"kind": "files", "path": str(run.directory / "mine.csv")},
        "hard": {"kind": "files", "path": "s3://b/gpqa.csv", "weight": 3},
    }
    run.change(f"data.train={json.dumps(sets)}")
    table = {"source": sets, "rows": 3, "sha256": "5a" * 32}
    run.write("prepare_data", "sources.json", {"layout": 1, "tables": {"train.parquet": table}})
    page = run.report()
    assert str(run.directory) not in page
    assert "easy: files, path .../mine.csv; hard: files, path s3://b/gpqa.csv, weight 3" in page
    assert "the text of the training problems may not be published" in page  # one of the sets is GPQA


@pytest.mark.parametrize("stage", STAGES)
def test_a_missing_stage_leaves_a_note(run, stage):
    whole, partial = run.report(), run.report(stage)
    Page(partial)
    shown = stage != "sft_warm_start"
    assert (f"no node <code>{stage}</code>" in partial) == shown
    assert "no node <code>" not in whole
    assert partial != whole


def test_a_run_that_has_nothing_yet(run):
    text = text_of(run.report(*STAGES))
    assert "GRPO: tiny , seed 0" in text
    assert "mean@16" not in text


def test_mixed_tokens_are_marked_and_name_what_was_mixed(run):
    sample = rollout(0, 0)
    run.write_rollouts([sample])
    page = run.report()
    marked = re.findall(r'<b title="([^"]*)" style="background: rgb\(var\(--mark\) / ([\d.]+)\)">([^<]*)</b>', page)
    assert [token for _, _, token in marked] == [" 7", " then"]
    assert html.unescape(marked[0][0]) == "'4' 0.90 + '5' 0.07 + '6' 0.03"
    assert float(marked[0][1]) < float(marked[1][1])  # the neighbors weigh more there
    assert "&lt;think&gt;first<b" in page
    assert "2 of 19 tokens mixed" in text_of(page)


def test_noise_is_named_as_such(run):
    run.change("mixing.strategy=gaussian")
    sample = rollout(0, 0) | {"neighbors": [["4"], ["4"]], "weights": [[1.0], [1.0]]}
    run.write_rollouts([sample])
    page = run.report()
    assert 'title="noise added to the embedding"' in page
    assert "GRPO with Gaussian noise" in page
    assert "0.8813" not in page  # the paper's figures are of another strategy


def test_mixing_stands_beside_the_paper(run):
    text = text_of(run.report())
    history = json.loads((run.artifacts["ngrpo_training"] / "log_history.json").read_text())
    achieved = fmean(entry["mixing/gate_rate"] for entry in history if "mixing/gate_rate" in entry)
    assert f"Gate rate configured 10.00 %, achieved {100 * achieved:.2f} % of all response tokens" in text
    assert "lowest 0.6010 0.8813" in text
    assert "share below 0.95 2.5 % 1.2 %" in text  # 250 of 10,000
    assert "10,000 mixed steps" in text
    assert "'3' '4' 0.80 '5' 0.70" in text


def test_the_index_is_described(run):
    text = text_of(run.report())
    assert "54 of 61 tokens of the base model may be mixed; of each, the 32 nearest are kept" in text
    assert "2 have one with a cosine of 0.99 or more" in text
    assert "Most often a neighbor: ' then' 53" in text
    assert "Most alike: ' then' and '7' 0.9932" in text
    assert "never 3 1 to 9 times 5 10 to 99 times 46 100 to 999 times 0 1,000 times or more 0" in text
    assert "neighbors by cosine '0' '1' 0.80" in text, "what training made of them"
    assert "neighbors by cosine ' then' '7' 0.81" in text_of(run.report("ngrpo_training"))
    run.write_index(metric="l2", near_duplicates=None)
    text = text_of(run.report())
    assert "neighbors by Euclidean distance, negative" in text
    assert "cosine of 0.99" not in text


def test_without_mixing_the_page_says_so(run):
    run.change("mixing.strategy=token")
    path = run.artifacts["ngrpo_training"] / "log_history.json"
    history = [
        {name: value for name, value in entry.items() if not name.startswith(("mixing/", "mismatch/mixed"))}
        for entry in json.loads(path.read_text())
    ]
    path.write_text(json.dumps(history))
    run.write("ngrpo_training", "anchor_cosine_histogram.json", {"edges": [0.9, 0.95, 1.0], "counts": [0, 0]})
    run.write_rollouts([rollout(0, 0) | {"mixed": [False] * 19, "neighbors": [], "weights": []}])
    text = text_of(run.report())
    assert "Nothing was mixed: strategy token" in text
    missing = (
        "Mixed steps, % of response tokens; Cosine of mixture and anchor, mean; "
        "Log-probabilities, engine and trainer: mean difference on mixed steps."
    )
    assert f"Not logged in this run: {missing}" in text
    assert "N-GRPO" not in text


def test_long_rollouts_keep_the_page_small(run):
    run.write_rollouts([rollout(step, 0, repeats=630) for step in range(8)])
    run.write_benchmark("arithmetic", 0.7, 0.9, wrong_text="word " * 8000)
    page = run.report()
    assert len(page) < 1_000_000
    assert f"{630 * 13 + 6 - 600:,} tokens left out" in page
    assert "characters left out" in page
    assert page.count(" so 9&lt;/think&gt;\\boxed{9}</div>") == 8  # the end is there


def test_the_checkpoint_that_validation_chose_is_named(run):
    page = run.report()
    chart = page[page.index('aria-label="Validation, correct answers, %"') :]
    assert chart[: chart.index("</svg>")].count("<circle") == 3
    assert "is the checkpoint of step 20, the best on validation, which therefore proves nothing of it." in text_of(
        page
    )
    run.change("training.selection=null")
    (run.artifacts["ngrpo_training"] / "metrics.json").write_text("{}")
    page = run.report()
    assert "Validation, correct" not in page
    assert "No benchmark selected a checkpoint" in page
    assert "is the checkpoint of step" not in text_of(page)


def test_curves_skip_what_was_not_logged_as_a_number(run):
    path = run.artifacts["ngrpo_training"] / "log_history.json"
    history = json.loads(path.read_text())
    history[3]["kl"] = float("nan")
    del history[4]["kl"]
    path.write_text(json.dumps(history))
    page = run.report()
    assert "nan" not in page
    chart = page[page.index("KL divergence") :]
    chart = chart[: chart.index("</svg>")]
    assert chart.count("<circle") == 28
    assert "<title>6: " in chart
    assert "<title>5: " not in chart


def test_long_curves_are_averaged_and_say_so(run):
    run.write_training(steps=1000)
    page = run.report()
    assert page.count("Each point is the mean of 4 log entries.") == 11
    reward = re.search(r'aria-label="Reward, mean">.*?class="curve second" d="([^"]*)"', page)[1]
    assert len(re.findall("[ML]", reward)) == 250


def test_failures_show_the_hardest_problem_with_its_most_frequent_wrong_answer(run):
    text = text_of(run.report())
    card = text[text.index("arithmetic-007 ") :][:400]
    assert card.startswith("arithmetic-007 · right 1 of 16 times")
    assert "3 + 4 + 7 =" in card
    assert "sample 4: <think>" in card  # the first of the twelve that say 99
    assert "Right is 14 ; 99 in 12 of 15 wrong responses." in card
    assert text.index("arithmetic-007") == min(found.start() for found in re.finditer(r"arithmetic-\d{3}", text))


def test_a_benchmark_without_failures(run):
    run.write_benchmark("arithmetic", 0.7, 1.25)
    path = run.artifacts["benchmark_evaluation"] / "samples" / "trained" / "arithmetic.parquet"
    kept = pq.read_table(path).filter(pc.field("problem_id") != "arithmetic-007")
    pq.write_table(kept, path)
    run.evaluation["models"]["trained"]["arithmetic"]["per_problem"]["arithmetic-007"] = N
    run.write("benchmark_evaluation", "evaluation.json", run.evaluation)
    assert "No problem has a wrong response." in run.report()


def test_characters_that_html_or_utf8_do_not_know_are_replaced(run):
    run.write_rollouts([rollout(0, 0) | {"prompt": "a\x00b\x1bc\ud800d\u202ee\r\nf"}])
    page = (run.report(), (run.directory / "report.html").read_bytes())[1]
    assert "a\ufffdb\ufffdc?d\ufffde\r\nf".encode() in page


def test_a_model_that_was_not_promoted(run):
    # What the stage itself says of two models, so that the report cannot fall behind it.
    counts = {f"p{number}": 8 + number % 3 for number in range(PROBLEMS)}
    results = [{"per_problem": solved, "n_samples": 16} for solved in (counts, dict.fromkeys(counts, 9))]
    candidate, champion = (
        Measured(name, {"arithmetic": result, "words": result}, {"arithmetic": {}, "words": {}})
        for name, result in zip(("the candidate", "the champion"), results, strict=True)
    )
    gate = PromotionConfig(model_name="m", benchmark="arithmetic", tolerated_regression={"words": 2.5})
    verdict = compare(gate, candidate, champion, seed=0)
    run.write_promotion(**verdict, version=3, alias="challenger", champion_version=2)
    text = text_of(run.report())
    assert "Not promoted: version 3 of ngrpo-tiny is a challenger; version 2 stays the champion." in text
    assert verdict["decision"] == "kept"
    assert f"Why: {verdict['reason']}." in text
    assert "a loss of 2.50 is tolerated" in text
    assert re.search(r"sign-flip permutation test p = 0\.\d{4}, one-sided", text)
    assert f"points of mean@16 against the champion on the same {PROBLEMS} problems of arithmetic" in text
    assert re.search(r"two-sided 90 % interval −\d\.\d\d to \+\d\.\d\d", text)


def test_a_model_that_was_not_promoted_where_there_is_no_champion(run):
    run.write_promotion(decision="kept", alias="challenger", champion_version=None)
    assert "Not promoted: version 1 of ngrpo-tiny is a challenger; there is no champion." in text_of(run.report())


def test_lineage_and_timings(run):
    text = text_of(run.report())
    for name in STAGES:
        assert f"s3://ngrpo/artifacts/{name}/{key(name)}/" in text
    assert f"warm_start {key('sft_warm_start')[:12]} trained {key('ngrpo_training')[:12]}" in text
    assert "5 stages run, 1 from the cache" in text
    assert "prepare_data cached" in text
    assert "ngrpo_training 40.0 s" in text
    assert "outside the stages 8.0 s (3.8%)" in text
    assert "train 2,000 arithmetic, fold train, size 2000" in text


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "N-GRPO"),
        (["mixing.rate=0"], "GRPO"),
        (["mixing.strategy=token"], "GRPO"),
        (["mixing.k=1"], "GRPO with greedy steps"),
        (["mixing.strategy=soft"], "GRPO with soft thinking"),
        (["mixing.strategy=gumbel"], "GRPO with Gumbel soft thinking"),
        (["training.importance_sampling_level=sequence"], "N-GSPO"),
        (["mixing.strategy=gaussian", "training.importance_sampling_level=sequence"], "GSPO with Gaussian noise"),
    ],
)
def test_the_method_is_named_by_what_the_settings_make(run, overrides, name):
    run.change(*overrides)
    assert f"<title>{name}: tiny, seed 0</title>" in run.report()


@pytest.mark.parametrize("preset", sorted(PRESETS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_settings_are_whole(preset):
    config = load_config(preset)
    shown = tomllib.loads(settings_text(config))
    assert "cluster" not in shown, "the run is one on this machine"
    assert validate(RunConfig, shown) == config.model_copy(update={"cluster": ClusterConfig()})


def test_settings_show_no_code(tmp_path):
    (tmp_path / "rewards.py").write_text("def f(completions, **kwargs): return 'hidden text'")
    table = "[training.rewards.mine]\nfunction = 'rewards.py:f'"
    (tmp_path / "mine.toml").write_text(f"{(PRESETS / 'tiny.toml').read_text()}\n{table}")
    text = settings_text(load_config(tmp_path / "mine.toml"))
    assert 'function = "rewards.py:f"' in text
    assert "hidden text" not in text


def test_each_reward_has_a_curve_and_a_rollout_that_all_leave_out_has_none():
    config = load_config(PRESETS / "tiny.toml", ['training.rewards={"letter": {}, "format": {}}'])
    history = [
        {"step": step, "reward": 1.0, "rewards/letter/mean": 0.5, "rewards/format/mean": None} for step in (1, 2)
    ]
    panels, missing = learning_curves(history, config)
    assert [panel.title for panel in panels][:2] == ["Reward, mean", "Reward letter, mean"]
    assert "Reward format, mean" in missing
    sample = {"step": 0, "reward": None, "prompt": "p", "tokens": [], "mixed": [], "neighbors": [], "weights": []}
    assert rollout_views([sample])[0].reward is None


def test_settings_with_names_that_toml_must_quote():
    benchmarks = {"set 1.5": {"kind": "arithmetic", "fold": "held_out", "size": 3}}
    overrides = [f"data.benchmarks={json.dumps(benchmarks)}", "promotion.benchmark=set 1.5", "training.selection=null"]
    config = load_config(PRESETS / "tiny.toml", overrides)
    assert validate(RunConfig, tomllib.loads(settings_text(config))) == config


def test_importing_the_report_does_not_import_torch():
    code = "import sys, ngrpo.report.page; print({'torch', 'transformers', 'datasets', 'mlflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_benchmark_that_chose_the_checkpoint_stands_apart_from_the_test(run):
    run.write_benchmark("validation", 0.5, 0.9)
    page = run.report()
    results, validation = (page[page.index(f'<section id="{name}">') :] for name in ("results", "validation"))
    assert "<h3>validation</h3>" not in results[: results.index("</section>")]
    validation = validation[: validation.index("</section>")]
    assert re.findall("<h3>(.*)</h3>", validation) == ["validation"]
    assert "they prove nothing of the trained model" in validation
    assert page.index('id="results"') < page.index('id="promotion"') < page.index('id="validation"')


def test_mean_at_n_and_pass_at_1_are_one_row(run):
    text = text_of(run.report())
    assert text.count("mean@16 = pass@1") == 1
    assert not re.search(r"pass@1 [\d.]+ [\d.]+ to", text.replace("= pass@1", ""))
    assert re.search(r"pass@4 [\d.]+ [\d.]+ to", text)


def test_the_page_leads_to_the_logs_the_model_and_the_next_command(run):
    (run.directory / "logs").mkdir()
    (run.directory / "logs" / "ngrpo_training.log").touch()
    (run.artifacts["ngrpo_training"] / "model").mkdir()
    run.summary["promotion"] = {"decision": "promoted", "model": "m", "version": 4, "alias": "champion"}
    page = run.report()
    links = [target for target in Page(page).attributes("href") if not target.startswith("#")]
    assert links == ["ngrpo_training/model", "logs/ngrpo_training.log"]
    assert all((run.directory / link).exists() for link in links)
    assert "<code>ngrpo export champion DIR</code>" in page
    run.summary["promotion"] |= {"alias": "challenger"}
    assert "<code>ngrpo export 4 DIR</code>" in run.report()


def report_after(run, last: LastRun) -> str:
    path = run.directory / "report.html"
    write_report(path, summary=run.summary, config=run.config, artifacts=run.artifacts, last_run=last)
    return text_of(path.read_text(encoding="utf-8"))


def test_the_last_run_is_compared_if_it_was_measured_alike(run):
    protocols = {"trained": {"arithmetic": {"problems": "p", "grader": "g"}}}
    run.evaluation["protocols"] = protocols
    run.write_benchmark("arithmetic", 0.7, 0.8)
    before = json.loads(json.dumps(run.evaluation))
    run.write_benchmark("arithmetic", 0.7, 0.96)
    counts = [
        [of["models"]["trained"]["arithmetic"]["per_problem"][problem] / N for problem in sorted(run_ids(run))]
        for of in (run.evaluation, before)
    ]
    gain = fmean(counts[0]) - fmean(counts[1])
    found = re.search(
        r"Last run \+([\d.]+) points on arithmetic \(95 % interval \+([\d.]+) to \+([\d.]+)\) against 20261128-tiny",
        report_after(run, LastRun("20261128-tiny", before)),
    )
    mean, low, high = map(float, found.groups())
    assert mean == pytest.approx(100 * gain, abs=0.06)
    assert low < mean < high
    before["protocols"]["trained"]["arithmetic"] |= {"grader": "other"}
    assert "Last run earlier was not measured alike: graders" in report_after(run, LastRun("earlier", before))
    del before["models"]["trained"]["arithmetic"]
    assert "Last run earlier was not measured on arithmetic" in report_after(run, LastRun("earlier", before))


def run_ids(run) -> list[str]:
    return list(run.evaluation["models"]["trained"]["arithmetic"]["per_problem"])


def test_the_champion_that_was_met_is_named_first(run):
    verdict = run.write_champion(0.85)
    text = text_of(run.report())
    assert re.search(
        rf"Champion \+{verdict['comparison']['gain']:.1f} points of mean@16 against version 2 on arithmetic \(90 % interval",
        text,
    )


def test_what_training_changed_in_the_neighbors_is_one_table(run):
    examples = [{"token": "0", "neighbors": [{"token": each, "similarity": 0.6} for each in ("1", "2", "9")]}]
    run.write_index(examples=examples)
    page = run.report()
    assert text_of(page).count("neighbors by") == 1
    row = page[page.index("<td><code>&#39;0&#39;</code></td>") :]
    row = row[: row.index("</tr>")]
    assert re.findall(r"<(span|ins|del)><code>&#39;(\d)&#39;", row) == [
        ("span", "1"),
        ("span", "2"),
        ("ins", "3"),
        ("ins", "4"),
        ("ins", "5"),
        ("del", "9"),
    ]


def test_numbers_of_curves_and_mixtures_need_no_pointer(run):
    history = json.loads((run.artifacts["ngrpo_training"] / "log_history.json").read_text())
    rewards = [entry["reward"] for entry in history if "reward" in entry]
    text = text_of(run.report())
    assert f"Reward, mean {rewards[0]:.4g} → {rewards[-1]:.4g}" in text
    assert "7 '4' 0.90 + '5' 0.07 + '6' 0.03" in text


def test_the_gate_rate_is_that_of_the_tokens_that_may_be_mixed(run):
    path = run.artifacts["ngrpo_training"] / "log_history.json"
    history = [entry | {"mixing/eligible_gate_rate": 0.0991} for entry in json.loads(path.read_text())]
    path.write_text(json.dumps(history))
    assert "achieved 9.91 % of the tokens that may be mixed, 8." in text_of(run.report())


def test_every_node_is_shown_by_its_name(run):
    for stage in ("ngrpo_training", "benchmark_evaluation", "model_promotion"):
        run.artifacts[f"{stage}.other"] = run.artifacts[stage]
        run.summary["stages"][f"{stage}.other"] = run.summary["stages"][stage] | {"key": key(f"{stage}.o")}
    page = run.report()
    for stage in ("ngrpo_training", "benchmark_evaluation", "model_promotion"):
        for node in (stage, f"{stage}.other"):
            assert f'<p class="node"><code>{node}</code></p>' in page
    assert page.count("mean@16 = pass@1") == 2
    assert text_of(page).count("Reward, mean") == 2
    only = run.report("ngrpo_training", "benchmark_evaluation", "model_promotion")
    assert "no node <code>" not in only, "nodes that are not called like their stage"


def test_costs_are_shown_where_they_are_known(run):
    assert "Not recorded: the run is of an earlier version." in run.report()
    stage = {"hours": 0.5, "processor_hours": 2.0, "gpu_hours": 4.0, "kwh": 1.25, "money": 10.0, "tries": 2}
    run.summary["costs"] = {
        "currency": "CHF",
        "spent": {"in_words": "30.0 min, 4 GPU-hours, 10.00 CHF"},
        "saved": {"in_words": "1.0 h"},
        "unknown": ["prepare_data"],
        "stages": {
            "ngrpo_training": stage | {"saved": False},
            "neighbor_index": {"hours": 1.0, "tries": 1, "saved": True},
        },
        "point_gained": {"benchmark": "arithmetic", "in_words": "5 CHF"},
    }
    text = text_of(run.report())
    assert "Cost 30.0 min, 4 GPU-hours, 10.00 CHF; the cache saved 1.0 h A point gained on arithmetic: 5 CHF" in text
    assert "stage hours processor-hours GPU-hours kWh CHF tries" in text
    assert "ngrpo_training 0.500 2.000 4.00 1.25 10.00 2 spent" in text
    assert "neighbor_index 1.000 – – – – 1 saved by the cache" in text
    assert "their results are of an earlier version: prepare_data." in text
