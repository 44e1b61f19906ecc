"""Training over many devices: `Sharding`, and what it costs by formula."""

from jbp.sharding.mesh import Sharding as Sharding

__all__ = ["Sharding"]


def __dir__() -> list[str]:
    return __all__
