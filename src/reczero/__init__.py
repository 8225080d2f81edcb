"""reczero: teach a language model to think before it recommends."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("reczero")
except PackageNotFoundError:  # running from a source tree that is not installed
    __version__ = "0+unknown"
