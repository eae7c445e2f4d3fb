"""Every error that dropserve raises on purpose.

    DropserveError                  exit status 1
    |-- UsageError                  exit status 2: the caller can mend it by typing something else
    |   |-- RecipeError             a recipe, with all of its problems at once
    |   `-- MissingExtraError       an optional dependency is not installed
    |-- ModelSourceError            the user's model cannot be loaded or built
    |-- DataError                   a data set cannot be read or does not fit the recipe
    |-- TrainingError               the model does not fit the data, or training diverged
    |-- StoreError
    |   |-- NotInStoreError         no such model, run or version
    |   |-- CorruptStoreError       a file's hash differs from its manifest
    |   |-- SourceChangedError      the model's source differs from the one that was trained
    |   `-- PublishError            nothing was published (disk full, name taken, not writable)
    |-- DropoutError
    |   |-- UnmaskableError         a dropout site cannot be replaced by a mask
    |   `-- BatchAxisError          which axis is the batch cannot be told
    |-- ExportError
    |   `-- CheckFailedError        at least one export check failed
    `-- ServingError
        |-- RequestError            one request is at fault; carries its HTTP status and reason
        `-- ServerError             the server did not start, answer or stop

Each message says what was wrong, what came, and what to do next.
"""

from __future__ import annotations


class DropserveError(Exception):
    """The root: catch this to catch everything dropserve raises on purpose."""

    exit_status = 1


class UsageError(DropserveError):
    """An argument or a setting is wrong."""

    exit_status = 2


class RecipeError(UsageError):
    """A recipe is wrong; ``problems`` holds one line for each thing to change."""

    def __init__(self, where: str, problems: list[str]) -> None:
        self.where = where
        self.problems = list(problems)
        count = len(problems)
        head = f"{where}: {count} problem{'s' if count != 1 else ''}"
        super().__init__("\n".join([head, *(f"  - {problem}" for problem in problems)]))


class MissingExtraError(UsageError):
    """An optional dependency is missing; the message gives the command that installs it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed. Install it with: pip install 'dropserve[{extra}]'")


class ModelSourceError(DropserveError):
    """The user's model class cannot be found, imported or built."""


class DataError(DropserveError):
    """A data set cannot be read, or does not fit the recipe."""


class TrainingError(DropserveError):
    """The model does not fit the data, or training diverged."""


class StoreError(DropserveError):
    """The model store cannot do what was asked."""


class NotInStoreError(StoreError):
    """No such model, run or version."""


class CorruptStoreError(StoreError):
    """A file differs from what its manifest recorded."""


class SourceChangedError(StoreError):
    """The model's source differs from the one that was trained."""


class PublishError(StoreError):
    """Nothing was published; the store is as it was."""


class DropoutError(DropserveError):
    """Dropout sites cannot be found or replaced."""


class UnmaskableError(DropoutError):
    """A dropout site, or another source of randomness, cannot be replaced by a mask."""


class BatchAxisError(DropoutError):
    """Which axis of a tensor is the batch cannot be told."""


class ExportError(DropserveError):
    """The model cannot be exported."""


class CheckFailedError(ExportError):
    """At least one export check failed; nothing was published."""


class ServingError(DropserveError):
    """Serving failed."""


class RequestError(ServingError):
    """One request is at fault.

    Attributes:
        status: the HTTP status of the answer, 400 to 499.
        reason: a short word for metrics, such as ``shape`` or ``json``.
    """

    def __init__(self, message: str, *, status: int = 400, reason: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class ServerError(ServingError):
    """The server did not start, answer or stop."""
