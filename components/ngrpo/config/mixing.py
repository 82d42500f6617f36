"""Settings of mixing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, ValidationInfo, field_validator, model_validator

from ngrpo.config.code import UserCode
from ngrpo.config.sources import Option
from ngrpo.section import Coefficient, Flag, Line, Probability, Section, check_text, count, number, refuse, unless_set

READY_STRATEGIES = ("neighbor", "token", "gaussian", "soft", "gumbel")
FUSED_STRATEGIES = ("neighbor", "token")
"""Those that the kernels of a decode step on a GPU know (`ngrpo.rollout.fused`); `neighbor` with the label and the weights of the paper."""
_SETTINGS_OF = {
    "label": ("neighbor", "soft"),
    "weights": ("neighbor",),
    "gumbel_temperature": ("gumbel",),
    "noise_in_weights": ("gumbel",),
}
"""The ready strategies that a setting is for."""


class StrategyCode(UserCode):
    """A strategy of your own."""

    ready: ClassVar = READY_STRATEGIES


class MixingConfig(Section):
    """What happens on a gated decode step (equations 6-11)."""

    reference: StrategyCode | None = None
    """Set automatically: the code that `strategy` names, unless it is a built-in one."""
    strategy: Line = "neighbor"
    """`neighbor`: Semantic Neighbor Mixing (N-GRPO). `token`: no mixing (plain GRPO). `gaussian`: the step's token is
    sampled and noise is added to its embedding. `soft`: soft thinking, a mixture of the `k` most likely tokens. `gumbel`: soft
    thinking with Gumbel noise on the logits. Or a class of your own: `file.py:NAME`, a file relative to the preset, or
    `package.module:NAME`."""
    options: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], Option] = {}
    """Arguments of your own class, except `k` and `noise_std`, which it gets if it has arguments of these names."""
    rate: Probability = 0.1
    """Gate rate, rho of equation 11."""
    k: Annotated[int, count(1, 10_001)] = 3
    """Size of the candidate set, including the anchor (equation 8). With `neighbor` and 1, gated steps are greedy and nothing is
    mixed."""
    label: Literal["anchor", "sampled"] = unless_set("anchor")
    """`neighbor` and `soft`: the token that a mixed step emits, the most likely one or the sampled one (the authors' release)."""
    weights: Literal["softmax", "release"] = unless_set("softmax")
    """`neighbor` only: softmax of the candidates' logits (equation 9), or of their probabilities (the authors' release)."""
    noise_std: Coefficient = 0.1
    """`gaussian` only: standard deviation of the noise, relative to the root mean square of the token's embedding."""
    gumbel_temperature: Annotated[float, number(least=0.01, most=100.0)] = unless_set(0.5)
    """`gumbel` only: temperature of the weights."""
    noise_in_weights: Flag = unless_set(True)
    """`gumbel` only: whether the noise affects the weights too, or only the choice of the tokens."""
    end_marker: Annotated[str, Field(min_length=1, max_length=100), AfterValidator(check_text)] | None = "</think>"
    """Mixing ends once the rollout contains this text, however it is split into tokens; with none it never ends."""

    @model_validator(mode="before")
    @classmethod
    def _with_reference(cls, tree: Any) -> Any:
        """Read the code that a strategy names; what is wrong with it is said by `strategy` itself."""
        strategy = tree.get("strategy") if isinstance(tree, dict) else None
        if not isinstance(strategy, str) or ":" not in strategy or tree.get("reference") is not None:
            return tree
        try:
            found = StrategyCode.model_validate({"function": strategy})
        except ValidationError:
            return tree
        return tree | {"strategy": found.function, "reference": found}

    @field_validator("strategy", mode="before")
    @classmethod
    def _known(cls, strategy: Any, info: ValidationInfo) -> Any:
        found = info.data.get("reference", True)  # one that is wrong is no longer there, and has been told of
        if not isinstance(strategy, str) or strategy in READY_STRATEGIES or found is not None:
            return strategy
        if ":" in strategy:
            try:
                StrategyCode.model_validate({"function": strategy})
            except ValidationError as error:
                said = error.errors()[0]["msg"].removeprefix("Value error, ")
                raise ValueError(said.removeprefix(f"function={strategy!r}: ")) from error
        raise ValueError(
            "'neighbor', 'token', 'gaussian', 'soft' or 'gumbel', or a class of your own: file.py:NAME or package.module:NAME"
        )

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.reference is None:
            if self.options:
                raise ValueError(
                    f"options={self.options!r}: only a class of your own has them; strategy={self.strategy!r} is set by the "
                    "settings beside it"
                )
        elif self.reference.function != self.strategy:
            raise ValueError(
                f"reference={self.reference.function!r} is not strategy={self.strategy!r}: leave reference out, it fills itself"
            )
        for name in ("k", "noise_std"):
            if name in self.options:
                raise ValueError(f"options.{name}={self.options[name]!r}: is set by mixing.{name}; leave it out here")
        refuse(self._without_effect())
        return self

    def _without_effect(self) -> Iterator[str]:
        for name, strategies in _SETTINGS_OF.items():
            value = getattr(self, name)
            if self.strategy not in strategies and value != type(self).model_fields[name].default:
                yield f"{name}={value!r} has no effect with strategy={self.strategy!r}: leave it out"
        if self.weights != "softmax" and self.k == 1:
            yield f"weights={self.weights!r} has no effect with k=1, a single weight of 1: leave it out"
        if self.strategy == "gumbel" and not self.noise_in_weights and self.gumbel_temperature != 0.5:
            yield f"gumbel_temperature={self.gumbel_temperature:g} has no effect with noise_in_weights=false: leave it out"

    @property
    def neighbors_needed(self) -> int:
        """Neighbors of a token that a ready strategy takes from the index."""
        return self.k - 1 if self.strategy == "neighbor" else 0

    @property
    def without_kernels(self) -> str | None:
        """The setting that the kernels of a decode step on a GPU do not know; none where they serve."""
        if self.strategy not in FUSED_STRATEGIES:
            return f"mixing.strategy={self.strategy}"
        if self.label != "anchor":
            return f"mixing.label={self.label}"
        return None if self.weights == "softmax" else f"mixing.weights={self.weights}"

    @property
    def draws_nothing(self) -> bool:
        """Whether every step that can be mixed emits the most likely token, so that rollouts of one prompt are the same."""
        return self.rate == 1 and self.strategy in ("neighbor", "soft") and self.label == "anchor"
