"""Instances as they come in: de-identified in memory, stored, and forgotten."""

from __future__ import annotations

from collections.abc import Sequence

from pydicom.dataset import Dataset

from medsynth.config.deidentify import Deidentify
from medsynth.errors import DataError, PrivacyError, UnreadableError
from medsynth.imaging.deidentify import Deidentifier, SecretKey
from medsynth.imaging.deidentify.instance import (
    READ_ERRORS,
    deidentify_instance,
    deidentify_series,
    needs_whole_series,
    series_of,
)
from medsynth.imaging.deidentify.residual import ResidualSearch
from medsynth.imaging.deidentify.store import Store
from medsynth.imaging.deidentify.tally import NO_SERIES
from medsynth.pacs.archive import Archive, Entry, Series
from medsynth.progress import Advance


class Arrival:
    """The door: what came through it before is not fetched again, and nothing else reaches the disk.

    Not for several threads at once; an `Inbox` lets instances through one at a time.
    """

    def __init__(self, store: Store, key: SecretKey, profile: Deidentify, *, linked: bool, advance: Advance) -> None:
        self.came = 0
        """Instances whose outcome became known in this run."""
        self._store = store
        self._deidentifier = Deidentifier(key, profile)
        self._whole_series = "clean_recognizable_visual_features" in profile.options
        self._search = ResidualSearch()
        self._linked = linked
        self._advance = advance
        self._held: list[tuple[int, Dataset]] = []
        """Images of the series at hand whose faces can only be removed from the whole of it."""
        self._arrived: set[str] = set()
        """UIDs that came in the series at hand."""

    def knows(self, entry: Entry) -> bool:
        """Whether the outcome of an instance is known, from this run or an earlier one."""
        return self._store.has(self._store.token(entry.uid))

    def fetch(self, archive: Archive, series: Series, entries: Sequence[Entry], *, all_of_it: bool) -> None:
        """Have those instances of a series come that did not yet. `all_of_it`: the series has no others."""
        new = [entry for entry in entries if not self.knows(entry)]
        if not new:
            return
        wanted = entries if self._whole_series else new
        self._held.clear()  # what a transfer that broke off left
        self._arrived.clear()
        archive.fetch(series, wanted, all_of_it and len(wanted) == len(entries), self._take)
        if self._held and self._arrived == {entry.uid for entry in entries}:
            self._take_held()
        self._held.clear()

    def _take(self, uid: str, dataset: Dataset | None) -> None:
        """One instance, under the UID by which it was asked for; None where it cannot be read."""
        self._arrived.add(uid)
        token = self._store.token(uid)
        series = NO_SERIES
        try:
            if dataset is None or _uid(dataset) != uid:
                raise UnreadableError("expected the instance that was asked for, found it damaged or under another UID")
            series = series_of(dataset, self._deidentifier)
            if needs_whole_series(dataset, self._deidentifier):
                self._held.append((token, dataset))
                return
            if self._store.has(token):
                return
            instance = deidentify_instance(dataset, self._deidentifier, linked=self._linked, search=self._search)
        except (PrivacyError, DataError) as error:
            self._store.leave_out(token, error, series)
        else:
            self._store.publish(token, instance)
        self._done(1)

    def _take_held(self) -> None:
        datasets = [dataset for _, dataset in self._held]
        new = [token for token, _ in self._held if not self._store.has(token)]
        try:
            instances = deidentify_series(datasets, self._deidentifier, linked=self._linked)
        except (PrivacyError, DataError) as error:
            series = series_of(datasets[0], self._deidentifier)
            for token in new:
                self._store.leave_out(token, error, series)
        else:
            for (token, _), instance in zip(self._held, instances, strict=True):
                if not self._store.has(token):
                    self._store.publish(token, instance)
        self._done(len(new))

    def _done(self, count: int) -> None:
        self.came += count
        self._advance(count)


def _uid(dataset: Dataset) -> str:
    try:
        return str(dataset.get("SOPInstanceUID") or "").strip(" \0")
    except READ_ERRORS:
        return ""
