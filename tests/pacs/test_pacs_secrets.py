"""TLS and logins against a real PACS: what is checked, and that secrets stay where they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orthanc
import pytest
from certificates import Authority, make_authority
from orthanc import Orthanc
from tls_front import tls_front
from ward_scans import ROOT, WARD, dataset_of, encoded, silent

from medsynth.cli import app
from medsynth.exits import guarded

pytestmark = pytest.mark.slow

Settings = Callable[..., Path]
Medsynth = Callable[..., Any]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("tls") / "ca")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("tls") / "other")


@pytest.fixture(scope="module")
def closed_pacs(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Orthanc]:
    """A PACS that speaks TLS alone, and asks DICOM callers for a certificate."""
    if orthanc.MISSING:
        pytest.skip(orthanc.WHY)
    settings = {
        "DicomTlsEnabled": True,
        "DicomTlsCertificate": str(authority.server),
        "DicomTlsPrivateKey": str(authority.server_key),
        "DicomTlsTrustedCertificates": str(authority.own),
        "DicomTlsRemoteCertificateRequired": True,
    }
    server = Orthanc(tmp_path_factory.mktemp("closed"), settings=settings).start()
    for number in range(1, 5):
        server.add(encoded(dataset_of(WARD[0], number)))
    yield server
    server.kill()


def tls(authority: Authority, own: Authority | None) -> dict[str, Any]:
    found: dict[str, Any] = {"ca_file": str(authority.own)}
    if own is not None:
        found |= {"client_certificate": str(own.client), "client_key": str(own.client_key)}
    return found


@pytest.fixture
def door(closed_pacs: Orthanc, authority: Authority) -> Iterator[int]:
    with tls_front(closed_pacs.http_port, authority) as port:
        yield port


@pytest.mark.parametrize("way", ["get", "move", "web"])
def test_encrypted_both_ways_and_only_with_who_is_trusted(
    way: str,
    closed_pacs: Orthanc,
    door: int,
    authority: Authority,
    stranger: Authority,
    settings: Settings,
    medsynth: Medsynth,
    tmp_path: Path,
) -> None:
    where = {"url": f"https://localhost:{door}/dicom-web"} if way == "web" else {}

    def pull(out: str, encryption: dict[str, Any] | None) -> Any:
        pacs = settings(closed_pacs, way, timeout_s=5.0, tls=encryption, **where)
        return medsynth("pull", "--from", pacs, "--out", tmp_path / out, "--study", f"{ROOT}.1", "--json")

    good = tls(authority, authority)
    outcome = pull("out", good)
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["files_in_folder"] == 4
    wrong = [tls(stranger, authority), tls(authority, stranger)]
    if way != "move":
        wrong.append(tls(authority, None))
    if way == "get":
        wrong.append(None)
    for encryption in wrong:
        refused = pull("refused", encryption)
        assert refused.code == 2, refused.err
        assert "TLS" in refused.errors[0]
    mismatch = pull("refused", {**good, "client_key": str(stranger.client_key)})
    assert mismatch.code == 2
    assert "none that fit together" in mismatch.errors[0]
    open_key = tmp_path / "open.key"
    open_key.write_bytes(authority.client_key.read_bytes())
    open_key.chmod(0o644)
    open_to_all = pull("refused", {**good, "client_key": str(open_key)})
    assert open_to_all.code == 4
    assert "chmod 600" in open_to_all.errors[0]
    assert not (tmp_path / "refused").exists()


def test_tls_where_the_pacs_has_none(
    ward_pacs: Orthanc, authority: Authority, settings: Settings, medsynth: Medsynth, tmp_path: Path
) -> None:
    pacs = settings(ward_pacs, "get", timeout_s=3.0, tls=tls(authority, None))
    outcome = medsynth("pull", "--from", pacs, "--out", tmp_path / "out", "--study", f"{ROOT}.1")
    assert outcome.code == 2
    assert "TLS" in outcome.errors[0]


def test_a_wrong_password_is_refused_and_not_told_even_when_asked_for_more(
    ward_pacs: Orthanc,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WRONG", "n0t-the-secret")
    login = {"kind": "password", "user": {"environment": "WARD_USER"}, "password": {"environment": "WRONG"}}
    token = {"kind": "bearer", "token": {"environment": "WRONG"}}
    for wrong in (login, token):
        pacs = settings(ward_pacs, "web", login=wrong)
        arguments = ["pull", "--from", pacs, "--out", tmp_path / "out", "--patient", "PID-7731-X", "-vv"]
        code = guarded(lambda: app(args=[str(one) for one in arguments], standalone_mode=False), verbose=2)  # noqa: B023
        told = capfd.readouterr()
        assert code == 2
        assert "refuses (HTTP 401); check connection.login" in told.err
        assert "n0t-the-secret" not in told.out + told.err
        silent(told.out, told.err)


@pytest.mark.parametrize(
    ("mode", "content", "code", "says"),
    [
        (0o644, "s3cret-of-the-ward\n", 4, "chmod 600"),
        (0o600, "\n", 2, "found nothing"),
        (0o600, "s3cret\x01of", 2, "control characters"),
        (None, "", 2, "no such file"),
    ],
)
def test_a_password_file_must_be_there_closed_and_filled(
    mode: int | None,
    content: str,
    code: int,
    says: str,
    settings: Settings,
    medsynth: Medsynth,
    tmp_path: Path,
) -> None:
    secret = tmp_path / "secret"
    if mode is not None:
        secret.write_text(content, encoding="utf-8")
        secret.chmod(mode)
    login = {"kind": "password", "user": {"environment": "WARD_USER"}, "password": {"file": str(secret)}}
    pacs = settings(Orthanc(tmp_path), "web", login=login)
    outcome = medsynth("pull", "--from", pacs, "--out", tmp_path / "out", "--study", "1.2")
    assert outcome.code == code
    assert says in outcome.errors[0]
    assert "s3cret" not in outcome.err.replace(str(tmp_path), "")
