"""What `ngrpo check` finds before anything runs, and how long it takes to refuse."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ngrpo.checking.examination import examine, examine_quickly
from ngrpo.checking.findings import Examination, refused
from ngrpo.checking.places import positions_of
from ngrpo.config import PrepareDataConfig, RunConfig, load_config, select
from ngrpo.data import initialized
from ngrpo.errors import ConfigError, DataError
from ngrpo.stages import prepare_data
from ngrpo.stages.context import Context
from ngrpo_kfp.pipelines.cli.app import main
from ngrpo_kfp.pipelines.cli.options import PRESETS
from own_job import POSITIONS, REWARDS, TEMPLATE, problems, write_csv, write_job, write_jsonl

PRESET = """
[model.source]
kind = "hub"
id = "{folder}/model"

[data]
max_prompt_tokens = 60

[data.train]
kind = "hub"
id = "{folder}/train"
split = "train"
problem_column = "question"

[data.benchmarks.own]
kind = "hub"
id = "{folder}/own"
split = "train"

[warm_start]
steps = 0

[rollout]
max_tokens = 60

[training]
steps = 1
prompts_per_batch = 2
micro_batch_size = 2
save_steps = 1

[evaluation]
samples = 1
pass_at = [1]
max_tokens = 60

[promotion]
benchmark = "own"
"""
PLAIN = [(question, worked.rpartition("#### ")[2]) for question, worked in problems(12)]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A job whose data lie in directories of the hub's layout."""
    folder = write_job(tmp_path_factory.mktemp("job"))
    for name, rows, columns in (
        ("train", PLAIN[:8], ("question", "answer")),
        ("own", PLAIN[8:], ("problem", "answer")),
    ):
        (folder / name).mkdir()
        write_csv(folder / name / "train.csv", rows, columns)
    return folder


@pytest.fixture
def job(written, tmp_path):
    folder = Path(shutil.copytree(written, tmp_path / "job"))
    (folder / "mine.toml").write_text(PRESET.format(folder=folder), encoding="utf-8")
    return folder


def config(job: Path, *overrides: str) -> RunConfig:
    return load_config(job / "mine.toml", overrides)


def edit(path: Path, **values: object) -> None:
    """Change entries of a JSON file; none removes one."""
    tree = json.loads(path.read_text()) | values
    path.write_text(json.dumps({name: value for name, value in tree.items() if value is not None}))


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def errors(examination: Examination) -> list[str]:
    return [finding.line for finding in examination.errors]


def test_a_sound_job_passes_and_its_first_prompt_is_shown(job):
    found = examine(config(job))
    assert [(finding.level, finding.line) for finding in found.findings if finding.level != "ok"] == []
    assert found.prompt == f"<|user|>{PLAIN[0][0]}<|end|><|assistant|>"
    said = {finding.subject: finding.found for finding in found.findings}
    assert f"{PLAIN[0][1]!r}, the gold answer, earns 1, and {PLAIN[1][1]!r} 0" in said["training.rewards.correctness"]
    assert str(POSITIONS) in said["rollout.max_tokens"]
    assert {"data.train", "data.benchmarks.own", "model.source", "mixing.end_marker"} <= set(said)


def test_the_tokenizer_of_tiny_is_refused_for_english(job):
    found = examine(config(job, 'model.source={"kind": "initialized"}'))
    (train, own) = [line for line in errors(found) if "cannot encode" in line]
    assert train.startswith("data.train: the base model's tokenizer cannot encode problem 'train-0'; choose a model")
    assert own.startswith("data.benchmarks.own: ")


