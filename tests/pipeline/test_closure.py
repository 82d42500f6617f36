"""Each stage loads only modules that its key covers, and transparent modules cannot change what later stages read."""

import ast
import os
from pathlib import Path

import pytest
from traced_stages import PRESET, TracedStages

from ngrpo.stages import keys
from ngrpo.stages.declarations import STAGES
from ngrpo.storage.digest import file_sha256
from ngrpo.storage.manifest import FileEntry, Manifest

pytestmark = pytest.mark.pipeline

SETTINGS = (
    "training.steps=2",
    "data.benchmarks.arithmetic.size=2",
    "evaluation.max_tokens=8",
    "evaluation.bootstrap_draws=100",
    "promotion.model_name=traced",
)
INPUTS = {
    "prepare_data": {},
    "neighbor_index": {},
    "sft_warm_start": {"dataset": "prepare_data"},
    "ngrpo_training": {"dataset": "prepare_data", "neighbor_index": "neighbor_index", "warm_start": "sft_warm_start"},
    "benchmark_evaluation": {"dataset": "prepare_data", "warm_start": "sft_warm_start", "trained": "ngrpo_training"},
    "model_promotion": {"trained": "ngrpo_training", "evaluation": "benchmark_evaluation"},
}
READ = {
    "prepare_data": ["**/*"],
    "neighbor_index": ["index.safetensors", "index.json"],
    "sft_warm_start": ["model/**/*"],
    "ngrpo_training": ["model/**/*"],
    "benchmark_evaluation": ["samples/**/*", "evaluation.json"],
}
"""The files of each artifact that later stages read."""
NOT_SAVED = {"neighbors/files.py"}
"""An index that a stage builds and neither saves nor loads needs no files."""
SEPARATE = "rollout/separate_process.py"
"""The process that generates apart from training, where `rollout.placement` asks for one."""
DESCRIBES = {
    "neighbor_index": ["neighbors.json"],
    "ngrpo_training": ["rollout_samples.json", "example_neighbors.json", "log_history.json"],
}
"""Files that only the report and MLflow read: they are as the code was that wrote them, and no key says which."""


