"""One association with a PACS (PS3.8): how it is opened, and what to say where it is not."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from medsynth.config.pacs import Dimse
from medsynth.errors import UsageError
from medsynth.pacs.credentials import client_context
from medsynth.pacs.faults import BusyError, RefusalError, lost, needs_extra

try:
    from pynetdicom import AE, _config, evt
    from pynetdicom.association import Association
    from pynetdicom.presentation import PresentationContext
except ModuleNotFoundError:
    raise needs_extra("pynetdicom") from None

LARGEST_PDU = 131_072
"""Bytes in one piece; most archives send no larger ones, and small ones cost time."""


HANG_UPS = 3
"""How often a PACS may close the connection at once: some do so right after they said why, and that is lost on the way."""

TRANSIENT = 2
UNKNOWN_CALLED, UNKNOWN_CALLING = (1, 7), (1, 3)
"""Reasons of a rejection, as source and diagnostic (PS3.8 table 9-21)."""


class Caller:
    """Opens associations with one PACS."""

    def __init__(self, connection: Dimse, timeout_s: float) -> None:
        # Nothing of what pynetdicom would log is wanted, and putting it together takes longer than the transfer.
        _config.LOG_HANDLER_LEVEL = "none"
        _config.LOG_REQUEST_IDENTIFIERS = _config.LOG_RESPONSE_IDENTIFIERS = False
        self.connection = connection
        self.place = f"the PACS {connection.ae_title} at {connection.host}:{connection.port}"
        self._tls = None if connection.tls is None else client_context(connection.tls)
        if self._tls is not None:
            self._tls.sslsocket_class = _TellingSocket
        self._timeout_s = timeout_s
        self._has_answered = False

    def entity(self) -> AE:
        """Ourselves, with the time limits of the settings."""
        entity = AE(ae_title=self.connection.own_ae_title)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = self._timeout_s
        entity.connection_timeout = self._timeout_s
        return entity

    @contextmanager
    def association(
        self, contexts: Sequence[PresentationContext], extra: Sequence[Any] = (), handlers: Sequence[Any] = ()
    ) -> Iterator[Association]:
        """An association that is released at the end, and aborted where the work in it fails.

        Raises UsageError where there is no PACS, RefusalError where it does not want us, ConnectionLostError where it had
        answered before.
        """
        for attempt in range(1, HANG_UPS + 1):
            begin = time.monotonic()
            found = self._requested(contexts, extra, handlers)
            if found.is_established:
                break
            found.kill()
            error = self._why_not(found)
            hung_up = found.is_aborted and not found.rejected_contexts and type(error) is RefusalError
            if attempt == HANG_UPS or not hung_up or time.monotonic() - begin >= self._timeout_s:
                raise error
        self._has_answered = True
        _keep_answers(found)
        try:
            yield found
        except BaseException:
            found.abort()
            raise
        finally:
            if found.is_established:
                found.release()
            found.kill()

    def _requested(self, contexts: Sequence[PresentationContext], extra: Sequence[Any], handlers: Sequence[Any]) -> Any:
        try:
            return self.entity().associate(
                self.connection.host,
                self.connection.port,
                contexts=list(contexts),
                ae_title=self.connection.ae_title,
                max_pdu=LARGEST_PDU,
                ext_neg=list(extra),
                tls_args=None if self._tls is None else (self._tls, self.connection.host),
                evt_handlers=[*without_delay(), *handlers],
            )
        except OSError:
            raise self._unreachable("no machine of that name") from None

    def _why_not(self, association: Association) -> Exception:
        if association.is_rejected:
            return self._rejection(association.acceptor.primitive)
        if association.rejected_contexts:
            return RefusalError(
                f"expected {self.place} to offer the service asked for, found that it does not; have it switched on there, or "
                "use another way (connection.retrieve, connection.kind)"
            )
        trouble = self._trouble()
        if isinstance(trouble, TimeoutError):
            return self._unreachable("no answer in time")
        if self._tls is not None and isinstance(trouble, (ssl.SSLError, ConnectionResetError)):
            return UsageError(
                f"expected {self.place} to speak TLS with a certificate that we trust, found {_tls_trouble(trouble)}; check "
                "tls.ca_file, the host's name and whether the PACS wants TLS"
            )
        if trouble is not None:
            return self._unreachable(trouble.strerror or "no connection")
        if self._has_answered:
            return lost(self.place)
        return RefusalError(
            f"expected {self.place} to accept us, found that it hung up or kept silent; check that the port is its DICOM port, "
            "and whether it wants TLS or a client certificate"
        )

    def _rejection(self, answer: Any) -> Exception:
        reason = (answer.result_source, answer.diagnostic)
        if reason == UNKNOWN_CALLED:
            return RefusalError(
                f"expected {self.place}, found that it has another AE title; correct connection.ae_title"
            )
        if reason == UNKNOWN_CALLING:
            return RefusalError(
                f"expected {self.place} to know us as {self.connection.own_ae_title}, found that it does not; "
                "have that AE title registered there, or correct connection.own_ae_title"
            )
        if answer.result == TRANSIENT:
            return BusyError(f"expected {self.place} to have an association free, found none; try again later")
        return RefusalError(
            f"expected {self.place} to accept us, found that it refuses; have {self.connection.own_ae_title} and this "
            "machine registered there"
        )

    def _unreachable(self, found: str) -> Exception:
        if self._has_answered:
            return lost(self.place)
        return UsageError(f"expected {self.place}, found {found}; check connection.host and port, and that it runs")

    def _trouble(self) -> OSError | None:
        """Why the last connection failed, which pynetdicom tells to its log only; None where it stood."""
        if self._tls is not None:
            return _TellingSocket.trouble
        try:
            socket.create_connection((self.connection.host, self.connection.port), self._timeout_s).close()
        except OSError as error:
            return error
        return None


class _TellingSocket(ssl.SSLSocket):
    """Remembers why it could not connect: to try again just for that would be one more broken handshake for the PACS."""

    trouble: OSError | None = None

    def connect(self, address: Any) -> None:
        """As the socket of the standard library."""
        _TellingSocket.trouble = None
        try:
            super().connect(address)
        except OSError as error:
            _TellingSocket.trouble = error
            raise


def _keep_answers(association: Association) -> None:
    """Keep pynetdicom's own loop from taking messages that a request of ours waits for.

    It pauses while a request is under way, but looks for messages once more if it was about to: where threads have to wait
    for a processor, an answer is lost now and then, and with it a study.
    """
    wait_for_message = association.dimse.get_msg

    def get_msg(block: bool = False) -> Any:
        return wait_for_message(block=True) if block else (None, None)

    association.dimse.get_msg = get_msg


def without_delay() -> list[Any]:
    """Handlers that have small messages sent, and those of the other side acknowledged, at once.

    Each instance waits for an answer to the last one, and with the usual delays of TCP that takes 40 ms.
    """
    return [
        (evt.EVT_CONN_OPEN, _send_at_once),
        (evt.EVT_DATA_RECV, _acknowledge_at_once),
        (evt.EVT_DATA_SENT, _acknowledge_at_once),
    ]


def _send_at_once(event: Any) -> None:
    _set_option(event, socket.TCP_NODELAY)


def _acknowledge_at_once(event: Any) -> None:
    if hasattr(socket, "TCP_QUICKACK"):  # Linux, where it holds for the next acknowledgement only
        _set_option(event, socket.TCP_QUICKACK)


def _set_option(event: Any, option: int) -> None:
    connected = event.assoc.dul.socket.socket
    if connected is not None:
        with contextlib.suppress(OSError):  # closed meanwhile
            connected.setsockopt(socket.IPPROTO_TCP, option, 1)


def _tls_trouble(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"a certificate that does not hold ({error.verify_message})"
    alert = isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or "")
    return "a TLS alert" if alert else "an answer that is none of TLS"
