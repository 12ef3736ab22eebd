"""Submit jobs to a Ray cluster once for each slot of a schedule, and follow them to their end."""

import asyncio
import logging
import os
import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiohttp
from ray.exceptions import RayError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from pipelines.errors import RayDetrError
from pipelines.remote_errors import first_line
from pipelines.store import without_secrets

LOCAL_DASHBOARD = "http://127.0.0.1:8265"
STOP_SECONDS = 60  # between SIGTERM and SIGKILL when a job is stopped; Ray's default is 3
AGENT_SECONDS = 120.0  # for a cluster that has just begun to accept jobs
UNREACHABLE_SECONDS = 600.0  # without a response of the cluster, after which following ends
SILENT_SECONDS = 300.0  # without a piece of the log, after which the connection is opened again
POLL_SECONDS = 2.0
STOPPED_EXIT_CODE = 143  # a stopped job's driver receives SIGTERM; Ray does not record its exit code

_SLOT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]*")
_PUNCTUATION = str.maketrans(":+", "..")


class SlotTaken(ValueError):
    """Another command has been submitted under the same job name and slot."""


@dataclass(frozen=True, slots=True)
class Submission:
    """The job of one slot of a schedule.

    Attributes:
        id: Ray's submission id, from the job's name and the slot; with `-r1`, `-r2`, ... from the second attempt on.
        is_new: whether this call submitted it; otherwise an earlier one did.
    """

    id: str
    is_new: bool


@dataclass(frozen=True, slots=True)
class JobEnd:
    """The end of a job.

    Attributes:
        exit_code: the driver's; 143 if the job was stopped; 1 if Ray has none, for example after the loss of the node.
        message: Ray's message.
    """

    exit_code: int
    message: str


def submission_id(job: str, slot: str) -> str:
    """Return the submission id of a job's first attempt at a slot, such as `label-2026-11-28`.

    Args:
        job: the job's name: letters, digits, `.`, `_`, `-`.
        slot: the scheduled time or any other name of the slot; `:` and `+` are also allowed, and become `.`.

    Raises:
        ValueError: a character is not allowed in a submission id.
    """
    for what, text in (("the job name", job), ("the slot", slot)):
        if not _SLOT.fullmatch(text):
            raise ValueError(
                f"{what} {text!r} cannot be part of a submission id. Use letters, digits, '.', '_', '-' and ':', "
                "for example 2026-11-28T02:00."
            )
    return f"{job}-{slot}".translate(_PUNCTUATION)


def connect(address: str | None = None) -> JobSubmissionClient:
    """Connect to the job server of a cluster, which is its dashboard.

    Args:
        address: such as `http://head:8265`; None takes `RAY_API_SERVER_ADDRESS` or `RAY_ADDRESS` of the environment,
            else `http://127.0.0.1:8265`.

    Raises:
        RayDetrError: no job server answers, or it refuses the token.
    """
    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)  # it logs each closed connection
    variables = (os.environ.get(name) for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"))
    address = address or next(filter(None, variables), LOCAL_DASHBOARD)
    try:
        return JobSubmissionClient(address)
    except (OSError, RuntimeError, ValueError, RayError) as error:
        login = urlsplit(address).netloc.rpartition("@")[0]
        reason = first_line(error).replace(f"{login}@", "") if login else first_line(error)
        raise RayDetrError(
            f"no Ray job server answers at {without_secrets(address)}: {reason.rstrip('.')}. Give the dashboard's "
            "address, for example --address http://HEAD:8265, and set RAY_AUTH_TOKEN if the cluster requires a token."
        ) from error


def submit_once(
    client: JobSubmissionClient,
    command: Sequence[str],
    *,
    job: str,
    slot: str,
    finished_codes: frozenset[int] = frozenset(),
    working_dir: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Submission:
    """Submit a command for a slot, unless an attempt for this slot is waiting, running or finished.

    After a failed or stopped attempt the next one is submitted. Two concurrent callers submit one job: Ray accepts a
    submission id only once.

    Args:
        client: the cluster's job server.
        command: program and arguments of the driver; it runs on the head node.
        job: the job's name.
        slot: the slot of the schedule.
        finished_codes: exit codes other than 0 that finish a slot, so that it is not attempted again.
        working_dir: a folder or URI that becomes the driver's working directory.
        environment: environment variables of the driver. Ray's dashboard shows them: no secrets.

    Raises:
        SlotTaken: an attempt at this slot has another command.
        RayDetrError: the cluster refuses the job.
    """
    entrypoint = shlex.join(command)
    runtime_env: dict[str, object] = {
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), **(environment or {})}
    }
    if working_dir is not None:
        runtime_env["working_dir"] = working_dir
    deadline = time.monotonic() + AGENT_SECONDS
    while True:
        base, attempts = submission_id(job, slot), _by_id(client)
        number = 0
        while (known := attempts.get(_attempt_id(base, number))) is not None:
            if known.entrypoint != entrypoint:
                raise SlotTaken(
                    f"slot {slot} of job {job} has been submitted with another command: {known.entrypoint}. "
                    "Give this one another --job name, or another slot."
                )
            if not known.status.is_terminal() or _exit_code(known) in {0, *finished_codes}:
                return Submission(_attempt_id(base, number), is_new=False)
            number += 1
        attempt = _attempt_id(base, number)
        try:
            client.submit_job(
                entrypoint=entrypoint,
                submission_id=attempt,
                runtime_env=runtime_env,
                metadata={"job": job, "slot": slot},
            )
        except (OSError, RuntimeError, ValueError) as error:  # ValueError: the working directory does not exist
            if attempt in _by_id(client):
                continue  # another caller was first, or the response was lost
            if "No available agent" in str(error) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
                continue
            raise RayDetrError(f"the cluster refuses job {attempt}: {first_line(error)}") from error
        return Submission(attempt, is_new=True)