def test_the_positions_of_a_model_with_random_weights_are_known_before_it_is_made(tmp_path):
    tiny = load_config(PRESETS / "tiny.toml", ["rollout.max_tokens=100000"])
    (line,) = [finding.line for finding in examine_quickly(tiny).errors]
    assert line.startswith(
        "rollout.max_tokens=100000 and a prompt: more than the model's 1024 positions; lower it to 1024 less"
    )
    initialized.write(tiny.model.source, tmp_path, weights=False)
    assert positions_of(tmp_path) == tiny.model.source.positions


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["rollout.max_tokens=128"],
            "rollout.max_tokens=128 and a prompt: more than the model's 128 positions; lower it to 128 less",
        ),
        (
            ["evaluation.max_tokens=128"],
            "evaluation.max_tokens=128 and a prompt: more than the model's 128 positions; lower it to 128 less",
        ),
        (["data.train.id=/nowhere"], "data.train: id='/nowhere': no such directory"),
        (["model.source.id=/nowhere"], "model.source: id='/nowhere': no such directory"),
    ],
)
def test_cheap_checks_refuse_without_looking_further(job, overrides, said):
    found = examine(config(job, *overrides))
    (line,) = errors(found)
    assert said in line
    assert found.unseen is not None
    assert found.prompt is None


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.train.problem_column=task"], "problem_column='task' is not one of its columns: question, answer"),
        (
            ["data.train.answer_column=question"],
            "data.train: the gold answer of 5 of 5 rows is more than an answer, for example 'Tom",
        ),
        (["data.train.split=validation"], "data.train: data set '"),
        (["rollout.max_tokens=125"], "rollout.max_tokens=125: with the longest prompt of data.train, "),
        (["evaluation.max_tokens=125"], "evaluation.max_tokens=125: with the longest prompt of data.benchmarks.own, "),
        (["data.max_prompt_tokens=5"], "data.max_prompt_tokens: 5 of 5 prompts are longer than 5 tokens, up to "),
        (['mixing.end_marker="<|user|>数"'], None),
    ],
)
def test_what_the_first_rows_show(job, overrides, said):
    found = examine(config(job, *overrides))
    assert errors(found) == [] if said is None else any(said in line for line in errors(found)), found.findings


def test_a_turn_that_ends_with_a_token_that_is_not_declared_is_said(job):
    edit(job / "model" / "generation_config.json", eos_token_id=0)
    edit(job / "model" / "tokenizer_config.json", eos_token="<|pad|>")
    found = examine(config(job))
    assert errors(found) == []
    assert any(
        "ends a turn with '<|end|>'" in finding.found for finding in found.findings if finding.level == "warning"
    )


def test_a_model_without_a_template_is_refused(job):
    (job / "model" / "chat_template.jinja").unlink()
    (line,) = errors(examine(config(job)))
    assert line.startswith("model.source: model '")
    assert line.endswith(
        "its tokenizer has no chat template; for a base model set model.chat_template='plain', or name a Jinja file there"
    )
    found = examine(config(job, "model.chat_template=plain"))
    assert errors(found) == []
    assert found.prompt == f"{PLAIN[0][0]}\n\n"


def test_adapters_for_layers_that_the_model_does_not_have_are_refused_before_anything_runs(job, tmp_path):
    wrong = config(job, 'training.lora={"targets": ["q_proj", "query"]}')
    said = "training.lora.targets=['q_proj', 'query']: the model has no linear layer 'query'; it has down_proj, gate_proj, "
    (line,) = errors(examine(wrong))
    assert line.startswith(said)
    (tmp_path / "output").mkdir()
    with pytest.raises(ConfigError) as failure:
        prepare_data.run(select(wrong, PrepareDataConfig), {}, tmp_path / "output", Context(tmp_path / "work"))
    assert str(failure.value) == line
    assert errors(examine(config(job, 'training.lora={"targets": ["q_proj", "mlp.down_proj"]}'))) == []
    unused = ['warm_start.lora={"targets": ["query"]}', "warm_start.steps=0"]
    assert errors(examine(config(job, *unused))) == [], "nothing is trained there"


def test_a_template_that_leaves_out_the_question_is_refused(job):
    (job / "model" / "chat_template.jinja").write_text(TEMPLATE.replace("{{ message['content'] }}", ""))
    (line,) = errors(examine(config(job)))
    assert "it leaves out the question" in line


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda model: (model / "config.json").unlink(), "has no config.json; save model and tokenizer there with"),
        (lambda model: (model / "config.json").write_text("[1]"), "config.json is not a JSON object; copy it again"),
        (lambda model: (model / "tokenizer.json").unlink(), "has no tokenizer (tokenizer.json or"),
        (
            lambda model: (model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid"),
            "model.safetensors is a pointer of Git LFS in place of the file; fetch it with `git lfs pull`",
        ),
        (
            lambda model: (model / "config.json").rename(model / "adapter_config.json"),
            "has no config.json; it is an adapter without its model: merge the two",
        ),
        (
            lambda model: shutil.copytree(model, f"{model}/checkpoint-5") and (model / "config.json").unlink(),
            "/checkpoint-5",
        ),
        (
            lambda model: (model / "model.safetensors").rename(model / "pytorch_model.bin"),
            "has no weights (*.safetensors); its weights are pickles, which are not read",
        ),
        (
            lambda model: edit(model / "config.json", auto_map={"AutoModel": "a.B"}),
            "it comes with custom code (auto_map",
        ),
        (
            lambda model: edit(model / "config.json", quantization_config={"quant_method": "gptq"}),
            "its weights are quantized (quantization_config in config.json, quant_method='gptq')",
        ),
        (
            lambda model: (model / "adapter_config.json").write_text("{}"),
            "an adapter (adapter_config.json) lies beside",
        ),
        (lambda model: halve(model / "model.safetensors"), "model.safetensors cannot be used: SafetensorError"),
        (lambda model: halve(model / "tokenizer.json"), "tokenizer.json cannot be used: JSONDecodeError"),
        (
            lambda model: (model / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}'),
            "no weights: b.safetensors missing; save the model with save_pretrained",
        ),
    ],
)
def test_a_directory_that_is_no_model_is_refused_at_once(job, damage, said):
    damage(job / "model")
    (line,) = errors(examine_quickly(config(job)))
    assert said in line


