"""What is used of Ray's private or unstable parts is there. Each failure says what to look at and what to do."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import fields

import pytest

pytestmark = [pytest.mark.slow]  # importing all of this takes seconds

# module, name in it, parameters that are passed, what to do when it has changed
PARTS = [
    (
        "ray._private.services", "get_node", ("gcs_address", "node_id"),
        "pipelines/local_ray.py, `_waited_for`: look whether `ray.init` still gives up when its node has not "
        "registered after 30 s. If it does, replace the function that it asks now; if not, remove it there.",
    ),
    *(
        (
            "ray._private.node", name, parameters,
            "pipelines/local_ray.py, `_waited_for`: look whether a raylet still ends when its agents take more than "
            "15 s to start (ray-project/ray issue 65983). If it does, find where `ray.init` starts its processes now.",
        )
        for name, parameters in {
            "Node.start_ray_processes": (),
            "Node.kill_all_processes": ("check_alive", "wait"),
            "Node.get_logs_dir_path": (),
        }.items()
    ),
    *(
        (
            "ray._private.node", name, parameters,
            "pipelines/local_ray.py, `_without_services`: find how `ray.init` starts the monitor and the API server, "
            "or remove it there: a local Ray then takes 4 CPU seconds more.",
        )
        for name, parameters in {
            "Node.start_monitor": (),
            "Node.start_log_monitor": (),
            "Node.start_api_server": ("include_dashboard", "raise_on_failure"),
        }.items()
    ),
    (
        "ray._private.ray_constants", "ENABLE_RAY_CLUSTER", (),
        "pipelines/local_ray.py, `on_loopback`: find what makes Ray replace 127.0.0.1 by the machine's outward "
        "address, and run tests/security/test_strangers.py, which looks at the listening sockets.",
    ),
    (
        "ray._private.ray_constants", "ENABLE_RAY_CLUSTERS_ENV_VAR", (),
        "pipelines/local_ray.py, `on_loopback`: as for ENABLE_RAY_CLUSTER; the variable is for the processes of Ray.",
    ),
    (
        "ray._raylet", "Config.initialize", (),
        "pipelines/cluster.py, `_connect`: find how Ray reads RAY_AUTH_MODE again that is set after its import; "
        "else set it before the import.",
    ),
    *(
        (
            "ray.experimental.internal_kv", name, parameters,
            "pipelines/labelling/pool_records.py: keep these few keys in "
            "a named actor with num_cpus=0 on the driver's node instead.",
        )
        for name, parameters in {
            "_internal_kv_initialized": (),
            "_internal_kv_put": ("key", "value", "overwrite"),
            "_internal_kv_get": ("key",),
            "_internal_kv_exists": ("key",),
            "_internal_kv_list": ("prefix",),
            "_internal_kv_del": ("key", "del_by_prefix"),
        }.items()
    ),
    (
        "ray.train.torch", "TorchTrainer._register_sigint_handler", ("controller",),
        "pipelines/training/ray_trainer.py, `_Trainer`: find where the trainer gets its controller and handles Ctrl-C.",
    ),
    *(
        (
            "ray.train.v2._internal.execution." + module, name, parameters,
            "pipelines/training/controller_states.py: find how the controller of Ray Train tells its states; without "
            "them neither failures nor limits end a run.",
        )
        for module, name, parameters in (
            ("callback", "ControllerCallback.after_controller_state_update", ("previous_state", "current_state")),
            ("controller.state", "RestartingState", ("training_failed_error",)),
            ("controller.state", "ReschedulingState", ()),
            ("controller.state", "ResizingState", ()),
            ("controller.state", "RunningState", ()),
            ("controller.state", "SchedulingState", ("scaling_decision",)),
            ("scaling_policy", "ResizeDecision", ("num_workers",)),
        )
    ),
    (
        "ray.train.torch.config", "_TorchBackend.on_start", ("worker_group", "backend_config"),
        "pipelines/training/process_group.py: find what Ray Train runs on the workers before their process group.",
    ),
    (
        "ray.util.metrics", "Counter._record", ("value", "tags"),
        "pipelines/run_metrics.py, `_begin_counters`: find how a counter begins with 0, which `inc` refuses. Without "
        "it, Prometheus takes the first errors of a run for its base, and DetrManyErrors misses them.",
    ),
    (
        "ray.data", "Dataset.map", ("fn_constructor_args", "num_cpus", "num_gpus", "compute"),
        "pipelines/labelling/actor_pool.py, `_dataset`.",
    ),
    (
        "ray.data.context", "AutoscalingConfig.__init__", ("actor_pool_util_upscaling_threshold",),
        "pipelines/labelling/actor_pool.py, `GROW_AT`: find what decides when a pool grows.",
    ),
    (
        "ray.data", "ActorPoolStrategy.__init__",
        (
            "min_size", "max_size", "max_concurrent_calls_per_actor", "enable_true_multi_threading",
            "max_tasks_in_flight_per_actor",
        ),
        "pipelines/labelling/actor_pool.py, `_dataset`: find the new name, and run test_actor_pool.py.",
    ),
]  # fmt: skip

SETTINGS = {
    "max_errored_blocks", "wait_for_min_actors_s", "enable_progress_bars", "print_on_execution_start",
    "execution_no_progress_timeout_s", "memory_usage_poll_interval_s", "autoscaling_config",
}  # fmt: skip


@pytest.mark.parametrize(("module", "name", "parameters", "remedy"), PARTS, ids=[part[1] for part in PARTS])
def test_ray_has_what_is_used_of_its_private_parts(
    module: str, name: str, parameters: tuple[str, ...], remedy: str
) -> None:
    found = importlib.import_module(module)
    for step in name.split("."):
        assert hasattr(found, step), f"{module} has no {name} any more. {remedy}"
        found = getattr(found, step)
    if parameters:
        missing = set(parameters) - set(inspect.signature(found).parameters)
        assert not missing, f"{module}.{name} does not take {missing} any more. {remedy}"


def test_ray_data_has_the_settings_that_are_changed() -> None:
    from ray.data import DataContext

    missing = SETTINGS - {field.name for field in fields(DataContext)}

    assert not missing, (
        f"DataContext has no {missing} any more: setting it would change nothing. Find its successor, for "
        "pipelines/labelling/actor_pool.py or pipelines/cluster.py."
    )


def test_ray_removes_a_gauge_that_is_not_set_again_after_two_reports() -> None:
    from ray._private.telemetry import open_telemetry_metric_recorder as module

    from pipelines.run_metrics import EXPORT_SECONDS

    remedy = (
        "pipelines/run_metrics.py, `EXPORT_SECONDS`: find how long Ray keeps a gauge that is not set again, and set "
        "them again at least twice in that time. If Ray keeps it until its process has ended, remove `exporting`; if "
        "for longer, the alert rules see runs that have ended: correct deploy/prometheus/alerts.yml. Then run "
        "tests/metrics."
    )
    resolve = getattr(module.OpenTelemetryMetricRecorder, "_resolve_gauge_ttl_seconds", None)
    assert resolve is not None, f"Ray has changed how gauges expire. {remedy}"
    seconds = resolve(None)
    assert 2 * EXPORT_SECONDS <= seconds <= 60, f"Ray keeps a gauge for {seconds} s. {remedy}"