def follow(client: JobSubmissionClient, job_id: str, write: Callable[[str], object]) -> JobEnd:
    """Forward a job's log until the job ends, and return how it ended.

    Interrupted connections are opened again, without repeating the log.

    Args:
        client: the cluster's job server.
        job_id: the submission id.
        write: called with each piece of the log.

    Raises:
        RayDetrError: the cluster does not answer for ten minutes, or does not have the job any more.
    """
    passed_on = 0
    ended: JobDetails | None = None
    reached = time.monotonic()
    while True:
        # any error of `write` ends following: as an error of the cluster it would be retried forever
        before, passed_on = passed_on, asyncio.run(_pass_on(client, job_id, write, passed_on))
        if passed_on > before:
            reached = time.monotonic()
        try:
            if ended is None:
                details = client.get_job_info(job_id)
                reached = time.monotonic()
                ended = details if details.status.is_terminal() else None
            rest = "" if ended is None else client.get_job_logs(job_id)
        except (OSError, RuntimeError, RayError, aiohttp.ClientError) as error:
            if ended is None and "status code 404" in str(error):
                raise RayDetrError(
                    f"the cluster no longer has job {job_id}: its head node was probably replaced. "
                    "The same command submits it again."
                ) from error
            if time.monotonic() - reached <= UNREACHABLE_SECONDS:
                pass
            elif ended is not None:
                write(f"note: the rest of the log cannot be read: {first_line(error)}\n")
                return _job_end(ended)
            else:
                raise RayDetrError(
                    f"the cluster has not answered for {UNREACHABLE_SECONDS / 60:.0f} minutes ({first_line(error)}). "
                    f"Job {job_id} may still run; the same command follows it again."
                ) from error
        else:
            if ended is not None:
                write(rest[passed_on:])
                return _job_end(ended)
        time.sleep(POLL_SECONDS)


async def _pass_on(client: JobSubmissionClient, job_id: str, write: Callable[[str], object], passed_on: int) -> int:
    """Write a job's log from a position on until the connection ends; return the position where it ended."""
    position = 0
    pieces = aiter(client.tail_job_logs(job_id))
    while True:
        try:
            # a lost head node does not close connections: without this, following would wait forever
            async with asyncio.timeout(SILENT_SECONDS):
                piece = await anext(pieces)
        except (StopAsyncIteration, OSError, RuntimeError, aiohttp.ClientError):  # a TimeoutError is an OSError
            return passed_on  # the caller checks the job's status and calls again
        position += len(piece)
        if position > passed_on:
            write(piece[max(0, len(piece) - (position - passed_on)) :])
            passed_on = position


def _attempt_id(base: str, number: int) -> str:
    return base if number == 0 else f"{base}-r{number}"


def _by_id(client: JobSubmissionClient) -> dict[str, JobDetails]:
    try:
        return {details.submission_id: details for details in client.list_jobs() if details.submission_id}
    except (OSError, RuntimeError, RayError) as error:
        raise RayDetrError(f"the Ray job server does not list its jobs: {first_line(error)}") from error


def _job_end(details: JobDetails) -> JobEnd:
    return JobEnd(_exit_code(details), details.message or str(details.status))


def _exit_code(details: JobDetails) -> int:
    if details.status == JobStatus.SUCCEEDED:
        return 0
    if details.status == JobStatus.STOPPED:
        return STOPPED_EXIT_CODE
    code = details.driver_exit_code or 1
    return 128 - code if code < 0 else code  # -9 of a killed driver is 137 in a shell