def test_rows_without_an_answer_are_a_warning_in_training_and_an_error_in_a_benchmark(job):
    rows = [{"problem": question, "question": question, "answer": answer} for question, answer in PLAIN[8:]]
    for name in ("train", "own"):
        (job / name / "train.csv").unlink()
        write_jsonl(job / name / "train.jsonl", [*rows, {"problem": "What?", "question": "What?", "answer": ""}])
    found = {finding.subject: finding for finding in examine(config(job)).findings}
    assert found["data.train"].level == "warning"
    assert found["data.benchmarks.own"].level == "error"
    assert "1 of 5 rows have no text or no answer, for example own-4" in found["data.benchmarks.own"].found


def test_worked_answers_are_no_answers(job):
    write_csv(job / "train" / "train.csv", problems(8))
    (line,) = errors(examine(config(job)))
    assert line.startswith("data.train: the gold answer of 5 of 5 rows is more than an answer, for example '")
    assert "#### " in line


def with_rewards(job: Path, table: str, code: str) -> RunConfig:
    (job / "rewards.py").write_text(code, encoding="utf-8")
    with (job / "mine.toml").open("a", encoding="utf-8") as file:
        file.write(table)
    return config(job)


def test_each_reward_is_called_with_the_gold_answer_and_a_wrong_one(job):
    table = """
[training.rewards.correctness]
[training.rewards.short]
function = "rewards.py:short"
[training.rewards.slow]
function = "rewards.py:slow"
"""
    code = REWARDS + "\n\nasync def slow(prompts, **kwargs):\n    return [None] * len(prompts)\n"
    found = examine(with_rewards(job, table, code))
    assert errors(found) == []
    said = {finding.subject: finding.found for finding in found.findings if finding.subject.startswith("training")}
    assert list(said) == ["training.rewards.correctness", "training.rewards.short", "training.rewards.slow"]
    assert "earns 0.0" in said["training.rewards.short"]
    assert "nothing (left out)" in said["training.rewards.slow"]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import absent_library\n\ndef f(**kwargs):\n    return []\n", "absent_library"),
        ("def f(completions, **kwargs):\n    return [1.0]\n", "returned 1 rewards for 2 samples"),
        ("def f(completions, **kwargs):\n    return [float('nan')] * 2\n", "returned nan"),
        ("def f(completions, **kwargs):\n    return 1 / 0\n", "ZeroDivisionError"),
        ("def f(completions):\n    return [1.0] * 2\n", "cannot be called as TRL does"),
    ],
)
def test_a_reward_that_would_fail_in_training_fails_here(job, code, said):
    found = examine(with_rewards(job, '[training.rewards.f]\nfunction = "rewards.py:f"\n', code))
    (line,) = errors(found)
    assert line.startswith("training.rewards.f: ")
    assert said in line


@pytest.mark.parametrize(
    ("table", "setting"),
    [
        ('[data.benchmarks.own.grading]\ncompare = "late.py:Late"', "data.benchmarks.own.grading.compare"),
        ('[evaluation.mixing]\nstrategy = "late.py:Late"', "evaluation.mixing.strategy"),
    ],
)
@pytest.mark.parametrize("code", ["import absent_library\nLate = 1", "Late = 1"])
def test_code_that_only_evaluation_runs_is_imported_here(job, table, setting, code):
    (job / "late.py").write_text(code)
    preset = job / "mine.toml"
    preset.write_text(f"{preset.read_text()}\n{table}\n")
    (line,) = errors(examine(config(job)))
    assert line.startswith(f"{setting}: function 'late.py:Late': ")
    if "absent" in code:
        assert "absent_library, which is not installed here" in line
        assert line.endswith("on a cluster add it to the image of the stage (images/)")


