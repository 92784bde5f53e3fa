"""multicrop: does a vision-language model see the trees as well as the forest?"""

from importlib.metadata import version

__version__ = version("multicrop")
