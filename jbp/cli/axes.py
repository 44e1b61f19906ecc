"""What `--mesh` says: how many devices each axis has."""

from __future__ import annotations

from jbp.arguments import did_you_mean

__all__ = ["AXES", "read_mesh"]

AXES = ("data", "model")


def read_mesh(text: str) -> dict[str, int]:
    """The axes of "data=64,model=8", in the order in which they stand.

    Raises: ValueError for what is no axis, an axis that stands twice, or a size that is no whole number of at least 1.
    """
    found: dict[str, int] = {}
    for word in text.split(","):
        name, _, number = (part.strip() for part in word.partition("="))
        wanted = f"mesh must be of data=N and model=N, with a comma between, but is {text!r}"
        if name not in AXES or name in found:
            raise ValueError(wanted + (f": {name} stands in it twice" if name in found else did_you_mean(name, AXES)))
        if not number.isdecimal() or not int(number):
            raise ValueError(f"{wanted}: N is a whole number of devices, at least 1, as in data=4")
        found[name] = int(number)
    return found
