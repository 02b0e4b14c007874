"""The version of the installed package."""

from importlib.metadata import PackageNotFoundError, version


def _installed() -> str:
    try:
        return version("tqs-onnx")
    except PackageNotFoundError:  # running from a checkout that was never installed
        return "0+unknown"


VERSION = _installed()
