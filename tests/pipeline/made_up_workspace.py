"""A workspace with made-up runs: their files, and artifacts in a real store."""

import hashlib
import json
import os
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path

from ngrpo.config import RunConfig, load_config
from ngrpo.stages.declarations import STAGES
from ngrpo.storage.manifest import FileEntry, Manifest
from ngrpo.storage.objects import ObjectStore
from ngrpo.storage.state import write_state
from ngrpo_kfp.pipelines.cli.options import PRESETS
from ngrpo_kfp.pipelines.local.workspace import Workspace

FIRST = datetime(2026, 1, 1)


class MadeUpWorkspace:
    """Runs, a day apart; those with the same letter share the results of a stage."""

    def __init__(self, root: Path, objects: ObjectStore | None = None):
        self.workspace = Workspace(root)
        self.objects = objects
        self.count = 0

    def key(self, stage: str, letter: str) -> str:
        return f"{stage.encode().hex()[:8]}{letter}".ljust(32, "0")

    def name(self, preset: str = "tiny") -> str:
        self.count += 1
        return f"{FIRST + timedelta(days=self.count):%Y%m%d-%H%M%S-%f}-{preset}"

    def run(self, letters: dict[str, str], *, until: str | None = None, made=None, folder="runs", **changes) -> Path:
        """Write a run; return its directory.

        Args:
            letters: By stage which result it has; `a` where a stage is not named.
            until: The stage that failed; none for a run that finished.
            made: The stages that ran, the others were cached; by default those with a letter of their own, all in a first run.
            folder: `runs` or `evaluations`.
            **changes: Of `config.json`, as `section__field`.
        """
        directory = self.workspace.root / folder / self.name()
        stages = {stage: self.key(stage, letters.get(stage, "a")) for stage in STAGES}
        made = (list(STAGES) if self.count == 1 else [*letters, "model_promotion"]) if made is None else made
        plan, failed = {}, False
        for stage, key in stages.items():
            inputs = {source: stages[of] for source, of in STAGES[stage].inputs.items()}
            plan[stage] = {"cached": stage not in made, "key": key, "config": {}, "sources": {}, "inputs": inputs}
            if failed or stage not in made:
                continue
            failed = stage == until
            record = {"key": key, "pid": 1, "cached": False, "seconds": 1.5}
            record |= (
                {"error": "it is broken"} if failed else {"artifact": f"s3://x/{stage}/{key}/", "digest": "0" * 64}
            )
            write_state(directory / "stages" / f"{stage}.json", record)
            (directory / "logs").mkdir(exist_ok=True)
            (directory / "logs" / f"{stage}.log").write_text(f"{stage} began\nstep 3/4 of {stage}\n")
            if not failed and self.objects is not None:
                self.publish(stage, key, inputs)
        write_state(directory / "plan.json", plan)
        overrides = [f"{name.replace('__', '.')}={value}" for name, value in changes.items()]
        config = _config(tuple(overrides))
        write_state(directory / "config.json", config.model_dump(mode="json"))
        if until is None:
            self.finish(directory, plan, config.promotion.model_name)
        return directory

    def finish(self, directory: Path, plan: dict, model: str) -> None:
        decision = {"decision": "promoted", "model": model, "version": self.count, "alias": "champion"}
        stages = {stage: {"key": node["key"], "artifact": f"s3://x/{stage}/"} for stage, node in plan.items()}
        mlflow = {"tracking_uri": "sqlite:///x", "run_id": "r"}
        summary = {"preset": "tiny", "stages": stages, "promotion": decision, "mlflow": mlflow, "wall_seconds": 61.0}
        write_state(directory / "summary.json", summary)
        self.workspace.set_latest(directory)

    def publish(self, stage: str, key: str, inputs: dict[str, str]) -> None:
        """Write an artifact of one file, as `ArtifactStore.publish` leaves it."""
        data = f"{stage} {key}".encode()
        entry = FileEntry(hashlib.sha256(data).hexdigest(), len(data))
        manifest = Manifest(stage, key, "c", "v", inputs, {"payload.txt": entry})
        self.objects.put_bytes(data, f"{stage}/{key}/payload.txt")
        self.objects.put_bytes(manifest.to_bytes(), f"{stage}/{key}/manifest.json")

    def copy(self, stage: str, letter: str, **files: object) -> Path:
        """Write the local copy of an artifact, with a manifest that says 1000 bytes."""
        place = self.workspace.cache / stage / self.key(stage, letter)
        place.mkdir(parents=True)
        (place / "manifest.json").write_text(json.dumps({"files": {"payload.txt": {"size": 1000}}}))
        for name, content in files.items():
            (place / f"{name}.json").write_text(json.dumps(content))
        return place

    def work(self, stage: str, letter: str, *, checkpoint: bool) -> Path:
        """Write the work directory of an unfinished stage."""
        place = self.workspace.work / stage / self.key(stage, letter)
        (place / "output").mkdir(parents=True)
        (place / "output" / "half").write_text("half")
        (place / "work").mkdir()
        if checkpoint:
            (place / "work" / "checkpoint-3").mkdir()
            (place / "work" / "checkpoint-3" / "weights").write_text("weights")
        return place


@cache
def _config(overrides: tuple[str, ...]) -> RunConfig:
    return load_config(PRESETS / "tiny.toml", overrides)


def tree(root: Path, *but: str) -> dict[str, bytes]:
    """Every file below a directory, except locks and the named ones."""
    return {
        os.path.relpath(path, root): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "lock" not in path.name and not path.name.startswith(but or ("\0",))
    }
