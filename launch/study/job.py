"""What a launcher executes: one process, on this machine or as a task of SLURM."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeVar


class Job(Protocol):
    """A process with a log. The same command resumes what was interrupted."""

    @property
    def name(self) -> str:
        """The name, unique in a plan."""

    @property
    def program(self) -> str:
        """The name of the process, which can do several entries of a plan."""

    @property
    def log(self) -> Path:
        """The file for its output."""

    @property
    def command(self) -> Sequence[str]:
        """The command line."""

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of a process on this machine."""


J = TypeVar("J", bound=Job)
ShownJob = TypeVar("ShownJob", bound=Job, contravariant=True)
