"""Which checkpoints of a training run are real: numbered manifests, each created once, of which the highest counts.

Every store that can hold a table can create an object only where none is, but folders and some servers cannot replace
one only if it is unchanged. So a manifest is never changed: its successor is created under the next number, which only
one of several writers can do, and only one who has seen the manifest before. `latest.json` is a copy for people.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from pipelines.errors import RayDetrError
from pipelines.store import NotFound, Store, put_if_absent
from pipelines.strict_json import parse_object
from pipelines.training.run_record import damaged, run_name, to_json

MANIFEST_VERSION: Final = 1
LATEST_KEY: Final = "latest.json"

_MANIFESTS = "manifests/"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class SavedCheckpoint:
    """One complete checkpoint: `files` are what resuming needs, with their sizes in bytes."""

    name: str
    epoch: int
    step_in_epoch: int
    step: int
    metrics: Mapping[str, Any] | None
    files: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Claim:
    """Who may write: `number` is that of the manifest which made the claim, so later claims have higher numbers.

    `start_id` names the command that was started; the groups of workers that one start goes through claim each for
    itself, and `token` tells them apart.
    """

    number: int
    start_id: str
    token: str
    claimed_at: str
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is true of a run: its owner, and its complete checkpoints by step."""

    number: int
    owner: Claim
    checkpoints: tuple[SavedCheckpoint, ...] = ()
    finished: bool = False

    @property
    def latest(self) -> SavedCheckpoint | None:
        """The checkpoint of the highest step."""
        return self.checkpoints[-1] if self.checkpoints else None

    @property
    def best(self) -> SavedCheckpoint | None:
        """The evaluated checkpoint of the highest AP, of equals the later; None before any evaluation."""
        rated = [(average, saved.step, saved) for saved in self.checkpoints if (average := _ap(saved)) is not None]
        return max(rated, key=lambda item: item[:2])[2] if rated else None

    def find(self, name: str) -> SavedCheckpoint | None:
        """Return the checkpoint of that name, None if it is not kept."""
        return next((saved for saved in self.checkpoints if saved.name == name), None)

    def with_checkpoint(self, saved: SavedCheckpoint) -> Manifest:
        """Return the manifest with one checkpoint more, or with this one in the place of its namesake."""
        others = [other for other in self.checkpoints if other.name != saved.name]
        return replace(self, checkpoints=tuple(sorted([*others, saved], key=lambda one: one.step)))

    def pruned(self, keep: int) -> Manifest:
        """Return the manifest with the newest `keep` checkpoints and the best only."""
        best = self.best
        newest = self.checkpoints[-keep:]
        return replace(self, checkpoints=tuple(one for one in self.checkpoints if one in newest or one is best))


class Overtaken(RayDetrError):
    """A later start owns the run. `is_unseen`: it is certain that what was to be written is in no manifest."""

    def __init__(self, store: Store, *, is_unseen: bool) -> None:
        super().__init__(
            f"another process has taken over run {run_name(store)} of {store.uri}: this process can write nothing "
            "more. Let the other process continue, or stop it and run the same command again."
        )
        self.is_unseen = is_unseen


def read_manifest(store: Store) -> Manifest | None:
    """Return the manifest that counts, None where nobody claimed the run yet.

    Raises:
        RayDetrError: it is damaged.
    """
    while True:
        numbers = _numbers(store)
        if not numbers:
            return None
        try:
            return _decode(store.get(_key(numbers[-1])).data, store, numbers[-1])
        except NotFound:
            continue  # its successor was created since the listing, so it is gone


