"""multicrop: measures whether crops and descriptions help a vision-language model."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multicrop.runs.classifier import Classifier

__all__ = ["Classifier", "__version__"]
__version__ = version("multicrop")


def __getattr__(name: str) -> object:
    """Load the classifier where it is asked for, because its imports take seconds."""
    if name == "Classifier":
        return import_module("multicrop.runs.classifier").Classifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
