"""The imports follow the architecture of the folders; `tests/architecture.py` defines what counts as an arrow."""

import ast
import re
from pathlib import Path

import pytest

from architecture import Architecture, circles, report, room
from ngrpo.stages.declarations import DECLARED, STAGES

# From the ground up. A room imports rooms of lines above its own; rooms on one line know nothing of each other.
ORDER = """
    ngrpo.errors ngrpo.section ngrpo.environment
    ngrpo.config
    ngrpo.storage
    ngrpo.user_code
    ngrpo.contracts
    ngrpo.notifications
    ngrpo.mixing
    ngrpo.neighbors
    ngrpo.grading
    ngrpo.data
    ngrpo.rollout
    ngrpo.evaluation
    ngrpo.training
    ngrpo.tracking
    ngrpo.signing
    ngrpo.ledger
    ngrpo.report
    ngrpo.library
    ngrpo.sizing
    ngrpo.checking
    ngrpo.drafting
    ngrpo.stages
    components.launching components.serving
    <stages>
    pipelines.post_training
    pipelines.planning
    pipelines.graph
    pipelines.local pipelines.kubeflow
    pipelines.cli
"""
COMPONENTS = " ".join(f"components.{stage}" for stage in DECLARED)
HEIGHT = {
    room: height
    for height, line in enumerate(ORDER.replace("<stages>", COMPONENTS).strip().splitlines())
    for room in line.split()
}


@pytest.fixture(scope="module")
def ours():
    return Architecture.of()


def test_every_room_has_its_place_in_the_order(ours):
    assert set(ours.rooms) - set(HEIGHT) == set(), "give a new room its line in ORDER"
    assert set(HEIGHT) - set(ours.rooms) == set(), "a room that is gone"


def test_imports_point_down(ours):
    assert [str(arrow) for arrow in ours.up(HEIGHT)] == []


def test_no_circle_among_rooms_and_none_among_modules(ours):
    assert (ours.circles_of_rooms, ours.circles_of_modules) == ([], []), report(ours)


def test_the_library_knows_neither_kfp_nor_kubernetes(ours):
    foreign = {"kfp", "kfp_kubernetes", "kubernetes", "kubeflow", "ngrpo_kfp"}
    assert [
        f"{name}:{line} imports {target}"
        for name, target, line in ours.imports
        if name.split(".")[0] == "ngrpo" and target.split(".")[0] in foreign
    ] == []


def checkout(root: Path, **files: str) -> Architecture:
    """Write the files of a checkout, `__` for `/`, and read it."""
    for name, text in files.items():
        path = root / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Architecture.of(root)


@pytest.mark.parametrize(
    "text",
    [
        "from ngrpo.report import page",
        "from ngrpo.report.page import write",
        "import ngrpo.report.page",
        "def f():\n    from ngrpo.report.page import write",
        "if TYPE_CHECKING:\n    from ngrpo.report.page import Page",
        "from ..report import page",
        "command = [python, '-m', 'ngrpo.report.page']",
        "load('ngrpo.report.page:write')",
        "load('ngrpo.report.page.Page')",
    ],
)
def test_every_way_to_a_module_is_an_arrow(tmp_path, text):
    found = checkout(tmp_path, components__ngrpo__training__loop=text, components__ngrpo__report__page="")
    assert [(arrow.source, arrow.target) for arrow in found.up(HEIGHT)] == [
        ("ngrpo.training.loop", "ngrpo.report.page")
    ]


def test_names_of_the_kubeflow_side_hide_no_circle(tmp_path):
    found = checkout(
        tmp_path,
        components__run_of_the_day__component="@dsl.component\ndef f():\n    import ngrpo_kfp.pipelines.kubeflow.client",
        pipelines__kubeflow__client="from ngrpo_kfp.components.run_of_the_day.component import f",
    )
    assert found.circles_of_rooms == [["components.run_of_the_day", "pipelines.kubeflow"]]
    assert len(found.circles_of_modules) == 1


def test_a_circle_is_every_node_on_it():
    assert circles({("a", "b"), ("b", "c"), ("c", "a"), ("c", "d"), ("e", "a")}) == [["a", "b", "c"]]
    assert circles({("a", "b"), ("b", "c")}) == []


def test_the_figures(ours):
    told = report(ours)
    assert re.match(rf"{len(ours.rooms)} rooms, \d+ modules, \d+ arrows between rooms", told), told
    print(told)


# --- what a stage takes from outside arrives as an argument (`ngrpo.stages.context`) ------------------------------------

# Who reads the environment below the stages, and why it is not an argument. Nothing else may.
READERS = {
    "ngrpo.environment": "takes passwords out of addresses and of what is shown: any variable may hold one",
    "ngrpo.notifications.webhooks": "the address of a webhook, which is a secret and so in no setting and no argument",
    "ngrpo.storage.service_faults": "names, in an error, the endpoint that boto3 reads",
    "ngrpo.storage.seaweed": "keeps requests to the embedded store from the proxy that boto3 and requests read",
    "ngrpo.ledger.devices": "CUDA's own list of GPUs, which are counted",
    "ngrpo.report.exposition": "where Prometheus may scrape this process, which no result depends on",
    "ngrpo.report.progress_lines": "whether it may: `prometheus_client` is not imported otherwise",
    "ngrpo.tracking.connection": "MLflow's own address and credentials, which its client reads too",
    "ngrpo.tracking.mlflow_runs": "MLflow's own name of the open run, which its client and the platform share",
    "ngrpo.tracking.cluster_parent_run": "the same, and the address of MLflow",
    "ngrpo.rollout.child_process": "CUDA's own list of GPUs, of which each child gets a part, and torchrun's number of processes",
    "ngrpo.evaluation.endpoint_client": "the token of a served model, which is to stand nowhere else",
    "ngrpo.rollout.vllm.engine": "sets defaults that vLLM reads when it is imported",
}


def reads_environment(path: Path) -> bool:
    """Whether a file names what holds the environment, by whatever way."""
    return any(
        (isinstance(node, ast.Attribute) and node.attr in ENVIRONMENT)
        or (isinstance(node, ast.Name) and node.id in ENVIRONMENT)
        or (isinstance(node, ast.ImportFrom) and any(alias.name in ENVIRONMENT for alias in node.names))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    )


ENVIRONMENT = {"environ", "environb", "getenv", "getenvb"}


def test_nothing_below_the_stages_reads_the_environment(ours):
    below = {
        name: path for name, path in ours.modules.items() if 0 <= HEIGHT.get(room(name), -1) < HEIGHT["ngrpo.stages"]
    }
    assert {name for name, path in below.items() if reads_environment(path)} == set(READERS)


def test_a_stage_reads_no_environment(ours):
    stages = {name: ours.modules[stage.module] for name, stage in STAGES.items()}
    assert [name for name, path in stages.items() if reads_environment(path)] == []
