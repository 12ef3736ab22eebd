"""Errors that end a command with one line on standard error. Finished work stays; the same command resumes.

    RayDetrError            the run cannot continue: a resource is missing, broken or in use         exit code 1
    |- UsageError           the command or its arguments must be changed first                       exit code 2
    |  `- SettingsMismatch  the table was labelled with other settings, such as another threshold    exit code 2
    |- BudgetExceeded       more is wrong than a limit allows, or a gate refuses the figures         exit code 3
    |- OutOfMemory          reading a file needs more memory than is available; it may be damaged    exit code 1
    |- LeaseHeld            another process is writing the table                                     exit code 4
    `- CapReached           a limit that the user set on time or cost is reached                     exit code 5

Errors of single images are rows, not exceptions of this tree: `detr.images.results.ImageError`. Errors of object stores
are `pipelines.store.StoreError`, which says whether it is transient.
"""


class RayDetrError(Exception):
    """The run cannot continue. The message says what happened to which object, and what to do."""


class UsageError(RayDetrError):
    """The command requests something impossible; it must be changed before it can continue."""


class SettingsMismatch(UsageError):
    """The table was labelled with other settings, such as another threshold."""


class BudgetExceeded(RayDetrError):
    """There are more bad images or annotations than a limit allows, or a gate refuses the figures."""


class OutOfMemory(RayDetrError):
    """Reading a file needs more memory than is available; the file may be damaged."""


class LeaseHeld(RayDetrError):
    """Another process is writing the table; the message names it."""


class CapReached(RayDetrError):
    """A limit that the user set on time or cost is reached; the same command resumes.

    Attributes:
        details: figures about the stopped run, such as `run_id` and `images`, for `--json`.
    """

    def __init__(self, message: str, **details: object) -> None:
        super().__init__(message)
        self.details = details


def note_incomplete(error: BaseException, folder: str) -> None:
    """Add a note to an error that stops a command whose next start refuses the files that this one has written.

    `jobs.exits` prints it in place of "run the same command again to resume".
    """
    error.add_note(f"the folder {folder} is incomplete. Delete it, and run the command again.")
