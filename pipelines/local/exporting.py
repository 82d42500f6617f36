"""`ngrpo export`: write a verified model to a directory that transformers and vLLM load."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from rich.console import Console

from ngrpo.errors import ConfigError, DataError
from ngrpo.report.exported_card import Exported, exported_card, loading_lines
from ngrpo.report.phases import phase
from ngrpo.storage.digest import model_digest
from ngrpo.storage.whole_files import sync
from ngrpo_kfp.pipelines.local.named_model import NamedModel, adapter_files, named_model, require_name, settings_of
from ngrpo_kfp.pipelines.local.required_key import required_key
from ngrpo_kfp.pipelines.local.services import Services, services
from ngrpo_kfp.pipelines.local.vouched_model import require_verified, seal_of
from ngrpo_kfp.pipelines.local.workspace import Workspace, written

Dtype = Literal["bfloat16", "float16", "float32"]
_HUB = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_CARD = "README.md"
_WEIGHTS = "*.safetensors*"


@dataclass(frozen=True)
class Form:
    """Options of an export."""

    adapter: bool = False
    """Export only the adapter instead of the merged model."""
    dtype: str | None = None
    """dtype to convert the weights to; None keeps the evaluated files byte for byte."""
    hub: str | None = None
    """Repository of the Hugging Face hub to upload to as well, `org/name`."""
    for_vllm: bool = False
    """Pad attention heads with zeros if vLLM's CPU build does not support their size."""


def export_model(
    what: str, model_name: str | None, target: Path, form: Form, workspace: Workspace, console: Console
) -> None:
    """Write a model to a directory atomically, and print the lines that load it.

    Args:
        what: See `named_model`.
        model_name: The registered model; see `named_model`.
        target: Directory to write; it may exist if it is empty.
        form: Options of the export.
        workspace: Where runs and services are.
        console: Where the lines are printed.

    Raises:
        ConfigError: The target is not empty, the dtype or the name on the hub is invalid, options exclude each other, or there is no token
            for the hub.
        DataError: The model was not trained with adapters, its heads cannot be padded, its files changed during the export, or the hub
            refuses the upload.
        NGRPOError: See `named_model`.
    """
    require_name(what, model_name, workspace)
    _require_possible(target, form)
    with phase(console, "fetching the model"), services(workspace) as around:
        found = named_model(what, model_name, around, workspace)
        own = settings_of(found, workspace)
        require_verified(found, required_key(own, found.model_name, workspace).signing, around)
        source = _adapter(found, around, workspace) if form.adapter else found.directory
        factor = _factor(found.directory) if form.for_vllm else None
        card = _card(found)
        seal = seal_of(found, around)
    own_type = _dtype(found.directory)
    exported = Exported(
        model=found.model_name,
        version=None if found.version is None else int(found.version.version),
        digest=found.digest,
        adapter=form.adapter,
        dtype=form.dtype if form.dtype != own_type else None,
        place=form.hub or str(target.absolute()),
        in_float32=(form.dtype or own_type) == "float32",
        filled_up=factor is not None,
    )
    digest = model_digest(source) if form.adapter else found.digest
    with phase(console, "writing the files"), _whole(target) as partial:
        for path in sorted(source.rglob("*")):
            if path.is_file():
                copy = partial / path.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
        if model_digest(partial) != digest:
            raise DataError(f"{what}: its files in {source} changed while they were copied; export it again")
        if form.adapter:
            _add_tokenizer(found.directory, partial)
        elif exported.dtype is not None:
            _convert(found.directory, partial, exported.dtype)
        elif factor is not None:
            from ngrpo.data.wider_heads import write_wider

            write_wider(found.directory, partial, factor)
        if not form.adapter and exported.dtype is None and factor is None:  # the files that were signed
            for name, data in seal.items():
                (partial / name).write_bytes(data)
        (partial / _CARD).write_text(exported_card(exported, card), encoding="utf-8")
    version = "no version of" if exported.version is None else f"version {exported.version} of"
    console.print(
        f"exported  {what}, {version} {found.model_name}, sha256 {found.digest[:12]}", soft_wrap=True, markup=False
    )
    if form.hub is not None:
        console.print(f"uploading to {form.hub}", soft_wrap=True, markup=False)
        # On a terminal the hub's own bars show bytes, rate and time left; elsewhere each of their refreshes would be a line.
        with nullcontext() if console.is_terminal else phase(console, f"uploading to {form.hub}"):
            seen_by = _upload(
                target, form.hub, f"{found.model_name}, {what}, sha256 {found.digest}", bars=console.is_terminal
            )
        console.print(f"uploaded  {form.hub}, which is {seen_by}", soft_wrap=True, markup=False)
    with phase(console, "looking at what can load it"):  # torch, transformers and vLLM take a while to import
        import torch

        on_cpu = not torch.cuda.is_available()
        problem, cure = (None, None) if form.adapter else _vllm_problem(target, on_cpu=on_cpu)
    if cure is not None:
        problem = f"{problem}; `ngrpo export {what} DIR --for-vllm` pads them with zeros, as `ngrpo serve` does"
    console.print("\n".join(["", *loading_lines(exported, problem, on_cpu=on_cpu)]), soft_wrap=True, markup=False)


