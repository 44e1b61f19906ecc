"""What annotations are written in: jaxtyping's names, an array with its axes, as in Float[Array, "n t i"].

Type checkers and readers read them; when the code runs nobody does, and jaxtyping, which takes as long to import as all
of jbp's layers, is not. There each name stands for the array's type alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray
else:
    from jax import Array

    PRNGKeyArray = Array

    class _Kind:
        def __getitem__(self, parts: tuple[Any, str]) -> Any:
            return parts[0]

    Bool = Float = Int = _Kind()

__all__ = ["Array", "Bool", "Float", "Int", "PRNGKeyArray"]
