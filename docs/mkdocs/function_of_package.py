"""Lets mkdocstrings find the function `f3r_jax.register`, whose package has the same name.

In Python the package can be called as the function (`f3r_jax/__init__.py`). Griffe reads sources, and replaces the
function by the package. With this extension the function is also `f3r_jax.register.register`, for the page of the
Python interface.
"""

from typing import Any

import griffe


class FunctionOfPackage(griffe.Extension):
    """Keeps the function when it is read, and adds it to the package of its name."""

    def __init__(self) -> None:
        self._function: griffe.Function | None = None

    def on_function_instance(self, *, func: griffe.Function, **_: Any) -> None:
        """Keeps the function."""
        if func.path == "f3r_jax.register":
            self._function = func

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Adds it once the whole package was read."""
        if pkg.name == "f3r_jax" and self._function is not None:
            pkg["register"].set_member("register", self._function)
