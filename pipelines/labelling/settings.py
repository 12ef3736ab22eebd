"""The settings that determine the detections of a run, as one canonical text.

An `ok` row is identified by its image's URI and etag, its model and its settings. Options of later releases are written
only if they differ from their defaults, so that the settings of earlier rows stay the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

AUTO: Final = "auto"


def settings_text(configuration: Mapping[str, object], precision: str) -> str:
    """Return the settings of a run as JSON with sorted keys, such as `{"precision":"fp32","threshold":0.05}`.

    Classes are an object of names and thresholds; a class without its own threshold has that of the run. If all classes
    are kept, they are omitted.

    Args:
        configuration: The configuration in the run's record.
        precision: Precision of the network, with "auto" resolved.
    """
    settings: dict[str, Any] = {"precision": precision}
    threshold = configuration.get("threshold")
    if threshold is not None:
        settings["threshold"] = _number(threshold)
    classes = configuration.get("classes")
    if isinstance(classes, list | tuple):
        settings["classes"] = {name: _number(threshold if own is None else own) for name, own in classes}
    if configuration.get("masks") is True:
        settings["masks"] = True
    if configuration.get("tiles") is not None:
        settings |= {"tiles": configuration["tiles"], "overlap": _number(configuration.get("overlap"))}
    return json.dumps(settings, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def requested_precision(configuration: Mapping[str, object]) -> str:
    """Return the requested precision of the network; "auto" depends on the cluster's devices."""
    return str(configuration.get("precision", AUTO))


def requested_settings(configuration: Mapping[str, object], auto: str) -> str:
    """Return the settings of a run that is requested, if the precision "auto" means `auto`."""
    asked = requested_precision(configuration)
    return settings_text(configuration, auto if asked == AUTO else asked)


def settings_differences(old: str, new: str) -> list[str]:
    """Return the differences between two settings, such as `threshold 0.05, now 0.1`."""
    before, after = json.loads(old), json.loads(new)
    found = [
        f"{name} {_shown(before.get(name))}, now {_shown(after.get(name))}"
        for name in ("threshold", "classes", "precision")
        if before.get(name) != after.get(name)
    ]
    found += [
        f"{name} {before.get(name, 'none')}, now {after.get(name, 'none')}"
        for name in ("tiles", "overlap")
        if before.get(name) != after.get(name)
    ]
    if ("masks" in before) != ("masks" in after):
        found.append("masks on, now off" if "masks" in before else "masks off, now on")
    return found


def precision_of(settings: str) -> str:
    """Return the precision in settings."""
    return str(json.loads(settings)["precision"])


def _number(value: object) -> object:
    return float(value) if isinstance(value, int | float) else value  # 0 and 0.0 are the same threshold


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name}={threshold}" for name, threshold in value.items())
    return "all" if value is None else str(value)