def test_a_place_without_a_table_is_one_that_is_here(job):
    (job / "empty").mkdir()
    (line,) = errors(examine(config(job, f'data.train={{"kind": "files", "path": "{job / "empty"}"}}')))
    assert "no table there" in line
    assert "digest" not in line


def test_a_reward_that_never_answers_is_one_line(job, monkeypatch):
    """As one does that waits for processes which cannot import its file."""
    monkeypatch.setattr("ngrpo.checking.rewards._SECONDS", 0.2)
    code = (
        "import threading\ndef f(completions, **kwargs):\n    try:\n        threading.Event().wait()\n"
        "    except Exception:\n        return [0.0] * len(completions)\n"
    )
    (line,) = errors(examine(with_rewards(job, '[training.rewards.f]\nfunction = "rewards.py:f"\n', code)))
    assert line.startswith("training.rewards.f: no answer within 0 s for two responses; ")
    assert "a spawned process cannot import the file" in line


def test_every_row_of_own_files_is_read(job):
    rows = [{"question": question, "answer": answer} for question, answer in PLAIN[:8]]
    path = job / "train" / "mine.jsonl"
    table = f'data.train={{"kind": "files", "path": "{path}", "problem_column": "question"}}'
    for cell, said in {
        "": (
            "warning",
            "data.train: 1 of 9 rows have no text or no answer, for example mine.jsonl:9; they will be dropped",
        ),
        "5 apples #### 5": (
            "warning",
            "data.train: the gold answer of 1 of 9 rows is more than an answer, for example '5 apples #### 5' (mine.jsonl:9)",
        ),
        "?": ("warning", "data.train: the gold answer of 1 of 9 rows cannot be read, for example '?' (mine.jsonl:9)"),
        (5,): (
            "error",
            "data.train: mine.jsonl, row 9, column 'answer' holds a list of 1 answers where one is expected",
        ),
    }.items():
        write_jsonl(path, [*rows, {"question": "What is the ninth?", "answer": cell}])
        found = [finding for finding in examine(config(job, table)).findings if finding.level != "ok"]
        assert [finding.level for finding in found] == [said[0]], found
        assert found[0].line.startswith(said[1])


def test_rewards_that_tell_nothing_apart_are_a_warning(job):
    code = "def f(completions, **kwargs):\n    return [1.0] * len(completions)\n"
    found = examine(with_rewards(job, '[training.rewards.f]\nfunction = "rewards.py:f"\n', code))
    (warning,) = [finding for finding in found.findings if finding.level == "warning"]
    assert warning.found.startswith("no reward distinguishes the gold answer")