def claim_run(store: Store, start_id: str, *, token: str, claimed_at: str, versions: Mapping[str, str]) -> Manifest:
    """Become the owner, and return the manifest as it is from now on.

    From here on nobody who claimed earlier can add a checkpoint.

    Args:
        store: The run's directory.
        start_id: Which start of the command this is.
        token: Random, for claims by the same start.
        claimed_at: The time, for people.
        versions: Of the code and its packages, for people.

    Raises:
        RayDetrError: a manifest is damaged.
        StoreError: the store refused; the claim may have been made.
    """
    while True:
        before = read_manifest(store)
        number = before.number + 1 if before else 1
        claim = Claim(number, start_id, token, claimed_at, dict(versions))
        claimed = Manifest(number, claim, before.checkpoints if before else (), before.finished if before else False)
        data = _encode(claimed)
        if _create(store, number, data) == data and _numbers(store)[-1] == number:
            _settle(store, number, data)
            return claimed
        # somebody else wrote since we looked: look again


def advance(store: Store, manifest: Manifest, change: Callable[[Manifest], Manifest]) -> Manifest:
    """Write the successor of a manifest, changed, and return it.

    A write of the same claim whose answer was lost may turn out to have been made: the change is made upon it.

    Raises:
        Overtaken: a later claim was made.
        StoreError: the store refused; the successor may have been written.
    """
    while True:
        number = manifest.number + 1
        data = _encode(replace(change(manifest), number=number))
        found = _create(store, number, data)
        written = None if found is None else _decode(found, store, number)
        if written is None or written.owner != manifest.owner:
            raise Overtaken(store, is_unseen=written is not None and written.owner.number > manifest.owner.number)
        # the number may have been in use, succeeded and removed before we created it: nobody reads ours then
        if _numbers(store)[-1] != number:
            raise Overtaken(store, is_unseen=False)
        _settle(store, number, found or data)
        if found == data:
            return written
        manifest = written


def check_owned(store: Store, manifest: Manifest) -> None:
    """Refuse to go on with a manifest that has a successor; to be asked before anything is written beside manifests.

    Raises:
        Overtaken: a later claim was made.
    """
    if _numbers(store)[-1:] != [manifest.number]:
        raise Overtaken(store, is_unseen=False)


def _create(store: Store, number: int, data: bytes) -> bytes | None:
    """Create a manifest unless its number is taken; return what has the number, None if that was removed since."""
    try:
        return put_if_absent(store, _key(number), data)
    except NotFound:
        return None


def _settle(store: Store, newest: int, data: bytes) -> None:
    """Copy what counts to where people look, and remove what it replaces."""
    store.put(LATEST_KEY, data)
    for number in _numbers(store):
        if number < newest:
            store.delete(_key(number))


def _key(number: int) -> str:
    return f"{_MANIFESTS}{number:09d}.json"


def _numbers(store: Store) -> list[int]:
    """Return the numbers of the manifests that are there, rising: one, or a few for a moment."""
    names = [entry.key.removeprefix(_MANIFESTS).removesuffix(".json") for entry in store.list(_MANIFESTS)]
    return [int(name) for name in names if name.isdigit()]


def _ap(saved: SavedCheckpoint) -> float | None:
    value = (saved.metrics or {}).get("AP")
    return float(value) if isinstance(value, int | float) else None


def _encode(manifest: Manifest) -> bytes:
    latest, best = manifest.latest, manifest.best
    return to_json(
        {
            "manifest_version": MANIFEST_VERSION,
            "number": manifest.number,
            "owner": asdict(manifest.owner),
            "latest": latest and latest.name,
            "best": best and best.name,
            "finished": manifest.finished,
            "checkpoints": [asdict(saved) for saved in manifest.checkpoints],
        }
    )


def _decode(data: bytes, store: Store, number: int) -> Manifest:
    try:
        record = parse_object(data)
        version = record["manifest_version"]
        if version != MANIFEST_VERSION:
            raise RayDetrError(
                f"run {run_name(store)} of {store.uri} has manifests of version {version}, this is version "
                f"{MANIFEST_VERSION}. Use the release that began the run."
            )
        checkpoints = tuple(SavedCheckpoint(**saved) for saved in record["checkpoints"])
        if not all(_NAME.fullmatch(saved.name) for saved in checkpoints):  # names become parts of keys
            raise damaged(store, _key(number))
        return Manifest(int(record["number"]), Claim(**record["owner"]), checkpoints, bool(record["finished"]))
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(store, _key(number)) from error
