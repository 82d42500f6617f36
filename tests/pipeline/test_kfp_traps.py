"""The traps of kfp.local 2.17: each test shows the trap in stock kfp, and that ngrpo's runtime avoids it.

If the first half of a test fails, kfp has changed, and a workaround may be removed.
"""

import subprocess
import sys
import textwrap

import pytest
from small_house import CACHEABLE, STAGES

pytestmark = pytest.mark.pipeline


@pytest.fixture
def stock(tmp_path):
    """Run a few lines of stock kfp in a process of their own; returns what happened."""

    def run(source: str, **settings: str) -> subprocess.CompletedProcess[str]:
        options = "".join(f", {name}={value!r}" for name, value in settings.items())
        script = tmp_path / "stock.py"
        script.write_text(
            "import sys\n"
            "from kfp import dsl, local\n"
            "local.init(local.SubprocessRunner(use_venv=False), "
            f"pipeline_root={str(tmp_path / 'kfp')!r}{options})\n"
            "component = dsl.component(packages_to_install=[], install_kfp_package=False)\n" + textwrap.dedent(source)
        )
        return subprocess.run(
            [sys.executable, script], capture_output=True, text=True, timeout=60, cwd=tmp_path, errors="replace"
        )

    return run


@pytest.fixture
def compiled(finished_house, tmp_path):
    """Return the pipeline of a first run as kfp compiles it, as text."""
    script = """
        import sys
        from pathlib import Path
        from kfp import compiler
        from ngrpo.config import load_config
        from ngrpo_kfp.pipelines.planning.nodes import History
        from ngrpo_kfp.pipelines.planning.plan import make_plan
        from ngrpo_kfp.pipelines.graph import kubeflow_pipeline
        config = load_config(Path(sys.argv[1]))
        plan = make_plan(config, run="r", store=None, rerun_tokens={}, history=History())
        compiler.Compiler().compile(kubeflow_pipeline(plan), "pipeline.yaml")
    """
    environment = finished_house.environment
    command = [sys.executable, "-c", textwrap.dedent(script), finished_house.root / "small.toml"]
    subprocess.run(command, check=True, env=environment, cwd=tmp_path, timeout=60)
    return (tmp_path / "pipeline.yaml").read_text()


def test_1_a_condition_on_a_named_output_is_silently_false(stock, compiled):
    seen = stock("""
        from typing import NamedTuple
        @component
        def gate() -> NamedTuple("Outputs", [("answer", str)]):
            return ("yes",)
        @component
        def act():
            print("acted")
        @dsl.pipeline
        def pipeline():
            task = gate()
            with dsl.If(task.outputs["answer"] == "yes"):
                act()
        pipeline()
    """)
    assert seen.returncode == 0
    assert "acted" not in seen.stdout
    # What runs is decided when planning: there are no conditions in our pipeline.
    assert "triggerPolicy" not in compiled


@pytest.mark.long
def test_2_a_metrics_output_has_no_file(stock, tmp_path, finished_house):
    seen = stock("""
        @component
        def measure(metrics: dsl.Output[dsl.Metrics]):
            metrics.log_metric("value", 1.5)
        @dsl.pipeline
        def pipeline():
            measure()
        pipeline()
    """)
    assert seen.returncode == 0
    assert not list((tmp_path / "kfp").glob("*/measure/metrics"))
    for stage in STAGES:
        (metrics,) = (finished_house.last_run / "kfp").glob(f"*/{stage.replace('_', '-')}/metrics")
        assert metrics.read_text() == '{"value": 1.5}'
        (artifact,) = (finished_house.last_run / "kfp").glob(f"*/{stage.replace('_', '-')}/artifact")
        assert "s3://" in artifact.read_text()


@pytest.mark.long
def test_3_the_cache_does_not_see_a_change_of_an_imported_module(stock, tmp_path, house):
    source = f"""
        sys.path.insert(0, {str(tmp_path)!r})
        @component
        def work(folder: str) -> str:
            import sys
            sys.path.insert(0, folder)
            import helper
            return helper.VALUE
        @dsl.pipeline
        def pipeline() -> str:
            return work(folder={str(tmp_path)!r}).output
        print("value:", pipeline().output)
    """
    (tmp_path / "helper.py").write_text("VALUE = 'old'")
    assert "value: old" in stock(source, enable_caching=True).stdout
    (tmp_path / "helper.py").write_text("VALUE = 'new'")
    assert "value: old" in stock(source, enable_caching=True).stdout
    assert "cached" in house.ngrpo("plan").stdout
    with (house.root / "ngrpo" / "small_shared.py").open("a") as shared:
        shared.write("# another line\n")
    plan = house.ngrpo("plan", COLUMNS="200").stdout
    assert "cached" not in plan.replace("never cached", "")
    assert plan.count("code changed: ngrpo/small_shared.py") == len(CACHEABLE)


