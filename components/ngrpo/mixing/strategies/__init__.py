"""The strategies that come with us, one file each."""

from ngrpo.mixing.strategies.gaussian import Gaussian
from ngrpo.mixing.strategies.gumbel import Gumbel
from ngrpo.mixing.strategies.neighbor import Neighbor
from ngrpo.mixing.strategies.soft import Soft
from ngrpo.mixing.strategies.token import Token
from ngrpo.mixing.strategy import Strategy

__all__ = ["READY", "Gaussian", "Gumbel", "Neighbor", "Soft", "Token"]

READY: dict[str, type[Strategy]] = {
    "neighbor": Neighbor,
    "token": Token,
    "gaussian": Gaussian,
    "soft": Soft,
    "gumbel": Gumbel,
}
"""By the name in `mixing.strategy`."""