class Runs:
    """All stages, run once as they are and once with what is transparent replaced by something else."""

    def __init__(self, root: Path, store: str):
        self.root = root
        with TracedStages(root, {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{root / 'mlflow.db'}"}) as stages:
            for name in STAGES:
                self._run(stages, name, "as_is", store)
            for name in READ:
                self._run(stages, name, "changed", f"{store}-changed")
            stages.run(self._job("ngrpo.grading.worker", "as_is", store, ["ngrpo.grading.worker", "load"]))

    def output(self, stage: str, kind: str = "as_is") -> Path:
        return self.root / kind / stage

    def said(self, stage: str, kind: str) -> str:
        return (self.root / f"{stage}-{kind}.log").read_text()

    def loaded(self, name: str) -> set[tuple[str, str]]:
        """Return the modules of ours that were loaded, with the packages that they are in, each with every module that asked for it."""
        pairs = [line.split() for line in (self.root / f"{name}.trace").read_text().splitlines()]
        wholes = {
            (asker, ".".join(parts[:end]))
            for asker, module in pairs
            for parts in [module.split(".")]
            for end in range(1, len(parts) + 1)
        }
        return {(asker, module) for asker, module in wholes if keys._path(module, keys.PACKAGE)}

    def _run(self, stages: TracedStages, stage: str, kind: str, store: str) -> None:
        output = self.output(stage, kind)
        arguments = ["--preset", str(PRESET), "--output", str(output)]
        arguments += [part for setting in SETTINGS for part in ("--set", setting)]
        arguments += [
            part
            for name, producer in INPUTS[stage].items()
            for part in ("--input", f"{name}={self.output(producer, kind)}")
        ]
        stages.run(self._job(stage, kind, store, ["ngrpo.stages.standalone", "main", stage, arguments]))
        files = {path.relative_to(output).as_posix(): path for path in output.rglob("*") if path.is_file()}
        entries = {name: FileEntry(file_sha256(path), path.stat().st_size) for name, path in files.items()}
        manifest = Manifest(stage, stage, "c", "v", dict(INPUTS[stage]), entries)
        (output / "manifest.json").write_bytes(manifest.to_bytes())

    def _job(self, name: str, kind: str, store: str, call: list) -> dict:
        return {
            "call": call,
            "log": str(self.root / f"{name}-{kind}.log"),
            "trace": str(self.root / f"{name}.trace"),
            "environment": {"NGRPO_STORE": store},
            "changed": kind == "changed",
        }


@pytest.fixture(scope="module")
def runs(tmp_path_factory, s3):
    with pytest.MonkeyPatch.context() as patched:
        for name, value in s3.environment().items():
            patched.setenv(name, value)
        patched.delenv("MLFLOW_RUN_ID", raising=False)
        return Runs(tmp_path_factory.mktemp("stages"), "s3://ngrpo/traced")


def file_of(module):
    return keys._path(module, keys.PACKAGE).relative_to(keys.PACKAGE).as_posix()


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_stage_loads_is_in_its_key_or_transparent(runs, stage):
    covered = keys.source_files(STAGES[stage].module)
    loaded = runs.loaded(stage)
    assert STAGES[stage].module in {module for _, module in loaded}
    assert len(loaded) > 20
    # What only transparent modules ask for is as transparent as they are.
    aside = {asker for asker, _ in loaded if asker.startswith("ngrpo") and file_of(asker) not in covered}
    strange = [
        (asker, module)
        for asker, module in loaded
        if asker not in aside and file_of(module) not in covered and not keys._is_transparent(module)
    ]
    assert strange == []


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_loads_all_that_its_key_covers_but_what_other_settings_and_processes_load(runs, stage):
    """So an edit reruns no stage that does not use the file."""
    loaded = {file_of(module) for _, module in runs.loaded(stage)}
    in_workers = {file_of(module) for _, module in runs.loaded("ngrpo.grading.worker")}
    rest = set(keys.source_files(STAGES[stage].module)) - loaded - in_workers
    of_vllm = {file for file in rest if file.startswith(("rollout/vllm/", "rollout/fused/"))}
    assert rest - of_vllm <= {
        "rollout/request_tables.py",
        "rollout/slots.py",
        "rollout/transfers.py",
        SEPARATE,
        *NOT_SAVED,
    }


def test_what_a_grading_worker_loads_is_in_the_key_of_every_stage_that_grades(runs):
    loaded = {file_of(module) for _, module in runs.loaded("ngrpo.grading.worker")}
    assert "grading/comparison.py" in loaded
    for stage in ("prepare_data", "ngrpo_training", "benchmark_evaluation", "model_promotion"):
        assert loaded <= set(keys.source_files(STAGES[stage].module)), stage


def test_only_promotion_looks_at_what_was_tracked(runs):
    tracking = {stage: [module for _, module in runs.loaded(stage) if "ngrpo.tracking" in module] for stage in STAGES}
    assert tracking.pop("model_promotion")
    assert not any(tracking.values())
    assert not STAGES["model_promotion"].cacheable


@pytest.mark.parametrize("stage", READ)
def test_what_is_transparent_changes_no_byte_that_later_stages_read(runs, stage):
    contents = []
    for kind in ("as_is", "changed"):
        root = runs.output(stage, kind)
        files = {path for pattern in READ[stage] for path in root.glob(pattern) if path.is_file()}
        contents.append(
            {path.relative_to(root).as_posix(): path.read_bytes() for path in files if path.name != "manifest.json"}
        )
    assert contents[0].keys() == contents[1].keys()
    assert len(contents[0]) >= 2
    for name, data in contents[0].items():
        assert data == contents[1][name], name


def test_what_only_describes_did_change_and_other_lines_were_printed(runs):
    """Otherwise the previous test would have compared two equal things."""
    for stage, names in DESCRIBES.items():
        for name in names:
            assert (runs.output(stage) / name).read_bytes() != (runs.output(stage, "changed") / name).read_bytes(), name
    for stage in ("sft_warm_start", "ngrpo_training"):
        assert "another line" in runs.said(stage, "changed")
        assert "another line" not in runs.said(stage, "as_is")


def test_no_module_is_loaded_by_a_name_that_is_put_together():
    """The closure reads names; those that a program makes up it would not see."""
    allowed = {
        "stages/declarations.py": "the stage that is run: the root of a closure",
        "checking/light_imports.py": "libraries, each named in full by who puts its import off",
        "grading/worker.py": "modules of sympy, each named in full beside it",
        "user_code/loading.py": "functions of the user: texts of files are settings, a package counts with its version, and none is ours",
    }
    found = {}
    for path in keys.PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func).rpartition(".")[2]
            if name not in (
                "import_module",
                "__import__",
                "run_module",
                "run_path",
                "spec_from_file_location",
                "exec_module",
            ):
                continue
            text = node.args[0] if node.args else None
            whole = isinstance(text, ast.Constant) and isinstance(text.value, str) and not text.value.startswith(".")
            if not whole:
                found[path.relative_to(keys.PACKAGE).as_posix()] = ast.unparse(node)
    assert found.keys() == allowed.keys(), found


def test_no_entry_point_leads_into_the_library():
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert "entry-points" not in project, "vLLM and others load such modules unseen: name them where they are needed"
    assert not [target for target in project["scripts"].values() if target.startswith("ngrpo.")]


def test_what_is_read_beside_source_is_of_transparent_modules():
    """A template or table beside a module would change results that no key knows of."""
    others = [path for path in keys.PACKAGE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    packages = {
        ".".join(["ngrpo", *path.parent.relative_to(keys.PACKAGE).parts]) for path in others if path.name != "py.typed"
    }
    assert packages == {"ngrpo.report"}
    assert keys._is_transparent("ngrpo.report")