@pytest.mark.long
def test_4_a_retry_finds_what_the_failed_try_wrote(stock, tmp_path, house):
    seen = stock("""
        @component
        def work(out: dsl.Output[dsl.Artifact]):
            import os
            os.makedirs(out.path, exist_ok=True)
            open(os.path.join(out.path, f"file{len(os.listdir(out.path))}"), "w").close()
            assert len(os.listdir(out.path)) == 2
        @dsl.pipeline
        def pipeline():
            work().set_retry(2)
        pipeline()
    """)
    assert seen.returncode == 0
    assert len(list((tmp_path / "kfp").glob("*/work/out/*"))) == 2
    house.write_stage(
        "benchmark_evaluation",
        """
assert sorted(path.name for path in output.iterdir()) == ["metrics.json", "payload.txt"]
if "FAIL" in os.environ:
    (output / "half").write_text("written")
    raise ValueError("no")
""",
    )
    house.ngrpo("run", code=2, FAIL="1")
    assert list((house.home / "work").glob("benchmark_evaluation/*/output/half"))
    house.ngrpo("run")


@pytest.mark.long
def test_5_a_byte_that_is_not_utf8_kills_the_run(stock, house):
    seen = stock("""
        @component
        def shout():
            import os
            os.write(1, b"caf\\xe9\\n")
        @dsl.pipeline
        def pipeline():
            shout()
        pipeline()
    """)
    assert seen.returncode != 0
    assert "UnicodeDecodeError" in seen.stderr
    house.write_stage("benchmark_evaluation", "os.write(1, b'caf\\xe9\\n')\nos.write(2, b'\\xff\\xfe')")
    house.ngrpo("run")
    assert b"caf\xe9\n" in (house.last_run / "logs" / "benchmark_evaluation.log").read_bytes()


@pytest.mark.long
def test_6_a_workspace_that_is_passed_is_deleted(stock, tmp_path, house):
    """The other half of this trap, orphans, is `test_local_runtime.test_no_process_outlives_the_run`."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").write_text("")
    seen = stock(
        """
        @component
        def work():
            pass
        @dsl.pipeline
        def pipeline():
            work()
        pipeline()
        """,
        workspace_root=str(tmp_path / "mine"),
    )
    assert seen.returncode == 0
    assert not (tmp_path / "mine").exists()
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    (house.home / "precious").write_text("")
    house.write_stage("benchmark_evaluation")
    house.ngrpo("run", TMPDIR=str(scratch))
    assert (house.home / "precious").exists()
    assert (house.last_run / "kfp").exists()
    left = [path.name for path in scratch.iterdir() if path.is_dir()]
    assert left == [], "the directories in which kfp wraps each stage are not left behind either"


@pytest.mark.long
def test_7_every_refresh_of_a_progress_bar_is_a_line(stock, house):
    bar = "from tqdm import tqdm\nimport time\nfor _ in tqdm(range(40), mininterval={}):\n    time.sleep(0.02)"
    seen = stock(f"""
        @component
        def work():
{textwrap.indent(bar.format(0.01), " " * 12)}
        @dsl.pipeline
        def pipeline():
            work()
        pipeline()
    """)
    assert seen.returncode == 0
    assert seen.stdout.count("it/s") > 20
    house.write_stage("benchmark_evaluation", bar.replace(", mininterval={}", ""))
    house.ngrpo("run")
    log = (house.last_run / "logs" / "benchmark_evaluation.log").read_text()
    assert log.count("it/s") <= 3


def test_8_a_text_that_names_the_interpreter_is_changed_on_its_way_to_a_component(stock):
    source = """
        @component
        def say(text: str):
            print(f"<{text}>")
        say(text="written for python3")
    """
    assert "<written for python3>" not in stock(source).stdout
    ours = "from ngrpo_kfp.pipelines.local.kept_arguments import kept_arguments\nours = kept_arguments()\nours.__enter__()\n"
    assert "<written for python3>" in stock(ours + textwrap.dedent(source)).stdout


def test_components_install_nothing_at_run_time(compiled):
    assert "pip install" not in compiled
    assert "ngrpo.stages.step" in compiled
