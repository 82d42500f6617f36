"""The check of compiled pipelines: each broken graph is refused by the name of what is broken."""

import copy

import pytest
import yaml
from golden_ir import compiled
from kfp import components

from ngrpo_kfp.pipelines.kubeflow.graph_check import GraphError, check_graph


@pytest.fixture(scope="module")
def whole():
    return compiled("tiny")


@pytest.fixture
def graph(whole):
    return copy.deepcopy(whole)


def tasks(graph):
    return graph[0]["root"]["dag"]["tasks"]


def artifact(graph, task, name):
    return tasks(graph)[task]["inputs"]["artifacts"][name]["taskOutputArtifact"]


def component(graph, name):
    return graph[0]["components"][f"comp-{name}"]


def no_component(graph):
    tasks(graph)["sft-warm-start"]["componentRef"]["name"] = "comp-gone"


def no_executor(graph):
    del graph[0]["deploymentSpec"]["executors"]["exec-neighbor-index"]
    del graph[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-neighbor-index"]


def no_producer(graph):
    artifact(graph, "sft-warm-start", "dataset")["producerTask"] = "gone"


def no_artifact(graph):
    artifact(graph, "sft-warm-start", "dataset")["outputArtifactKey"] = "gone"


def no_parameter(graph):
    parameters = tasks(graph)["neighbor-index"]["inputs"]["parameters"]
    parameters["config"] = {"taskOutputParameter": {"producerTask": "prepare-data", "outputParameterKey": "gone"}}


def no_input_of_the_pipeline(graph):
    tasks(graph)["neighbor-index"]["inputs"]["parameters"]["key"] = {"componentInputParameter": "gone"}


def input_not_given(graph):
    del tasks(graph)["ngrpo-training"]["inputs"]["artifacts"]["neighbor_index"]


def input_not_declared(graph):
    artifacts = tasks(graph)["ngrpo-training"]["inputs"]["artifacts"]
    artifacts["gone"] = artifacts["dataset"]


def other_artifact_type(graph):
    artifact(graph, "ngrpo-training", "warm_start")["producerTask"] = "prepare-data"


def other_parameter_type(graph):
    component(graph, "neighbor-index")["inputDefinitions"]["parameters"]["config"]["parameterType"] = "BOOLEAN"


def circle(graph):
    tasks(graph)["prepare-data"]["dependentTasks"] = ["model-promotion"]


def two_tasks_of_one_result(graph):
    own, other = (tasks(graph)[name]["inputs"]["parameters"] for name in ("sft-warm-start", "neighbor-index"))
    own["key"] = copy.deepcopy(other["key"])


def no_dependent_task(graph):
    tasks(graph)["prepare-data"]["dependentTasks"] = ["gone"]


def named_condition(graph):
    outputs = component(graph, "prepare-data")["outputDefinitions"]
    outputs["parameters"] = {"enough": {"parameterType": "STRING"}}
    task = tasks(graph)["sft-warm-start"]
    component(graph, "sft-warm-start")["inputDefinitions"]["parameters"]["pipelinechannel--enough"] = {
        "parameterType": "STRING"
    }
    task["inputs"]["parameters"]["pipelinechannel--enough"] = {
        "taskOutputParameter": {"producerTask": "prepare-data", "outputParameterKey": "enough"}
    }
    task["triggerPolicy"] = {"condition": "inputs.parameter_values['pipelinechannel--enough'] == 'yes'"}


def condition_on_nothing(graph):
    tasks(graph)["sft-warm-start"]["triggerPolicy"] = {"condition": "inputs.parameter_values['gone'] == 'yes'"}


def image_by_tag(graph):
    graph[0]["deploymentSpec"]["executors"]["exec-neighbor-index"]["container"]["image"] = "ngrpo:1.0"


def installs(graph):
    graph[0]["deploymentSpec"]["executors"]["exec-neighbor-index"]["container"]["command"].append("pip install x")


def settings_of_nothing(graph):
    graph[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-gone"] = {}


BROKEN = {
    no_component: "root: task sft-warm-start: there is no component 'comp-gone'",
    no_executor: "component comp-neighbor-index: there is no executor 'exec-neighbor-index'",
    no_producer: "root: task sft-warm-start: input 'dataset': comes from 'gone', and there is no such task",
    no_artifact: "root: task sft-warm-start: input 'dataset': prepare-data has no artifact 'gone'",
    no_parameter: "root: task neighbor-index: input 'config': prepare-data has no parameter 'gone'",
    no_input_of_the_pipeline: "root: task neighbor-index: input 'key': the component has no parameter 'gone'",
    input_not_given: "root: task ngrpo-training: input 'neighbor_index' of its component is not given",
    input_not_declared: "root: task ngrpo-training: its component has no input 'gone' among its artifacts",
    other_artifact_type: "root: task ngrpo-training: input 'warm_start' is a system.Model but is given a system.Dataset",
    other_parameter_type: "root: task neighbor-index: input 'config' is a BOOLEAN but is given a STRING",
    circle: "root: tasks wait for one another: ",
    two_tasks_of_one_result: "root: task sft-warm-start: works on the result of neighbor-index: plan them as one",
    no_dependent_task: "root: task prepare-data: waits for 'gone', and there is no such task",
    named_condition: "root: task sft-warm-start: its condition reads the named output 'enough', which is always false",
    condition_on_nothing: "root: task sft-warm-start: its condition reads 'gone', which it is not given",
    image_by_tag: "executor exec-neighbor-index: image 'ngrpo:1.0' is not named by its digest",
    installs: "executor exec-neighbor-index: installs packages when it starts",
    settings_of_nothing: "platform kubernetes: there is no executor 'exec-gone'",
}


@pytest.mark.parametrize("break_it", BROKEN, ids=lambda function: function.__name__)
def test_a_broken_graph_is_refused_by_name(graph, break_it):
    check_graph(*graph)
    break_it(graph)
    with pytest.raises(GraphError) as failure:
        check_graph(*graph)
    assert f"compiled pipeline: {BROKEN[break_it]}" in str(failure.value)


@pytest.mark.parametrize(
    "break_it",
    [no_executor, no_producer, no_artifact, circle, other_artifact_type],
    ids=lambda function: function.__name__,
)
def test_kfp_itself_loads_such_a_graph(graph, break_it):
    """The reason for the check; if this fails, kfp now finds it too."""
    break_it(graph)
    components.load_component_from_text(yaml.safe_dump_all(graph))


def test_a_graph_within_a_graph_is_checked_too(graph):
    spec = graph[0]
    inner = {"dag": {"tasks": {"prepare-data": copy.deepcopy(tasks(graph)["prepare-data"])}}}
    spec["components"]["comp-inner"] = inner
    check_graph(*graph)
    inner["dag"]["tasks"]["prepare-data"]["dependentTasks"] = ["gone"]
    with pytest.raises(GraphError, match=r"comp-inner: task prepare-data: waits for 'gone'"):
        check_graph(*graph)
