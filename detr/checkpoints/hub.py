"""Download a model directory from the Hugging Face hub into its cache: only the files that are read, of one commit.

The files of a commit never change, so the hub is not asked about a commit whose files are all in the cache.

`HF_HOME`, `HF_TOKEN`, `HF_ENDPOINT` and `HF_HUB_OFFLINE` have their usual meaning.
"""

import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx  # type: ignore[attr-defined] # exported, but lazily

from detr.checkpoints.model_directory import (
    CONFIG_FILE,
    INDEX_ENDING,
    PREPROCESSOR_FILE,
    PROCESSOR_FILE,
    WEIGHT_FILES,
    CheckpointError,
    HubAnswer,
    ModelUnreachable,
    model_files,
    shard_names,
)

LIMIT_REMEDY = "Set HF_TOKEN, which raises the hub's limit"
ANSWER_SECONDS = 10.0  # the hub counts as unreachable if it has not answered by then

_QUERY = re.compile(r"\?[^\s'\"]+=[^\s'\"]*")
_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")


def split_hub_id(ref: str) -> tuple[str, str | None] | None:
    """Return (owner/name, revision or None) of `owner/name[@revision]`; None if it is not a hub id."""
    found = _HUB_ID.fullmatch(ref)
    return None if found is None else (found[1], found[2])


def fetch(repo: str, revision: str | None) -> tuple[Path, HubAnswer]:
    """Return a local directory with the files that `detr.load` reads of a model on the hub, and what the hub did.

    All are of one commit, even if the repository changes meanwhile. If the revision is a commit and the cache is known
    to have all of its files, the hub is not asked. If the hub cannot be reached, the cached files of that revision are
    used.

    Args:
        repo: owner/name.
        revision: a branch, tag or commit of 40 digits; None is the default branch.

    Raises:
        CheckpointError: there is no such model or revision, access is denied, it is not a model directory, or the hub
            is unreachable.
    """
    source = repo if revision is None else f"{repo}@{revision}"
    if revision is not None and _COMMIT.fullmatch(revision):
        complete = _complete(repo, revision, source)
        if complete is not None:
            return complete, HubAnswer("not asked")
    try:
        info = HfApi().model_info(repo, revision=revision, timeout=ANSWER_SECONDS)
    except GatedRepoError as error:
        raise CheckpointError(
            f"model {source}: its terms must be accepted first. Accept them on its page, and set HF_TOKEN."
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"model {source}: {repo} has no revision {revision!r}.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise CheckpointError(
            f"model {source}: the hub has no such model, or it is private. Check the name, or set HF_TOKEN."
        ) from error
    except OfflineModeIsEnabled as error:
        return _cached(repo, revision, source, error), HubAnswer("offline")
    except (HfHubHTTPError, httpx.HTTPError) as error:
        state: Literal["limited", "unreachable"] = "limited" if _is_limited(error) else "unreachable"
        return _cached(repo, revision, source, error), HubAnswer(state, _brief(error))
    present = {file.rfilename for file in info.siblings or ()}
    names = model_files(present, source=source)
    try:
        # by its name, because this records which commit the name refers to; the other files by commit
        directory = Path(hf_hub_download(repo, CONFIG_FILE, revision=revision)).parent
        for name in names:
            hf_hub_download(repo, name, revision=directory.name)
    except (HfHubHTTPError, httpx.HTTPError, EntryNotFoundError, OSError) as error:
        reason, remedy = _brief(error), f"{LIMIT_REMEDY}, then try" if _is_limited(error) else "Try"
    else:
        if info.sha == directory.name:
            _note_missing(directory, {*_READ} - present)
        return directory, HubAnswer("answered")
    # outside the `except`: the hub's errors show signed addresses, to which it sends its clients for large files
    raise ModelUnreachable(f"model {source}: the download failed ({reason}). {remedy} again; complete files are kept.")


def _complete(repo: str, commit: str, source: str) -> Path | None:
    """Return the cache's directory of a commit if it is known to have all files that are read, else None.

    All of these are there, or are known not to exist in the commit (the cache's `.no_exist`): config.json, both files
    with settings of the image processor, and the weights' files up to the first that exists, with all of its shards. A
    file that is in the cache is complete, because the hub's client gives it its name after the download.
    """

    def known(name: str) -> object:
        return try_to_load_from_cache(repo, name, revision=commit)  # a path; None: the cache does not know

    config = known(CONFIG_FILE)
    if not isinstance(config, str) or None in (known(PREPROCESSOR_FILE), known(PROCESSOR_FILE)):
        return None
    for name in _CANDIDATES:
        found = known(name)
        if found is None:
            return None
        if isinstance(found, str):
            shards = shard_names(Path(found), source=source) if name.endswith(INDEX_ENDING) else ()
            return Path(config).parent if all(isinstance(known(shard), str) for shard in shards) else None
    return None


def _note_missing(directory: Path, names: Iterable[str]) -> None:
    """Note in the cache that a commit does not have these files, as the hub's client does after asking for each.

    A cache that this user cannot write stays as it is; the hub is then asked again.
    """
    noted = directory.parents[1] / ".no_exist" / directory.name
    with suppress(OSError):
        noted.mkdir(parents=True, exist_ok=True)
        for name in names:
            (noted / name).touch()


def _cached(repo: str, revision: str | None, source: str, cause: Exception) -> Path:
    """Return the cache's directory of a revision if it seems to have all files that are read.

    Raises:
        ModelUnreachable: it does not.
    """

    def find(name: str) -> Path:
        return Path(hf_hub_download(repo, name, revision=revision, local_files_only=True))

    try:
        directory = find(CONFIG_FILE).parent
        present = {path.name for path in directory.iterdir()}
        weights = next(name for name in _CANDIDATES if name in present)
        complete = not weights.endswith(INDEX_ENDING) or present.issuperset(
            shard_names(directory / weights, source=source)
        )
    except (LocalEntryNotFoundError, StopIteration, OSError) as error:
        raise _unreachable(source, cause) from error
    if not complete or present.isdisjoint((PREPROCESSOR_FILE, PROCESSOR_FILE)):
        # without the size in it, pictures might be resized differently than when the hub answers
        raise _unreachable(source, cause)
    return directory


def _unreachable(source: str, cause: Exception) -> ModelUnreachable:
    if _is_limited(cause):
        return ModelUnreachable(
            f"model {source}: the hub refuses further requests for now ({_brief(cause)}), and the local cache does not "
            f"have the whole model. {LIMIT_REMEDY}, or give a local directory."
        )
    return ModelUnreachable(
        f"model {source}: the hub cannot be reached ({_brief(cause)}), and the local cache does not have the whole "
        "model. Connect to the network, or give a local directory."
    )


def _is_limited(error: BaseException) -> bool:
    """Return whether the hub refused a request because there were too many (HTTP 429)."""
    return any(isinstance(one, HfHubHTTPError) and one.response.status_code == 429 for one in (error, error.__cause__))


def _brief(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    when = next((f" {line}" for line in lines[1:] if line.startswith("Retry after ")), "")  # of the hub's RateLimit
    return (_QUERY.sub("?...", lines[0])[:120] + when).rstrip(".")


_COMMIT = re.compile("[0-9a-f]{40}")
_CANDIDATES = tuple(name for weights in WEIGHT_FILES for name in (weights, weights + INDEX_ENDING))
_READ = (PREPROCESSOR_FILE, PROCESSOR_FILE, *_CANDIDATES)
"""Files that are read if they exist, beside config.json."""
