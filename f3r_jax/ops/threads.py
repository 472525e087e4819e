"""Threads that use the device of the thread that starts them."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import jax

T = TypeVar("T")
R = TypeVar("R")

THREADS = 2


def on_same_device(function: Callable[..., R]) -> Callable[..., R]:
    """The function for another thread, which otherwise does not inherit JAX's default device."""
    device = jax.config.jax_default_device  # type: ignore[attr-defined]

    def call(*args: object) -> R:
        with jax.default_device(device):
            return function(*args)

    return call


def in_threads(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """The results for all items, computed by a few threads, for functions on arrays too small to occupy two cores."""
    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(on_same_device(function), items))
