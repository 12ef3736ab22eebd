"""All checks of an installation, in the order of their cost."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from detr.checkpoints.references import absolute_reference
from pipelines.doctor.clock_skew import check_clock
from pipelines.doctor.findings import Finding, may_pass
from pipelines.doctor.machine import check_machine, machine_facts
from pipelines.doctor.store_checks import check_store
from pipelines.errors import RayDetrError, UsageError
from pipelines.labelling.config import check_gpus_per_actor
from pipelines.labelling.labeler_spec import LabelerSpec
from pipelines.labelling.reach import REACH_SECONDS, check_answers
from pipelines.lake.lake_object import LakeObject
from pipelines.lake.listing import list_objects
from pipelines.lake.members import file_of
from pipelines.store import StoreError, StoreOptions, Stores, check_no_secret, open_store, without_secrets

if TYPE_CHECKING:
    from pipelines.actor_resources import Pool
    from pipelines.models import ModelInfo


@dataclass(frozen=True, slots=True)
class DoctorConfig:
    """The parts to check. Parts that are None are skipped; cluster and machine are always checked.

    Args:
        images: Sources of images, as in `LabelConfig`.
        image_column: The column of images in Parquet files; None: the files are lists of URIs.
        table: The detection table's URI, existing or new.
        model: A reference for `detr.load`, or the URI of a model directory.
        actors: Smallest and largest number of actors; None is 1 and what fits into the cluster.
        device: "auto", "cpu" or "cuda".
        batch_size: Images in the test batch; None is 32 on GPUs and 1 on CPUs.
        cpus_per_actor: CPUs of each actor, as in `LabelConfig`.
        gpus_per_actor: GPUs of each actor, as in `LabelConfig`.
        node_minutes: How long `label` waits for nodes, as in `LabelConfig`; above 0, a cluster that is too small now is
            a warning.
        shared_folders: Whether local paths are shared by all nodes, as in `LabelConfig`.
        image_options: Access to the images.
        table_options: Access to the table and to a model in a store.
    """

    images: tuple[str, ...] = ()
    image_column: str | None = None
    table: str | None = None
    model: str | None = None
    actors: tuple[int | None, int | None] = (None, None)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch_size: int | None = None
    cpus_per_actor: int | None = None
    gpus_per_actor: float | None = None
    node_minutes: float = 0.0
    shared_folders: bool = False
    image_options: StoreOptions = field(default_factory=StoreOptions)
    table_options: StoreOptions = field(default_factory=StoreOptions)

    def __post_init__(self) -> None:
        check_gpus_per_actor(self.gpus_per_actor)
        for name, uri in (("table", self.table), ("model", self.model)):
            if uri is not None:
                check_no_secret(name, uri, instead="Give credentials in the environment.")


def examine(config: DoctorConfig) -> Iterator[Finding]:
    """Yield the findings of each check as they occur."""
    yield from check_machine(machine_facts())
    yield from _stores(config)
    found = None
    if config.model is not None:
        from pipelines.cluster import is_given
        from pipelines.doctor.model_check import check_here, identify

        found = identify(absolute_reference(config.model), config.table_options)
        yield from check_here(found, has_cluster=is_given())
    yield from _cluster(config, found)


def _stores(config: DoctorConfig) -> Iterator[Finding]:
    if config.images:
        yield check_clock(config.images[0], config.image_options)
        yield _images(config)
    if config.table is not None:
        yield check_clock(config.table, config.table_options)
        options = StoreOptions(
            endpoint=config.table_options.endpoint,
            region=config.table_options.region,
            profile=config.table_options.profile,
            retry_seconds=REACH_SECONDS,
        )
        try:
            yield from check_store(open_store(config.table, options))
        except StoreError as error:
            remedy = "See docs/operations.md, Credentials and stores."
            yield Finding("store: put", "fail", str(error), remedy, error.is_transient)


def _images(config: DoctorConfig) -> Finding:
    """Read the header of one image of the sources."""
    shown = " ".join(without_secrets(uri) for uri in config.images)
    remedy = "See docs/operations.md, Image sources and Credentials and stores."
    try:
        check_answers([(uri, config.image_options) for uri in config.images])
        listing = list_objects(
            config.images, options=config.image_options, table=config.table, image_column=config.image_column
        )
        first = next((item for item in listing if isinstance(item, LakeObject)), None)
        if first is None:
            return Finding("images", "fail", f"{shown} has no images", remedy)
        store, key = Stores(config.image_options).find(file_of(first))
        size = len(store.get_range(key, 0, 65_536))
    except (RayDetrError, StoreError) as error:
        return Finding("images", "fail", str(error), remedy, may_pass(error))
    return Finding("images", "ok", f"{size:,} bytes of {without_secrets(first.uri)} were read")


def _cluster(config: DoctorConfig, model: ModelInfo | RayDetrError | None) -> Iterator[Finding]:
    """Yield findings about the cluster, and about the model on one of its nodes.

    Args:
        config: of the checks.
        model: what this machine found about the model; None: no model is checked.
    """
    from ray.exceptions import AuthenticationError

    from pipelines.actor_resources import ActorShare
    from pipelines.cluster import connected, hosts, is_given
    from pipelines.doctor.cluster_checks import (
        ask_nodes,
        check_local_folders,
        check_nodes,
        check_object_store,
        check_open_cluster,
        check_room,
        check_token,
    )
    from pipelines.doctor.model_check import check_on_node
    from pipelines.labelling.label import own_disks

    address = os.environ.get("RAY_ADDRESS")
    token = check_token(address)
    if token is not None:
        yield token
    has_cluster = is_given()
    waits = config.node_minutes if has_cluster else 0.0
    try:
        with connected():
            if token is None and address is not None:
                yield check_open_cluster(address, hosts())
            yield from check_nodes(ask_nodes())
            yield check_object_store()
            findings, pool = check_room(
                *config.actors,
                device=config.device,
                own=ActorShare(config.cpus_per_actor, config.gpus_per_actor),
                has_cluster=has_cluster,
                node_minutes=waits,
            )
            yield from findings
            yield from check_local_folders(own_disks(config), may_grow=pool is None and waits > 0)
            if model is not None:
                yield from check_on_node(_labeler_spec(config, pool), model, pool, has_cluster=has_cluster)
            return
    except RayDetrError as error:
        must_change = isinstance(error, UsageError) or isinstance(error.__cause__, AuthenticationError)
        yield Finding("cluster", "fail", str(error), "See docs/operations.md, Clusters.", transient=not must_change)
    if model is not None:
        yield from check_on_node(_labeler_spec(config, None), model, None, has_cluster=has_cluster)


def _labeler_spec(config: DoctorConfig, pool: Pool | None) -> LabelerSpec:
    assert config.model is not None, "only asked for with a model"
    return LabelerSpec(
        table="",
        run_id="",
        model=absolute_reference(config.model),
        model_sha256="",
        threshold=0.0,
        classes=None,
        device="cuda" if pool is not None and pool.gpus else "cpu",
        precision="auto",
        threads=1 if pool is None else pool.threads,
        max_pixels=1,
        image_options=config.image_options,
        table_options=config.table_options,
        batch_size=config.batch_size,
    )
