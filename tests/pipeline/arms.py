"""A pipeline with arms: one warm start, from which each arm trains with settings of its own and is evaluated; nothing is promoted."""

ARMS = {"short": 10, "long": 20, "again": 10}
"""Steps of each arm."""


def arms(stage):
    dataset = stage("prepare_data")
    index = stage("neighbor_index")
    warm_start = stage("sft_warm_start", dataset=dataset)
    for arm, steps in ARMS.items():
        settings = {"training.steps": steps}
        trained = stage(
            "ngrpo_training", arm, settings=settings, dataset=dataset, neighbor_index=index, warm_start=warm_start
        )
        stage("benchmark_evaluation", arm, dataset=dataset, warm_start=warm_start, trained=trained)
