"""Waiting for the PACS to call back after a C-MOVE: a storage service that takes what was asked for and nothing else."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from medsynth.errors import UsageError
from medsynth.pacs.archive import Inbox
from medsynth.pacs.association import LARGEST_PDU, Caller, without_delay
from medsynth.pacs.contexts import AS_STORED, PLAIN
from medsynth.pacs.credentials import server_context
from medsynth.pacs.faults import needs_extra

try:
    from pynetdicom import evt
    from pynetdicom.sop_class import _STORAGE_CLASSES
except ModuleNotFoundError:
    raise needs_extra("pynetdicom") from None

SUCCESS, NOT_AUTHORISED = 0x0000, 0x0124


class Listener:
    """A storage service on our own port, open from its making until `close`."""

    def __init__(self, caller: Caller) -> None:
        """Raises UsageError where the address cannot be listened on."""
        connection = caller.connection
        self._inbox: Inbox | None = None
        entity = caller.entity()
        entity.maximum_pdu_size = LARGEST_PDU
        entity.require_called_aet = True
        entity.require_calling_aet = [connection.ae_title]
        for sop_class in _STORAGE_CLASSES.values():
            entity.add_supported_context(sop_class, [*PLAIN, *AS_STORED])
        try:
            self._server: Any = entity.start_server(
                (connection.listen_host, connection.listen_port),
                block=False,
                evt_handlers=[*without_delay(), (evt.EVT_C_STORE, self._take)],
                ssl_context=None if connection.tls is None else server_context(connection.tls),
            )
        except OSError as error:
            raise UsageError(
                f"expected to listen on {connection.listen_host}:{connection.listen_port} for the PACS to call back, found: "
                f"{error.strerror or 'no such address'}; choose another connection.listen_host or listen_port"
            ) from None
        # The server's own way with an error of a caller is a traceback on the terminal.
        self._server.handle_error = lambda request, address: None

    def expect(self, inbox: Inbox | None) -> None:
        """Hand what arrives to this inbox; None: take nothing."""
        self._inbox = inbox

    def close(self) -> None:
        """Stop listening, and break off what is still coming."""
        self._inbox = None
        for association in list(self._server.active_associations):
            association.abort()
        self._server.shutdown()

    def _take(self, event: Any) -> int:
        inbox = self._inbox
        if inbox is None:
            return NOT_AUTHORISED
        return (
            SUCCESS if inbox.take(str(event.request.AffectedSOPInstanceUID), event.encoded_dataset) else NOT_AUTHORISED
        )

    def __enter__(self) -> Listener:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
