"""A PACS by DICOMweb: QIDO-RS, WADO-RS and STOW-RS (PS3.18)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset

from medsynth.config.pacs import Dicomweb
from medsynth.pacs.archive import DAMAGED, Entry, Parcel, Receive, Sent, Series
from medsynth.pacs.faults import BusyError, RefusalError, needs_extra
from medsynth.pacs.question import Question
from medsynth.pacs.web_session import StatusError, WebSession

try:
    import requests
except ModuleNotFoundError:
    raise needs_extra("dicomweb-client") from None

Page = list[dict[str, Any]]

MOST_IN_ONE_POST = 25
MOST_VOXEL_BYTES_IN_ONE_POST = 32 << 20

OUT_OF_RESOURCES = range(0xA700, 0xA800)
NONE_HERE = {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}


class WebArchive:
    """A PACS behind an address."""

    def __init__(self, connection: Dicomweb, timeout_s: float) -> None:
        self.troubles: Counter[str] = Counter()
        self._session = WebSession(connection, timeout_s)
        self._client = self._session.client

    def find(self, question: Question) -> list[Series]:
        """QIDO-RS: the studies that match, then the series of each."""
        found: dict[str, Series] = {}
        wanted = ("StudyInstanceUID", *question.study)
        for study in self._search(
            self._client.search_for_studies, wanted, question, search_filters=dict(question.study)
        ):
            uid = study["StudyInstanceUID"]
            wanted = ("SeriesInstanceUID", "Modality", "NumberOfSeriesRelatedInstances", *question.series)
            filters = dict(question.series)
            search = self._client.search_for_series
            for series in self._search(search, wanted, question, study_instance_uid=uid, search_filters=filters):
                count = series["NumberOfSeriesRelatedInstances"]
                found[series["SeriesInstanceUID"]] = Series(
                    uid, series["SeriesInstanceUID"], series["Modality"], int(count) if count.isdigit() else None
                )
        return list(found.values())

    def entries(self, series: Sequence[Series]) -> Iterator[list[Entry]]:
        """QIDO-RS at the level of instances."""
        for one in series:
            answers = self._search(
                self._client.search_for_instances,
                ("SOPInstanceUID", "SOPClassUID"),
                None,
                study_instance_uid=one.study,
                series_instance_uid=one.uid,
            )
            yield [Entry(answer["SOPInstanceUID"], answer["SOPClassUID"]) for answer in answers]

    def fetch(self, series: Series, wanted: Sequence[Entry], whole: bool, receive: Receive) -> None:
        """WADO-RS, one instance after the other, each in the transfer syntax in which it is stored."""
        for entry in wanted:
            try:
                with self._session.asking():
                    dataset: Dataset | None = self._client.retrieve_instance(
                        series.study, series.uid, entry.uid, media_types=(("application/dicom", "*"),)
                    )
            except StatusError as error:
                self.troubles[f"HTTP {error.status}"] += 1
                continue
            except IndexError:
                self.troubles["an empty answer"] += 1
                continue
            except DAMAGED:
                dataset = None
            receive(entry.uid, dataset)

    def send(self, parcels: Sequence[Parcel], sent: Sent) -> None:
        """STOW-RS, some instances in one request."""
        batch: list[tuple[Parcel, Dataset]] = []
        size = 0
        for parcel in parcels:
            dataset = parcel.load()
            batch.append((parcel, dataset))
            size += len(dataset.get("PixelData") or b"")
            if len(batch) == MOST_IN_ONE_POST or size >= MOST_VOXEL_BYTES_IN_ONE_POST:
                self._post(batch, sent)
                batch, size = [], 0
        if batch:
            self._post(batch, sent)

    def close(self) -> None:
        """Let go of the connections."""
        self._session.close()

    def _search(
        self, search: Callable[..., Page], wanted: Sequence[str], question: Question | None, **arguments: Any
    ) -> list[dict[str, str]]:
        """keyword -> value of each match, page after page until one brings nothing new.

        The first keyword is the UID of what is sought; a match without it is none.
        """
        found: dict[str, dict[str, str]] = {}
        received = 0
        while True:
            page = self._page(search, offset=received or None, fields=list(wanted), **arguments)
            received += len(page)
            answers = {answer[wanted[0]]: answer for answer in (_values(item, wanted) for item in page)}
            new = set(answers) - set(found) - {""}
            if not new:
                break
            found.update((uid, answers[uid]) for uid in answers if uid in new)
        return [answer for answer in found.values() if question is None or not question.excludes(answer)]

    def _page(self, search: Callable[..., Page], **arguments: Any) -> Page:
        try:
            with self._session.asking():
                return search(**arguments)
        except StatusError as error:
            status = error.status
            if status in NONE_HERE and "study_instance_uid" in arguments:
                return []
            if status in NONE_HERE:
                raise RefusalError(
                    f"expected {self._session.place} to search for studies, found none at that address (HTTP {status}); check "
                    "connection.url: it ends where /studies follows"
                ) from None
            raise RefusalError(
                f"expected an answer to our search from {self._session.place}, found HTTP {status}; it may not support one "
                "of the keys"
            ) from None

    def _post(self, batch: Sequence[tuple[Parcel, Dataset]], sent: Sent) -> None:
        try:
            with self._session.asking():
                answer = self._client.store_instances([dataset for _, dataset in batch])
        except StatusError as error:
            answer = _body(error.response)
            if "FailedSOPSequence" not in answer and "ReferencedSOPSequence" not in answer:
                raise RefusalError(
                    f"expected {self._session.place} to store instances, found HTTP {error.status}; check "
                    "connection.url, and whether it takes such objects from us"
                ) from None
        failed = {
            str(item.get("ReferencedSOPInstanceUID")): int(item.get("FailureReason") or 0)
            for item in answer.get("FailedSOPSequence") or []
        }
        for parcel, _ in batch:
            reason = failed.get(parcel.uid)
            if reason is None:
                sent(parcel, "")
            elif reason not in OUT_OF_RESOURCES:
                sent(parcel, f"failure reason 0x{reason:04X}")
        if any(reason in OUT_OF_RESOURCES for reason in failed.values()):
            raise BusyError(
                f"expected {self._session.place} to have room, found it out of resources; when it has some, the same command "
                "goes on"
            )


def _values(item: Mapping[str, Any], keywords: Sequence[str]) -> dict[str, str]:
    """keyword -> text of an answer in the DICOM JSON model (PS3.18 F.2); names as their alphabetic group."""
    found = {}
    for keyword in keywords:
        element = item.get(f"{tag_for_keyword(keyword):08X}")
        values = element.get("Value") if isinstance(element, Mapping) else None
        texts = [one.get("Alphabetic") if isinstance(one, Mapping) else one for one in values or []]
        found[keyword] = "\\".join(str(text) for text in texts if text is not None).strip(" \0")
    return found


def _body(response: requests.Response) -> Dataset:
    """The answer of STOW-RS to a request that failed in part or whole; empty where it says nothing."""
    try:
        return Dataset.from_json(response.json())
    except (requests.JSONDecodeError, *DAMAGED):
        return Dataset()
