"""Two families decide what becomes of a message: permanent errors go to the user, transient ones are tried again."""

from pydantic import JsonValue

from darkroom.contracts.problems import Problem, problem


class DarkroomError(Exception):
    """Anything that Darkroom itself raises on purpose."""


class PermanentError(DarkroomError):
    """Trying again would end the same way; `problem` tells the user what was wrong and what to do."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem

    def __reduce__(self) -> "tuple[type[PermanentError], tuple[Problem]]":
        # Celery carries errors from child to parent by pickle; subclasses with other arguments arrive as this class.
        return PermanentError, (self.problem,)

    @classmethod
    def of(
        cls,
        slug: str,
        title: str,
        status: int,
        detail: str,
        *,
        value: JsonValue = None,
        limit: JsonValue = None,
        remedy: str | None = None,
        file: str | None = None,
    ) -> "PermanentError":
        """The error for one problem; the arguments are those of `darkroom.contracts.problems.problem`."""
        return cls(problem(slug, title, status, detail, value=value, limit=limit, remedy=remedy, file=file))


class TransientError(DarkroomError):
    """The infrastructure failed, not the photo: try again later, and never count it against the photo."""


class BlobMissingError(TransientError):
    """No blob lies under this key. Transient: the reconciler has lost blobs rendered again."""

    def __init__(self, key: str) -> None:
        super().__init__(f"no blob under {key!r}")
        self.key = key


class ConfigurationError(DarkroomError):
    """A setting or combination of settings that cannot work; the process must not start with it."""
