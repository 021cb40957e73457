"""The version that is installed. *Vocabulary.*"""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("horizon")
except PackageNotFoundError:
    VERSION = "0+unknown"
"""As in the package's metadata; "0+unknown" when run from a tree that is not installed."""
