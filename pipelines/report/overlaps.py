"""Overlaps of boxes in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def box_iou(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return intersection over union, `(M, N)`, of `(M, 4)` and `(N, 4)` corners; 0 if both boxes have no area."""
    shared = intersections(one, other)
    union = areas(one)[:, None] + areas(other)[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def intersections(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the shared areas, `(M, N)`, of `(M, 4)` and `(N, 4)` corners."""
    one, other = one.astype(np.float64)[:, None], other.astype(np.float64)[None]
    low, high = np.maximum(one[..., :2], other[..., :2]), np.minimum(one[..., 2:], other[..., 2:])
    shared: npt.NDArray[np.float64] = np.clip(high - low, 0, None).prod(axis=-1)
    return shared


def areas(boxes: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the areas, `(N,)`, of `(N, 4)` corners."""
    sides = boxes.astype(np.float64)
    found: npt.NDArray[np.float64] = np.clip(sides[:, 2:] - sides[:, :2], 0, None).prod(axis=1)
    return found
