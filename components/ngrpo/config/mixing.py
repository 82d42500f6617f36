"""Settings of mixing."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, Field, ValidationError, ValidationInfo, field_validator, model_validator

from ngrpo.config.code import UserCode
from ngrpo.config.sources import Option
from ngrpo.section import Coefficient, Line, Probability, Section, check_text, count

READY_STRATEGIES = ("neighbor", "token", "gaussian")
FUSED_STRATEGIES = ("neighbor", "token")
"""Those that the kernels of a decode step on a GPU know (`ngrpo.rollout.fused`)."""


class StrategyCode(UserCode):
    """A strategy that does not come with us."""

    ready: ClassVar = READY_STRATEGIES


class MixingConfig(Section):
    """What happens on a gated decode step (equations 6-11)."""

    reference: StrategyCode | None = None
    """Filled by itself: the code that `strategy` names, where it is none of the ready ones."""
    strategy: Line = "neighbor"
    """`neighbor`: Semantic Neighbor Mixing (N-GRPO). `token`: no mixing (plain GRPO). `gaussian`: the step's token is
    sampled and noise is added to its embedding. Or a class of your own: `file.py:NAME`, a file relative to the preset, or
    `package.module:NAME`."""
    options: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], Option] = {}
    """Arguments of a class of your own, but for `k` and `noise_std`, which it gets if it has arguments of these names."""
    rate: Probability = 0.1
    """Gate rate, rho of equation 11."""
    k: Annotated[int, count(1, 10_001)] = 3
    """Size of the candidate set, the anchor counted (equation 8)."""
    noise_std: Coefficient = 0.1
    """`gaussian` only: standard deviation of the noise, relative to the root mean square of the token's embedding."""
    end_marker: Annotated[str, Field(min_length=1, max_length=100), AfterValidator(check_text)] | None = "</think>"
    """Mixing ends once the rollout has produced this text, however its tokens divide it; with none it never ends."""

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
            "'neighbor', 'token' or 'gaussian', or a class of your own: file.py:NAME or package.module:NAME"
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
        return self
