"""Packages of the extra `formats`, imported where a file needs them."""

import importlib
from typing import Any

from f3r_jax.common.errors import UserError


def simpleitk(path: object, what: str) -> Any:
    """SimpleITK, without its warnings on standard error; `what` the `path` is needs it. A UserError without it."""
    module = _package("SimpleITK", path, what)
    module.ProcessObject.GlobalWarningDisplayOff()
    return module


def pydicom(path: object, what: str) -> Any:
    """The package pydicom; `what` the `path` is needs it. Raises a UserError without it."""
    return _package("pydicom", path, what)


def _package(name: str, path: object, what: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"{path}: {what} needs {name}, which is not installed; expected: pip install 'f3r_jax[formats]'"
        ) from error
