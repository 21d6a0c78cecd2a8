"""Secrets and certificates, read where the settings say they are kept; never shown, logged or stored."""

from __future__ import annotations

import os
import ssl
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from medsynth.config.pacs import Tls
from medsynth.errors import PrivacyError, UsageError

if TYPE_CHECKING:
    from medsynth.config.pacs import _Secret


def read_secret(place: _Secret, what: str) -> str:
    """The secret kept in `place`; `what` names it in messages.

    Raises UsageError where it is missing or empty, PrivacyError where its file is open to others.
    """
    if place.environment is not None:
        found = os.environ.get(place.environment, "")
        where = f"in the environment variable {place.environment}"
    else:
        path = Path(place.file or "")
        if not path.is_file():
            raise UsageError(f"expected the {what} in the file {path}, found no such file; write it there (0600)")
        check_private(path, what)
        try:
            found = path.read_text(encoding="utf-8").partition("\n")[0].strip()
        except UnicodeDecodeError:
            raise UsageError(f"expected the {what} as UTF-8 text in {path}, found other bytes; write it anew") from None
        where = f"in the first line of {path}"
    if not found:
        raise UsageError(f"expected the {what} {where}, found nothing; set it")
    if any(character < " " for character in found):
        raise UsageError(f"expected the {what} {where} on one line, found control characters; set it anew")
    return found


def check_private(path: Path, what: str) -> None:
    """Raise PrivacyError unless only the owner can read the file."""
    if os.name != "posix":
        return  # no such permissions there; the user's own folder is closed by the system
    found = stat.S_IMODE(path.stat().st_mode)
    if found & 0o077:
        raise PrivacyError(
            f"expected the file with the {what} to be open to its owner only (0600), found {found:04o}; run: chmod 600 {path}"
        )


def client_context(tls: Tls) -> ssl.SSLContext:
    """How we call: the other side's certificate must be valid for its name. Raises UsageError, PrivacyError."""
    return _with_own_certificate(_trusting(tls, ssl.Purpose.SERVER_AUTH), tls)


def server_context(tls: Tls) -> ssl.SSLContext:
    """How we are called back after a C-MOVE: who calls must show a certificate that we trust."""
    context = _trusting(tls, ssl.Purpose.CLIENT_AUTH)
    context.verify_mode = ssl.CERT_REQUIRED
    return _with_own_certificate(context, tls)


def _trusting(tls: Tls, purpose: ssl.Purpose) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(purpose, cafile=tls.ca_file)
    except (OSError, ssl.SSLError):
        raise UsageError(
            f"expected certificates (PEM) in tls.ca_file {tls.ca_file}, found none; check the file"
        ) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _with_own_certificate(context: ssl.SSLContext, tls: Tls) -> ssl.SSLContext:
    if tls.client_certificate is None or tls.client_key is None:
        return context
    key = Path(tls.client_key)
    if key.is_file():
        check_private(key, "private key")
    try:
        # An empty password: without one an encrypted key would make OpenSSL ask on the terminal.
        context.load_cert_chain(tls.client_certificate, tls.client_key, password=lambda: b"")
    except (OSError, ssl.SSLError, ValueError):
        raise UsageError(
            "expected a certificate and its unencrypted private key (PEM) in tls.client_certificate and tls.client_key, "
            "found none that fit together; check the files"
        ) from None
    return context