def test_the_command_shows_a_table_and_ends_with_1_on_an_error(job, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["check", "--preset", str(job / "mine.toml"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["passed"]
    assert {finding["level"] for finding in record["findings"]} == {"ok"}
    assert record["prompt"].startswith("<|user|>Tom has")
    assert main(["check", "--preset", str(job / "mine.toml"), "--set", "model.source.id=/nowhere"]) == 1
    shown = capsys.readouterr().out
    assert "no such directory" in shown
    assert "1 error" in shown
    assert "were not checked" in shown


def test_what_a_reward_prints_is_not_among_the_findings(job, capsys):
    code = (
        "print('at import')\ndef f(completions, **kwargs):\n    print('at work')\n    return [1.0] * len(completions)\n"
    )
    with_rewards(job, '[training.rewards.f]\nfunction = "rewards.py:f"\n', code)
    assert main(["check", str(job / "mine.toml"), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["passed"]
    assert captured.err.split("\n")[:2] == ["at import", "at work"]


def test_a_refusal_imports_no_library_of_models(job):
    """Which would take seconds; the clock of a busy machine does not say so reliably."""
    code = (
        "import sys; from ngrpo_kfp.pipelines.cli.app import main; code = main(sys.argv[1:]); "
        "print([name for name in ('torch', 'transformers', 'datasets', 'kfp') if name in sys.modules], code)"
    )
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, "check", "--preset", "mine.toml", "--set", "data.train.id=./nowhere"],
        cwd=job,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.splitlines()[-1] == "[] 1"
    assert time.monotonic() - began < 30


def test_a_check_imports_nothing_that_it_has_no_use_for(job):
    code = (
        "import sys; from ngrpo_kfp.pipelines.cli.app import main; code = main(sys.argv[1:]); "
        "print([name for name in ('kfp', 'sklearn', 'trl', 'vllm') if name in sys.modules], code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "check", "mine.toml"], cwd=job, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.splitlines()[-1] == "[] 0"


def run(config: RunConfig) -> None:
    from ngrpo_kfp.pipelines.local import run_pipeline

    run_pipeline.run(config, None, None)


def submit(config: RunConfig) -> None:
    from ngrpo_kfp.pipelines.kubeflow import submission

    submission.submit(config, None, None, cache=None, name="mine")


def plan(config: RunConfig) -> None:
    from ngrpo_kfp.pipelines.local import run_pipeline

    run_pipeline.show_plan(config, None, None)


def dry_run(config: RunConfig) -> None:
    from ngrpo_kfp.pipelines.local import run_pipeline

    run_pipeline.dry_run(config, None, None)


@pytest.mark.parametrize("begin", [plan, dry_run, run, submit])
def test_plan_run_and_submit_begin_with_the_cheap_part(job, begin):
    """Nothing is there that they could start or send anything with."""
    with pytest.raises(ConfigError) as failure:
        begin(config(job, "rollout.max_tokens=128", "evaluation.max_tokens=500"))
    (rollouts, evaluation) = str(failure.value).splitlines()
    assert rollouts.startswith("rollout.max_tokens=128 and a prompt: more than the model's 128 positions; lower it")
    assert evaluation.startswith("evaluation.max_tokens=500 and a prompt: ")


def test_an_engine_that_cannot_serve_the_model_is_an_error_and_one_that_could_not_on_a_cluster_a_warning(job):
    source = f'model.source={{"kind": "directory", "path": "{job}/model"}}'
    edit(job / "model" / "config.json", architectures=None)
    (line,) = errors(examine(config(job, source, 'rollout.engine="vllm"')))
    assert "rollout.engine='vllm': model '" in line
    assert "has no architectures" in line
    edit(job / "model" / "config.json", architectures=["LlamaForCausalLM"])
    several = ["rollout.vllm.tensor_parallel_size=2", "resources.ngrpo_training.gpus=2"]
    found = examine(config(job, source, 'rollout.engine="vllm"', *several))
    assert errors(found) == []
    of_model = [finding for finding in found.findings if finding.subject == "model.source"]
    (warning,) = [finding.found for finding in of_model if finding.level == "warning"]
    assert (
        "on a cluster, rollout.engine='vllm': rollout.vllm.tensor_parallel_size=2 makes vLLM start worker processes"
        in warning
    )


@pytest.mark.parametrize(("setting", "stage"), [("rollout", "ngrpo_training"), ("evaluation", "benchmark_evaluation")])
def test_a_model_with_heads_that_vllm_lacks_on_a_processor_is_refused_at_once(monkeypatch, setting, stage):
    """The preset's model has head size 16."""
    vllm = f'{setting}.engine="vllm"'
    (line,) = errors(examine_quickly(load_config(PRESETS / "tiny.toml", [vllm])))
    assert line.startswith(f"{setting}.engine='vllm': the CPU build of vLLM has no attention with head size 16")
    assert line.endswith(f"set {setting}.engine='transformers', or give {stage} a GPU (resources.{stage}.gpus=1)")
    wide = load_config(PRESETS / "tiny.toml", [vllm, "model.source.heads=2"])
    with_a_gpu = load_config(PRESETS / "tiny.toml", [vllm, f"resources.{stage}.gpus=1"])
    for config in (wide, with_a_gpu):
        assert not [line for line in errors(examine_quickly(config)) if "heads of" in line]
    monkeypatch.setattr("ngrpo.checking.engine.metadata.version", lambda name: "2.13.0")
    assert errors(examine_quickly(load_config(PRESETS / "tiny.toml", [vllm]))) == []


def test_the_cure_of_an_error_is_what_follows_its_last_semicolon():
    finding = refused("data.train", DataError("a: no such thing; b; do that"))
    assert (finding.found, finding.cure) == ("a: no such thing; b", "do that")
    assert finding.line == "data.train: a: no such thing; b; do that"
    assert refused("x", DataError("x: bad")).line == "x: bad"
