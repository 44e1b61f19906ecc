"""The δ page: a net and a batch as one HTML file, in which every number opens its formula."""

from jbp.inspect.page import Page as Page
from jbp.inspect.page import page as page
from jbp.inspect.scene import Update as Update
from jbp.inspect.scene import scene as scene

__all__ = ["Page", "Update", "page", "scene"]


def __dir__() -> list[str]:
    return __all__