def _require_possible(target: Path, form: Form) -> None:
    """Refuse an impossible export before anything is started or fetched."""
    if not str(target).strip() or not str(target).isprintable():
        raise ConfigError(f"DIR {str(target)!r}: not a valid directory name; name another")
    try:
        if target.exists() and not target.is_dir():
            raise ConfigError(f"DIR {target}: a file; name a new directory")
        if target.is_dir() and any(target.iterdir()):
            raise ConfigError(f"DIR {target}: not empty; name a new directory, or empty it: nothing is written over")
        above = next(place for place in target.absolute().parents if place.exists())
        if not above.is_dir():
            raise ConfigError(f"DIR {target}: {above} is a file; name another directory")
    except (OSError, ValueError) as error:
        raise ConfigError(f"DIR {str(target)!r}: {error}; name another directory") from error
    if form.dtype is not None and form.dtype not in get_args(Dtype):
        raise ConfigError(
            f"--dtype {form.dtype}: not a dtype to convert to; choose one of {', '.join(get_args(Dtype))}"
        )
    if form.dtype is not None and form.adapter:
        raise ConfigError(
            "--dtype goes with the merged model: an adapter is kept as it was trained; leave out --adapter or --dtype"
        )
    if form.for_vllm and (form.dtype is not None or form.adapter):
        other = "--adapter" if form.adapter else "--dtype"
        raise ConfigError(f"--for-vllm goes with the merged model in its own type; leave out {other} or --for-vllm")
    if form.hub is None:
        return
    if not _HUB.fullmatch(form.hub):
        raise ConfigError(f"--hub {form.hub!r}: not a repository name; write org/name")
    from huggingface_hub import get_token

    if get_token() is None:
        raise ConfigError(f"--hub {form.hub}: no token; set HF_TOKEN to one that may write there")


def _adapter(found: NamedModel, around: Services, workspace: Workspace) -> Path:
    """Return the adapter that was merged into a model, from the artifact of its training."""
    adapter = adapter_files(found, around, workspace)
    if adapter is None:
        raise DataError(
            f"{found.name}: no adapter is kept of it: it was trained with all its weights, or its run is no longer in the store; leave out "
            "--adapter: the model itself has everything"
        )
    return adapter


def _card(found: NamedModel) -> str | None:
    if found.version is None:
        return None
    from ngrpo.tracking.model_registry import ModelRegistry

    return ModelRegistry(found.model_name).card(found.version)


def _dtype(directory: Path) -> str | None:
    """Return the dtype of a model's weights from its configuration."""
    dtype: str | None = json.loads((directory / "config.json").read_bytes()).get("dtype")
    return dtype


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """Yield a directory beside the target that replaces the target if the body raises no error."""
    target = target.absolute()
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    with written(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        try:
            yield partial
            for path in partial.rglob("*"):
                sync(path)
            partial.rename(target)  # fails if the target has been filled in the meantime
            sync(target.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _add_tokenizer(model: Path, directory: Path) -> None:
    """Put the tokenizer and the template of a model beside an adapter."""
    for path in model.iterdir():
        if path.is_file() and not path.match(_WEIGHTS) and path.name not in ("config.json", "generation_config.json"):
            shutil.copyfile(path, directory / path.name)


def _convert(model: Path, directory: Path, dtype: str) -> None:
    """Write the weights of a model in another dtype; weights that transformers always keeps in float32 are not converted."""
    from transformers.utils.logging import disable_progress_bar

    from ngrpo.data.model_directory import read_model

    disable_progress_bar()
    for path in directory.glob(_WEIGHTS):
        path.unlink()
    scratch = directory / ".converted"
    read_model(model, f"model directory {model}", dtype).save_pretrained(scratch)
    for path in [scratch / "config.json", *scratch.glob(_WEIGHTS)]:
        path.replace(directory / path.name)
    shutil.rmtree(scratch)


def _factor(directory: Path) -> int | None:
    """Return the factor by which heads must be widened for vLLM's CPU build, or None if it serves the unchanged model.

    Raises:
        DataError: It cannot serve the model, and wider heads do not help.
    """
    problem, factor = _vllm_problem(directory, on_cpu=True)
    if problem is not None and factor is None:
        raise DataError(f"--for-vllm: {problem}, and padding its heads does not help; export it without --for-vllm")
    return factor


def _vllm_problem(directory: Path, *, on_cpu: bool) -> tuple[str | None, int | None]:
    """Return why vLLM cannot serve a model, and the factor by which to widen its heads if that helps; None for no problem or factor."""
    from ngrpo.config.sections import VLLMConfig
    from ngrpo.data.model_class import outline
    from ngrpo.data.model_directory import read_config
    from ngrpo.data.vllm_service import Service, require_service
    from ngrpo.data.wider_heads import widening

    label = "the model"
    config = read_config(directory, label)
    service = Service(
        section="evaluation",
        stage="benchmark_evaluation",
        vllm=VLLMConfig(),
        dtype=_dtype(directory) or "float32",
        on_cpu=on_cpu,
        processes=1,
        processes_on_cluster=1,
        as_it_is=False,
    )
    try:
        require_service(outline(config, label), service, label)
    except DataError as error:
        # The cure in a run's settings does not apply here.
        problem = str(error).removeprefix(f"{service.engine}: {label}: ").rpartition("; ")[0]
        return problem, widening(config, service, label)
    return None, None


def _upload(directory: Path, hub: str, message: str, *, bars: bool) -> str:
    """Upload a directory to the hub in one commit, and return its visibility; a missing repository is created as private."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    from ngrpo.data.locations import explained

    with explained(
        f"--hub {hub}: not uploaded",
        f"the model is in {directory}: upload it again with `hf upload {hub} {directory}`, or check HF_TOKEN and the name",
    ):
        if not bars:
            disable_progress_bars()
        api = HfApi()
        api.create_repo(hub, private=True, exist_ok=True)
        private = api.model_info(hub).private
        api.upload_folder(repo_id=hub, folder_path=directory, commit_message=message)
    return "private" if private else "public: it was there before"
