"""A PACS by DICOM's own protocol: C-FIND, C-GET, C-MOVE and C-STORE (PS3.4 annexes B and C)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from pydicom.dataset import Dataset

from medsynth.config.pacs import Dimse
from medsynth.pacs.archive import DAMAGED, Entry, Inbox, Parcel, Receive, Sent, Series
from medsynth.pacs.association import Caller
from medsynth.pacs.contexts import MOST_CONTEXTS, for_arrival, for_sending, takes
from medsynth.pacs.faults import BusyError, RefusalError, lost, needs_extra
from medsynth.pacs.listener import NOT_AUTHORISED, SUCCESS, Listener
from medsynth.pacs.question import Question

try:
    from pynetdicom import build_role, evt
    from pynetdicom.association import Association
    from pynetdicom.presentation import build_context
    from pynetdicom.sop_class import (
        StudyRootQueryRetrieveInformationModelFind,
        StudyRootQueryRetrieveInformationModelGet,
        StudyRootQueryRetrieveInformationModelMove,
    )
except ModuleNotFoundError:
    raise needs_extra("pynetdicom") from None

FIND = StudyRootQueryRetrieveInformationModelFind
GET = StudyRootQueryRetrieveInformationModelGet
MOVE = StudyRootQueryRetrieveInformationModelMove

PENDING = (0xFF00, 0xFF01)
WARNINGS = (0xB000, 0xB006, 0xB007)
UNKNOWN_DESTINATION = 0xA801
OUT_OF_RESOURCES = range(0xA700, 0xA800)
MEANINGS = {
    0x0110: "processing failure",
    0x0117: "invalid instance",
    0x0122: "kind of object not supported",
    0x0124: "not authorised",
    UNKNOWN_DESTINATION: "unknown destination",
}
UIDS_PER_REQUEST = 50
"""Instances that are asked for by their own UIDs in one request."""


class DimseArchive:
    """A PACS on a DICOM port."""

    def __init__(self, connection: Dimse, timeout_s: float) -> None:
        self.troubles: Counter[str] = Counter()
        self._connection = connection
        self._caller = Caller(connection, timeout_s)
        self._timeout_s = timeout_s
        self._listener: Listener | None = None

    def find(self, question: Question) -> list[Series]:
        """C-FIND: the studies that match, then the series of each."""
        found: dict[str, Series] = {}
        with self._caller.association([build_context(FIND)]) as association:
            asked = {"StudyInstanceUID": "", **question.study}
            for study in self._answers(association, "STUDY", asked, question):
                uid = study["StudyInstanceUID"]
                keys = {
                    "StudyInstanceUID": uid,
                    "SeriesInstanceUID": "",
                    "Modality": "",
                    "NumberOfSeriesRelatedInstances": "",
                    **question.series,
                }
                for series in self._answers(association, "SERIES", keys, question):
                    count = series["NumberOfSeriesRelatedInstances"]
                    found[series["SeriesInstanceUID"]] = Series(
                        uid, series["SeriesInstanceUID"], series["Modality"], int(count) if count.isdigit() else None
                    )
        found.pop("", None)
        return list(found.values())

    def entries(self, series: Sequence[Series]) -> Iterator[list[Entry]]:
        """C-FIND at the level of instances, over one association."""
        if not series:
            return
        with self._caller.association([build_context(FIND)]) as association:
            for one in series:
                keys = {
                    "StudyInstanceUID": one.study,
                    "SeriesInstanceUID": one.uid,
                    "SOPInstanceUID": "",
                    "SOPClassUID": "",
                }
                answers = list(self._answers(association, "IMAGE", keys, None))
                found = {
                    answer["SOPInstanceUID"]: Entry(answer["SOPInstanceUID"], answer["SOPClassUID"])
                    for answer in answers
                }
                found.pop("", None)
                yield list(found.values())

    def fetch(self, series: Series, wanted: Sequence[Entry], whole: bool, receive: Receive) -> None:
        """C-GET or C-MOVE: the whole series in one request, or some of its instances in several."""
        inbox = Inbox(wanted, receive)
        requests = [_identifier("SERIES", {"StudyInstanceUID": series.study, "SeriesInstanceUID": series.uid})]
        if not whole:
            requests = [
                _identifier(
                    "IMAGE",
                    {
                        "StudyInstanceUID": series.study,
                        "SeriesInstanceUID": series.uid,
                        "SOPInstanceUID": "\\".join(entry.uid for entry in wanted[start : start + UIDS_PER_REQUEST]),
                    },
                )
                for start in range(0, len(wanted), UIDS_PER_REQUEST)
            ]
        try:
            if self._connection.retrieve == "get":
                self._get(requests, wanted, inbox)
            else:
                self._move(requests, inbox)
        finally:
            inbox.close()
            if inbox.failure is not None:
                raise inbox.failure

    def send(self, parcels: Sequence[Parcel], sent: Sent) -> None:
        """C-STORE, one after the other."""
        if not parcels:
            return
        contexts = for_sending((parcel.sop_class, parcel.transfer_syntax) for parcel in parcels)
        if len(contexts) > MOST_CONTEXTS:
            raise RefusalError(
                f"expected at most {MOST_CONTEXTS} combinations of SOP class and transfer syntax in one folder, found "
                f"{len(contexts)}; send it in parts"
            )
        with self._caller.association(contexts) as association:
            for parcel in parcels:
                if not takes(association.accepted_contexts, parcel.sop_class, parcel.transfer_syntax):
                    sent(parcel, "it takes no such kind of object in this transfer syntax")
                    continue
                status = self._store(association, parcel)
                if status in OUT_OF_RESOURCES:
                    raise BusyError(
                        f"expected {self._caller.place} to have room, found it out of resources (0x{status:04X}); when it has "
                        "some, the same command goes on"
                    )
                sent(parcel, "" if status == SUCCESS or status in WARNINGS else _said(status))

    def close(self) -> None:
        """Stop listening."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _store(self, association: Association, parcel: Parcel) -> int:
        try:
            answer = association.send_c_store(parcel.load())
        except RuntimeError:  # the association ended between two instances
            raise lost(self._caller.place) from None
        if "Status" not in answer:
            raise lost(self._caller.place)
        return int(answer.Status)

    def _answers(
        self, association: Association, level: str, keys: Mapping[str, str], question: Question | None
    ) -> Iterator[dict[str, str]]:
        """keyword -> value of each match, without those that contradict the question."""
        try:
            responses = association.send_c_find(_identifier(level, keys), FIND)
        except RuntimeError:
            raise lost(self._caller.place) from None
        matches = []
        for answer, identifier in responses:
            if "Status" not in answer:
                raise lost(self._caller.place)
            if answer.Status in PENDING and identifier is not None:
                matches.append(_values(identifier, keys))
            elif answer.Status in OUT_OF_RESOURCES:
                raise BusyError(
                    f"expected an answer to our search from {self._caller.place}, found it out of resources "
                    f"(0x{answer.Status:04X}); ask for less at once, or later"
                )
            elif answer.Status != SUCCESS:
                raise RefusalError(
                    f"expected an answer to our search from {self._caller.place}, found {_said(answer.Status)}; it may not "
                    "support one of the keys"
                )
        yield from (match for match in matches if question is None or not question.excludes(match))

    def _get(self, requests: Sequence[Dataset], wanted: Sequence[Entry], inbox: Inbox) -> None:
        contexts = for_arrival((entry.sop_class for entry in wanted), MOST_CONTEXTS - 1)
        classes = dict.fromkeys(context.abstract_syntax for context in contexts)
        roles = [build_role(sop_class, scp_role=True) for sop_class in classes]

        def take(event: Any) -> int:
            uid = str(event.request.AffectedSOPInstanceUID)
            return SUCCESS if inbox.take(uid, event.encoded_dataset) else NOT_AUTHORISED

        with self._caller.association([build_context(GET), *contexts], roles, [(evt.EVT_C_STORE, take)]) as association:
            for request in requests:
                self._follow(partial(association.send_c_get, request, GET), inbox)

    def _move(self, requests: Sequence[Dataset], inbox: Inbox) -> None:
        if self._listener is None:
            self._listener = Listener(self._caller)
        self._listener.expect(inbox)
        own = self._connection.own_ae_title
        try:
            with self._caller.association([build_context(MOVE)]) as association:
                for request in requests:
                    if self._follow(partial(association.send_c_move, request, own, MOVE), inbox):
                        inbox.await_rest(self._timeout_s)
        finally:
            self._listener.expect(None)

    def _follow(self, ask: Callable[[], Any], inbox: Inbox) -> bool:
        """Follow one C-GET or C-MOVE to its end. Returns whether all was well by what the PACS says.

        What it failed to hand out is noted, and found missing later.
        """
        try:
            responses = ask()
        except RuntimeError:
            raise lost(self._caller.place) from None
        well = True
        for answer, _ in responses:
            if "Status" not in answer:
                raise lost(self._caller.place)
            if answer.Status == UNKNOWN_DESTINATION:
                raise RefusalError(
                    f"expected {self._caller.place} to know {self._connection.own_ae_title} as a destination, found that it "
                    "does not; have AE title, host and port registered there, or use connection.retrieve: get"
                )
            if answer.Status in OUT_OF_RESOURCES:
                raise BusyError(
                    f"expected {self._caller.place} to hand out instances, found it out of resources "
                    f"(0x{answer.Status:04X}); later the same command goes on"
                )
            if answer.Status not in PENDING and answer.Status != SUCCESS:
                self.troubles[_said(answer.Status)] += 1
                well = False
        if inbox.failure is not None:
            raise inbox.failure
        return well


def _identifier(level: str, keys: Mapping[str, str]) -> Dataset:
    """What is asked, as a dataset (PS3.4 C.4.1.1.3)."""
    dataset = Dataset()
    if not all(value.isascii() for value in keys.values()):
        dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(dataset, keyword, value.split("\\") if "\\" in value else value)
    return dataset


def _values(identifier: Dataset, keys: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for keyword in keys:
        try:
            found[keyword] = str(identifier.get(keyword) or "").strip(" \0")
        except DAMAGED:
            found[keyword] = ""
    return found


def _said(status: int) -> str:
    meaning = MEANINGS.get(status) or ("some instances failed" if status in WARNINGS else "unable to process")
    return f"status 0x{status:04X} ({meaning})"
