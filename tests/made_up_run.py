"""A finished run whose artifacts are made up: the layouts of the real ones, with numbers that are known."""

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ngrpo.config import load_config
from ngrpo.evaluation.gate import Measured, compare
from ngrpo.evaluation.results import benchmark_result
from ngrpo.evaluation.verdicts import SAMPLES
from ngrpo.report.page import write_report
from ngrpo.stages.declarations import STAGES

PRESETS = Path(__file__).parents[1] / "pipelines" / "presets"
N = 16
PROBLEMS = 120


class Run:
    """A run whose artifacts can be changed before its report is written."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.config = load_config(PRESETS / "tiny.toml", ["evaluation.bootstrap_draws=500"])
        self.artifacts = {name: directory / name for name in STAGES}
        for name, path in self.artifacts.items():
            path.mkdir()
            inputs = {source: key(stage) for source, stage in STAGES[name].inputs.items()}
            self.write(name, "manifest.json", {"stage": name, "code_version": "c0de" * 16, "inputs": inputs})
        seconds = {name: float(10 * index) for index, name in enumerate(STAGES, start=1)}
        self.summary = {
            "preset": "tiny",
            "seed": 0,
            "wall_seconds": sum(seconds.values()) - 10 + 8,
            "stages": {
                name: {
                    "seconds": 0.0 if name == "prepare_data" else seconds[name],
                    "peak_memory_bytes": 0 if name == "prepare_data" else 512_000_000,
                    "cached": name == "prepare_data",
                    "key": key(name),
                    "artifact": f"s3://ngrpo/artifacts/{name}/{key(name)}/",
                }
                for name in STAGES
            },
            "mlflow": {"tracking_uri": "sqlite:////home/somebody/outputs/mlflow.db", "run_id": "1234abcd"},
        }
        self.evaluation = {"layout": 1, "models": {"base": {}, "warm_start": {}, "trained": {}}}
        self.write_sources()
        self.write_index()
        self.write_training()
        self.write_benchmark("arithmetic", 0.7, 0.96)
        self.write_promotion()

    def write(self, stage: str, name: str, value: object) -> None:
        (self.artifacts[stage] / name).write_text(json.dumps(value))

    def write_sources(self) -> None:
        source = {"kind": "arithmetic", "fold": "train", "size": 2000}
        tables = {"train.parquet": {"source": source, "rows": 2000, "sha256": "5a" * 32}}
        self.write("prepare_data", "sources.json", {"layout": 1, "tables": tables})

    def write_index(self, token: str = " then", **changes: object) -> None:
        """An index of 54 tokens; all its tokens but one digit are `token`."""
        description = {
            "metric": "cosine",
            "vocabulary": 61,
            "eligible": 54,
            "candidates": 32,
            "examples": [{"token": token, "neighbors": [{"token": "7", "similarity": 0.8125}]}],
            "nearest": {"edges": [0.1, 0.4, 0.7, 1.0], "counts": [30, 0, 24], "median": 0.3},
            "hubness": {"edges": [0, 1, 10, 100, 1000], "counts": [3, 5, 46, 0, 0]},
            "hubs": [{"token": token, "times": 53}],
            "closest": [{"tokens": [token, "7"], "similarity": 0.99321}],
            "near_duplicates": 2,
        }
        self.write("neighbor_index", "neighbors.json", description | changes)

    def write_training(self, steps: int = 30) -> None:
        noise = random.Random(0)
        loss = [
            {"step": step, "loss": 3 / (1 + step / 40) + noise.random() / 20, "epoch": 0.1}
            for step in range(10, 601, 10)
        ]
        self.write(
            "sft_warm_start", "log_history.json", [*loss, {"step": 600, "train_runtime": 60.0, "train_loss": 0.3}]
        )
        history = [
            {
                "step": step,
                "loss": noise.gauss(0, 0.01),
                "reward": 0.7 + 0.25 * step / steps + noise.gauss(0, 0.02),
                "kl": 0.002 * step + noise.random() / 1000,
                "entropy": 0.5 - 0.3 * step / steps + noise.gauss(0, 0.01),
                "completions/mean_length": 19 + 10 * step / steps + noise.gauss(0, 0.3),
                "mixing/gate_rate": 0.08 + noise.gauss(0, 0.003),
                "mixing/anchor_cosine": 0.97 + noise.gauss(0, 0.002),
                "mixing/anchor_cosine_min": 0.6 + 0.001 * step,
                "mismatch/unmixed_mean": 0.01 + noise.random() / 1000,
                "mismatch/unmixed_p99": 0.04 + noise.random() / 1000,
                "mismatch/mixed_mean": 0.007 + noise.random() / 1000,
                "diversity/distinct_answers": 0.4 - 0.2 * step / steps,
                "diversity/distinct_4grams": 0.5 - 0.2 * step / steps,
            }
            for step in range(1, steps + 1)
        ]
        history += [{"step": step, "eval_mean": 0.6 + 0.05 * (step == 20)} for step in (10, 20, 30)]
        self.write("ngrpo_training", "log_history.json", history)
        self.write("ngrpo_training", "metrics.json", {"selected_step": 20})
        counts = [0] * 50
        counts[10:13] = [5, 0, 20]
        counts[43:50] = [100, 125, 300, 450, 1000, 1500, 6500]  # [44] is 0.94 to 0.95
        edges = [round(0.5 + 0.01 * step, 2) for step in range(51)]
        self.write("ngrpo_training", "anchor_cosine_histogram.json", {"edges": edges, "counts": counts})
        digits = [str(number) for number in range(10)]
        examples = [
            {
                "token": token,
                "neighbors": [
                    {"token": str((place + more) % 10), "similarity": 0.9 - more / 10} for more in range(1, 6)
                ],
            }
            for place, token in enumerate(digits)
        ]
        self.write("ngrpo_training", "example_neighbors.json", examples)
        self.write_rollouts([rollout(step, row) for step in (0, steps - 1) for row in range(4)])

    def write_rollouts(self, samples: list[dict]) -> None:
        self.write("ngrpo_training", "rollout_samples.json", samples)

    def write_benchmark(
        self, name: str, before: float, after: float, word: str = "", wrong_text: str = "", by_string: bool = False
    ) -> None:
        """Samples of the models, the base model a quarter as good as the warm start.

        Problem 7 is the hardest after training, its most frequent wrong answer is 99.
        """
        ids = [f"{name}-{number:03d}" for number in range(PROBLEMS)]
        prompts = [[{"role": "user", "content": f"{word} 3 + 4 + {number} ="}] for number in range(PROBLEMS)]
        answers = [str(7 + number) for number in range(PROBLEMS)]
        path = self.artifacts["prepare_data"] / "benchmarks" / f"{name}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"id": ids, "prompt": prompts, "answer": answers}), path)
        for model, skill in (("base", before / 4), ("warm_start", before), ("trained", after)):
            noise = random.Random(f"{model} {name}")
            rows = []
            for number, (problem, answer) in enumerate(zip(ids, answers, strict=True)):
                chance = min(1.0, skill + noise.uniform(-0.25, 0.25))
                for sample in range(N):
                    correct = noise.random() < chance
                    said = answer if correct else str(noise.randrange(100, 200)) if noise.random() < 0.9 else None
                    if number == 7 and model == "trained":
                        correct, said = sample == 3, answer if sample == 3 else "98" if sample < 3 else "99"
                    text = f"<think>first 3+4=7 then 7+{number}</think>\\boxed{{{said}}}" if said else "<think>3+"
                    rows.append(
                        {
                            "problem_id": problem,
                            "sample_id": sample,
                            "text": text if correct else f"sample {sample}: {wrong_text}{text}",
                            "tokens": 20 + noise.randrange(20),
                            "finish_reason": "stop" if said else "length",
                            "extracted": said,
                            "correct": correct,
                            "grader_error": None,
                            "string_match": correct and sample > 0 if by_string else None,
                        }
                    )
            table = pa.Table.from_pylist(rows, schema=SAMPLES)
            samples = self.artifacts["benchmark_evaluation"] / "samples" / model / f"{name}.parquet"
            samples.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, samples)
            self.evaluation["models"][model][name] = benchmark_result(table, self.config.evaluation, self.config.seed)
        self.write("benchmark_evaluation", "evaluation.json", self.evaluation)

    def write_champion(self, skill: float, **protocol: str) -> dict:
        """A champion that the candidate met and was put to the gate with; returns the verdict."""
        protocols = {"trained": {"arithmetic": {"problems": "p", "grader": "g"}}}
        self.evaluation["protocols"] = protocols
        self.write_benchmark("arithmetic", 0.7, skill)
        champion = json.loads(json.dumps(self.evaluation))
        champion["protocols"]["trained"]["arithmetic"] |= protocol
        self.write("model_promotion", "champion_evaluation.json", champion)
        self.write_benchmark("arithmetic", 0.7, 0.96)
        models = (
            Measured.of(of, "trained", name)
            for of, name in ((self.evaluation, "the candidate"), (champion, "the champion"))
        )
        verdict = compare(self.config.promotion, *models, self.config.seed)
        self.write_promotion(**verdict, version=3, champion_version=2)
        return verdict

    def write_promotion(self, **changes: object) -> None:
        promotion = {
            "layout": 1,
            "decision": "promoted",
            "reason": "there is no champion yet",
            "model": "ngrpo-tiny",
            "version": 1,
            "alias": "champion",
            "champion_version": None,
            "comparison": None,
        }
        self.write("model_promotion", "promotion.json", promotion | changes)

    def add_source(self, name: str, source: dict) -> None:
        benchmarks = {known: of.model_dump(mode="json") for known, of in self.config.data.benchmarks.items()}
        self.change(f"data.benchmarks={json.dumps(benchmarks | {name: source})}")

    def change(self, *overrides: str) -> None:
        self.config = load_config(PRESETS / "tiny.toml", ["evaluation.bootstrap_draws=500", *overrides])

    def report(self, *without: str) -> str:
        path = self.directory / "report.html"
        artifacts = {name: directory for name, directory in self.artifacts.items() if name not in without}
        write_report(path, summary=self.summary, config=self.config, artifacts=artifacts)
        return path.read_text(encoding="utf-8")


def key(stage: str) -> str:
    return stage.encode().hex()[:32].ljust(32, "0")


def rollout(step: int, row: int, repeats: int = 1) -> dict:
    tokens = ["<think>", "first", " 7", "+", "4", "=", "11", " then", " 11", "-", "2", "=", "9"] * repeats
    tokens += [" so", " 9", "</think>", "\\boxed{", "9", "}"]
    mixed = [index % 13 in (2 + row, 7) and index < 13 * repeats for index in range(len(tokens))]
    count = sum(mixed)
    return {
        "step": step,
        "prompt": f"7 + 4 - {row} =",
        "tokens": tokens,
        "mixed": mixed,
        "neighbors": [["4", "5", "6"]] * count,
        "weights": [[0.9, 0.07, 0.03], [0.5, 0.3, 0.2]] * (count // 2) + [[1.0, 0.0, 0.0]] * (count % 2),
        "reward": float(row % 2),
    }
