"""What goes wrong in a lab (vocabulary): one base class, messages that name what to change."""

import shlex
from collections.abc import Sequence


class LabError(RuntimeError):
    """The lab could not do what was asked."""


class CommandFailed(LabError):
    """A command ended with a status other than 0."""

    def __init__(self, argv: Sequence[str], status: int, stderr: str) -> None:
        super().__init__(f"'{shlex.join(argv)}' ended with status {status}: {stderr.strip()}")
        self.status = status
        """Exit status; negative: the signal that ended it."""
        self.stderr = stderr


class CommandTimedOut(LabError):
    """A command did not end within its time and was killed."""


class PrefixInUse(LabError):
    """Another lab of this prefix is running."""
