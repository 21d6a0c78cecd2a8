"""The HTTP session with a DICOMweb service: encrypted as the settings say, and errors without what they carry."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from medsynth.config.pacs import Dicomweb, Password
from medsynth.errors import MedsynthError, UsageError
from medsynth.pacs.credentials import client_context, read_secret
from medsynth.pacs.faults import BusyError, RefusalError, lost, needs_extra

try:
    import requests
    import urllib3
    from dicomweb_client.web import DICOMwebClient
    from requests.adapters import HTTPAdapter
except ModuleNotFoundError:
    raise needs_extra("dicomweb-client") from None

BUSY = {
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
    HTTPStatus.INSUFFICIENT_STORAGE,
}


class StatusError(Exception):
    """The service answered with an error of which only the request can tell what it means."""

    def __init__(self, response: requests.Response) -> None:
        self.status = response.status_code
        self.response = response
        super().__init__(f"HTTP {self.status}")


class _Adapter(HTTPAdapter):
    """Trusts the certificates of the settings alone, where requests would add a list of its own.

    And leaves `*` as it is, which RFC 3986 (section 2.2) allows and dicomweb-client does not: Orthanc takes `%2A` literally.
    """

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self._context = context
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **named: Any) -> None:
        """Connections of our own trust."""
        super().init_poolmanager(*arguments, **named, ssl_context=self._context)

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> Any:
        """Without the list of authorities that comes with requests."""
        host, _ = super().build_connection_pool_key_attributes(request, True, None)
        return host, {}

    def cert_verify(self, connection: Any, url: Any, verify: Any, cert: Any) -> None:
        """Nothing to add: the context verifies."""

    def send(self, request: Any, *arguments: Any, **named: Any) -> Any:
        """With plain wildcards."""
        path, question, query = request.url.partition("?")
        request.url = path + question + query.replace("%2A", "*")
        return super().send(request, *arguments, **named)


class _BearerToken(requests.auth.AuthBase):
    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: Any) -> Any:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class WebSession:
    """A client for one service, and what its errors mean."""

    def __init__(self, connection: Dicomweb, timeout_s: float) -> None:
        """Raises UsageError or PrivacyError for secrets that are missing or open to others."""
        parts = urlsplit(connection.url)
        self.place = f"the DICOMweb service at {parts.scheme}://{parts.netloc}"
        session = requests.Session()
        session.trust_env = False  # no proxies, certificates or passwords but those of the settings
        session.max_redirects = 0
        own = _Adapter(client_context(connection.tls) if parts.scheme == "https" else None)
        session.mount("https://", own)
        session.mount("http://", own)
        login = connection.login
        if isinstance(login, Password):
            user, password = read_secret(login.user, "user name"), read_secret(login.password, "password")
            session.auth = requests.auth.HTTPBasicAuth(user.encode(), password.encode())
        elif login is not None:
            session.auth = _BearerToken(read_secret(login.token, "token"))
        self._session = session
        self._has_answered = False
        try:
            self.client = DICOMwebClient(connection.url, session, timeout=timeout_s, permissive_uid=True)
        except ValueError:
            raise UsageError(
                "expected connection.url like https://pacs.example.org/dicom-web, found another form"
            ) from None
        self.client.set_http_retry_params(retry=False)  # `persevere` does that, and says so

    def close(self) -> None:
        """Let go of the connections."""
        self._session.close()

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Turn what the libraries raise into our own errors: theirs quote addresses, which hold patient IDs.

        Raises StatusError for an HTTP status that means neither a refused login nor want of resources.
        """
        try:
            yield
            self._has_answered = True
        except requests.HTTPError as error:
            self._has_answered = True
            response = error.response if error.response is not None else requests.Response()
            raise self._meaning(response) from None
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise self._trouble(error) from None

    def _meaning(self, response: requests.Response) -> Exception:
        status = response.status_code
        if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            return RefusalError(
                f"expected {self.place} to accept our login, found that it refuses (HTTP {status}); check connection.login "
                "and the rights of that user there"
            )
        if status in BUSY:
            return BusyError(
                f"expected {self.place} to have time and room, found that it has none (HTTP {status}); later the same "
                "command goes on"
            )
        return StatusError(response)

    def _trouble(self, error: Exception) -> MedsynthError:
        if isinstance(error, requests.exceptions.SSLError):
            return UsageError(
                f"expected {self.place} to show a certificate that we trust, and to accept ours, found a TLS failure; check "
                "connection.tls, the host's name and the port"
            )
        if isinstance(error, requests.TooManyRedirects):
            return UsageError(f"expected {self.place}, found that it sends us elsewhere; give the final connection.url")
        if isinstance(error, requests.exceptions.JSONDecodeError):
            return UsageError(f"expected DICOM JSON from {self.place}, found something else; check connection.url")
        if self._has_answered:
            return lost(self.place)
        return UsageError(f"expected {self.place}, found no answer; check connection.url, and that it runs")
