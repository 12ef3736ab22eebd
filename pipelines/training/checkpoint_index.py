"""The index of a run's checkpoints: numbered manifests, each created once, of which the highest is valid.

Every store of tables has create-only puts, but folders and some servers cannot replace an object conditionally. So a
manifest is never changed: its successor is created under the next number. Only one of several writers can do that, and
only after reading the manifest before. `latest.json` is a copy for people.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from pipelines.errors import RayDetrError
from pipelines.store import NotFound, Store, put_if_absent
from pipelines.strict_json import Count, parse_object, record_of
from pipelines.training.run_record import damaged, run_name, to_json

MANIFEST_VERSION: Final = 1
LATEST_KEY: Final = "latest.json"

_MANIFESTS = "manifests/"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class SavedCheckpoint:
    """A complete checkpoint. `files` has the sizes in bytes of the files that resuming needs."""

    name: str
    epoch: Count
    step_in_epoch: Count
    step: Count
    metrics: Mapping[str, Any] | None
    files: Mapping[str, Count]


@dataclass(frozen=True, slots=True)
class Claim:
    """The process that may write: `number` is that of the manifest that made the claim; later claims have higher ones.

    `start_id` identifies the execution of the command. Each group of workers that it starts makes a claim of its own,
    identified by `token`.
    """

    number: Count
    start_id: str
    token: str
    claimed_at: str
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Manifest:
    """The state of a run: its owner, and its complete checkpoints in the order of steps."""

    number: Count
    owner: Claim
    checkpoints: tuple[SavedCheckpoint, ...] = ()
    finished: bool = False

    @property
    def latest(self) -> SavedCheckpoint | None:
        """The checkpoint with the highest step."""
        return self.checkpoints[-1] if self.checkpoints else None

    @property
    def best(self) -> SavedCheckpoint | None:
        """The checkpoint with the highest AP, the later of equals; None before the first evaluation."""
        rated = [(average, saved.step, saved) for saved in self.checkpoints if (average := _ap(saved)) is not None]
        return max(rated, key=lambda item: item[:2])[2] if rated else None

    def find(self, name: str) -> SavedCheckpoint | None:
        """Return the checkpoint with this name, or None if it is not kept."""
        return next((saved for saved in self.checkpoints if saved.name == name), None)

    def with_checkpoint(self, saved: SavedCheckpoint) -> Manifest:
        """Return the manifest with this checkpoint, which replaces one with the same name."""
        others = [other for other in self.checkpoints if other.name != saved.name]
        return replace(self, checkpoints=tuple(sorted([*others, saved], key=lambda one: one.step)))

    def pruned(self, keep: int) -> Manifest:
        """Return the manifest with only the newest `keep` checkpoints and the best one."""
        best = self.best
        newest = self.checkpoints[-keep:]
        return replace(self, checkpoints=tuple(one for one in self.checkpoints if one in newest or one is best))


class Overtaken(RayDetrError):
    """Another process has claimed the run. `is_unseen`: certainly no manifest contains the rejected change."""

    def __init__(self, store: Store, *, is_unseen: bool) -> None:
        super().__init__(
            f"another process has taken over run {run_name(store)} of {store.uri}: this process can write nothing "
            "more. Let the other process continue, or stop it and run the same command again."
        )
        self.is_unseen = is_unseen


def read_manifest(store: Store) -> Manifest | None:
    """Return the valid manifest, or None if no process has claimed the run.

    Raises:
        RayDetrError: the manifest is damaged.
    """
    while True:
        numbers = _numbers(store)
        if not numbers:
            return None
        try:
            return _decode(store.get(_key(numbers[-1])).data, store, numbers[-1])
        except NotFound:
            continue  # removed, because its successor was created after the listing


def claim_run(store: Store, start_id: str, *, token: str, claimed_at: str, versions: Mapping[str, str]) -> Manifest:
    """Claim the run and return the new manifest. Processes with earlier claims cannot add checkpoints any more.

    Args:
        store: The run's directory.
        start_id: Identifies the execution of the command.
        token: A random text that distinguishes claims of one execution.
        claimed_at: The time, for people.
        versions: Versions of this package and its dependencies, for people.

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
        # another process wrote a manifest in the meantime: read it


def advance(store: Store, manifest: Manifest, change: Callable[[Manifest], Manifest]) -> Manifest:
    """Apply a change to a manifest, write the successor and return it.

    If an earlier write of the same claim succeeded although its response was lost, the change is applied to that.

    Raises:
        Overtaken: another process has claimed the run.
        StoreError: the store refused; the successor may have been written.
    """
    while True:
        number = manifest.number + 1
        data = _encode(replace(change(manifest), number=number))
        found = _create(store, number, data)
        written = None if found is None else _decode(found, store, number)
        if written is None or written.owner != manifest.owner:
            raise Overtaken(store, is_unseen=written is not None and written.owner.number > manifest.owner.number)
        # the number may have been used and removed before it was created here: then no process reads this one
        if _numbers(store)[-1] != number:
            raise Overtaken(store, is_unseen=False)
        _settle(store, number, found or data)
        if found == data:
            return written
        manifest = written


def check_owned(store: Store, manifest: Manifest) -> None:
    """Check that a manifest has no successor, before other objects are written.

    Raises:
        Overtaken: another process has claimed the run.
    """
    if _numbers(store)[-1:] != [manifest.number]:
        raise Overtaken(store, is_unseen=False)


def _create(store: Store, number: int, data: bytes) -> bytes | None:
    """Create a manifest unless the number exists; return the existing one, or None if it was removed since."""
    try:
        return put_if_absent(store, _key(number), data)
    except NotFound:
        return None


def _settle(store: Store, newest: int, data: bytes) -> None:
    """Copy the valid manifest to `latest.json`, and remove its predecessors."""
    store.put(LATEST_KEY, data)
    for number in _numbers(store):
        if number < newest:
            store.delete(_key(number))


def _key(number: int) -> str:
    return f"{_MANIFESTS}{number:09d}.json"


def _numbers(store: Store) -> list[int]:
    """Return the numbers of the existing manifests in increasing order: one, or a few for a moment."""
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
        version = record.pop("manifest_version")
        if version != MANIFEST_VERSION:
            raise RayDetrError(
                f"run {run_name(store)} of {store.uri} has manifests of version {version}, and this release reads "
                f"version {MANIFEST_VERSION}. Use the release that began the run."
            )
        for_people = {"latest", "best"}
        manifest = record_of(Manifest, {name: value for name, value in record.items() if name not in for_people})
    except (KeyError, ValueError) as error:
        raise damaged(store, _key(number)) from error
    if not all(_NAME.fullmatch(saved.name) for saved in manifest.checkpoints):  # names are parts of keys
        raise damaged(store, _key(number))
    return manifest
