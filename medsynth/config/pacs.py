"""Settings of a PACS: where it is, how it is spoken to, and where its secrets are kept (never the secrets themselves)."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from medsynth.config.base import ConfigPath, Positive, Settings

Port = Annotated[int, Field(ge=1, le=65535)]

LOOPBACK = "127.0.0.1"


def _ae_title(text: str) -> str:
    """PS3.5 table 6.2-1: 1 to 16 characters of the default repertoire, no backslash, not only spaces."""
    if not re.fullmatch(r"[\x20-\x5B\x5D-\x7E]{1,16}", text) or text != text.strip():
        raise ValueError("expected an AE title: 1 to 16 plain characters without backslash or spaces at the ends")
    return text


def _variable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):  # not shown: it may be the secret, put into the wrong place
        raise ValueError(
            "expected the name of an environment variable (letters, digits and _), never the secret itself"
        )
    return name


def _never_inline(value: Any) -> Any:
    if not isinstance(value, dict):  # not shown, for the same reason
        raise ValueError("expected a group of settings that says where the secret is kept, never the secret itself")
    return value


def _address(url: str) -> str:
    parts = urlsplit(url)
    try:
        whole = parts.scheme in {"http", "https"} and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        whole = None
    if parts.username is not None or parts.password is not None:
        raise ValueError("expected an address without a user or password in it; put those under `login`")
    if not whole or parts.query or parts.fragment:
        raise ValueError("expected the address of a DICOMweb service, for example https://pacs.example.org/dicom-web")
    return url.rstrip("/")


AETitle = Annotated[str, AfterValidator(_ae_title)]


class _Secret(Settings):
    """Where a secret is kept: in an environment variable, or in a file that only its owner can read."""

    environment: Annotated[str, AfterValidator(_variable)] | None = None
    """Name of the variable."""
    file: ConfigPath | None = None
    """A text file (0600) with the secret in its first line."""

    @model_validator(mode="after")
    def _one_place(self) -> _Secret:
        if (self.environment is None) == (self.file is None):
            raise ValueError("expected either `environment` or `file`")
        return self


Secret = Annotated[_Secret, BeforeValidator(_never_inline)]


class Password(Settings):
    """HTTP basic authentication."""

    kind: Literal["password"]
    user: Secret
    password: Secret


class Bearer(Settings):
    """A token in the header `Authorization: Bearer`."""

    kind: Literal["bearer"]
    token: Secret


Login = Annotated[
    Annotated[Password | Bearer, Field(discriminator="kind")],
    BeforeValidator(_never_inline),
]


class Tls(Settings):
    """Encryption of the connection. The other side's certificate is always checked."""

    ca_file: ConfigPath | None = None
    """PEM file with the authorities that are trusted; otherwise those of the system."""
    client_certificate: ConfigPath | None = None
    """PEM file that shows who we are, where the PACS asks for it."""
    client_key: ConfigPath | None = None
    """PEM file (0600) with the certificate's private key."""

    @model_validator(mode="after")
    def _a_pair(self) -> Tls:
        if (self.client_certificate is None) != (self.client_key is None):
            raise ValueError("expected client_certificate and client_key together")
        return self


class Dimse(Settings):
    """The DICOM protocol of its own: C-FIND, C-GET or C-MOVE, C-STORE."""

    kind: Literal["dimse"]
    host: Annotated[str, Field(min_length=1)]
    port: Port
    ae_title: AETitle
    """Of the PACS."""
    own_ae_title: AETitle = "MEDSYNTH"
    """Ours, as the PACS knows it."""
    retrieve: Literal["get", "move"] = "get"
    """`get`: scans come on our own connection. `move`: the PACS calls back, so it must know our AE title, host and port."""
    listen_host: Annotated[str, Field(min_length=1)] = LOOPBACK
    """Address on which we wait for the PACS after a `move`; another machine reaches us only if this is not the loopback."""
    listen_port: Port = 11112
    tls: Tls | None = None
    """Without it the connection is in clear text, as is usual inside hospitals. With `move` it also holds for calling back."""

    @model_validator(mode="after")
    def _callable_back(self) -> Dimse:
        if self.retrieve == "move" and self.tls is not None and self.tls.client_certificate is None:
            raise ValueError("tls: expected a client_certificate where the PACS calls back (retrieve: move) over TLS")
        return self


class Dicomweb(Settings):
    """DICOM over HTTP: QIDO-RS, WADO-RS, STOW-RS."""

    kind: Literal["dicomweb"]
    url: Annotated[str, AfterValidator(_address)]
    """Up to where `/studies` follows."""
    login: Login | None = None
    tls: Tls = Tls()

    @model_validator(mode="after")
    def _secrets_are_encrypted(self) -> Dicomweb:
        parts = urlsplit(self.url)
        if self.login is not None and parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
            raise ValueError("url: expected https:// where a login is sent, found http://")
        return self


class Pacs(Settings):
    """One PACS and how patient we are with it."""

    connection: Annotated[Dimse | Dicomweb, Field(discriminator="kind")]
    timeout_s: Positive = 60.0
    """Seconds of silence after which a connection counts as lost."""
    attempts: Annotated[int, Field(ge=1, le=100)] = 3
    """So many in a row that bring nothing, and a lost connection is given up."""
    pause_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 2.0
    """Before the next attempt; doubled with each that brought nothing."""


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
