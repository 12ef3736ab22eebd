"""The settings with which a model has labelled a table, and whether a new run may use others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pipelines.errors import SettingsMismatch
from pipelines.labelling.publish import THREADS
from pipelines.labelling.run_summaries import settings_of_runs
from pipelines.labelling.settings import (
    AUTO,
    precision_of,
    requested_precision,
    requested_settings,
    settings_differences,
)
from pipelines.store import Store


class PastSettings:
    """Settings of a model's runs with published rows, newest first. Reads records on demand."""

    def __init__(self, table: Store, model: str, *, threads: int = THREADS) -> None:
        """Create without reading.

        Args:
            table: The table.
            model: Name of the model in rows.
            threads: Files of unfinished runs to read concurrently.
        """
        self._table, self._model = table, model
        self._unread = settings_of_runs(table, model, threads=threads)
        self._read: list[str] = []

    def __iter__(self) -> Iterator[str]:
        """Yield each settings value once."""
        yield from self._read
        for settings in self._unread:
            if settings not in self._read:
                self._read.append(settings)
                yield settings

    @property
    def last(self) -> str | None:
        """The settings of the newest run; None without a run."""
        return next(iter(self), None)

    def guess_precision(self, configuration: Mapping[str, object]) -> str | None:
        """Return a guess of what "auto" means, before the cluster is connected.

        It is the precision of rows with the same settings, otherwise that of the newest rows; None without rows of the
        model.
        """
        if self.last is None:
            return None
        same = (one for one in self if requested_settings(configuration, precision_of(one)) == one)
        asked = requested_precision(configuration)
        return precision_of(next(same, self.last)) if asked == AUTO else asked

    def check(self, configuration: Mapping[str, object], precision: str, *, relabel: bool) -> str:
        """Return the settings of a configuration if "auto" means `precision`.

        Raises:
            SettingsMismatch: all rows of the model have other settings, and `relabel` is False.
        """
        settings = requested_settings(configuration, precision)
        last = self.last
        if last is None or relabel or settings in self:
            return settings
        differing = settings_differences(last, settings)
        raise SettingsMismatch(
            f"table {self._table.uri} was labelled by {self._model} with other settings "
            f"({'; '.join(differing)}). Use the old {'value' if len(differing) == 1 else 'values'} to label only "
            "new images. For fewer detections, filter with SQL (WHERE score >= ...). For other settings, use another "
            "--table, or --relabel to label its images again: both rows are kept, with different values in the column "
            "settings."
        )

    def note(self, settings: str) -> str:
        """Return a note about newer rows with other settings, or an empty text."""
        if self.last in (None, settings):
            return ""
        assert self.last is not None
        return (
            f"the newest rows of {self._model} in table {self._table.uri} have other settings "
            f"({'; '.join(settings_differences(self.last, settings))}). This run labels "
            "images that have no row with its own settings."
        )
