"""Planted secrets: none survives, whatever the encoding; what science needs does."""

from __future__ import annotations

import warnings
from io import BytesIO

import numpy as np
import pydicom
import pytest
from planted_headers import KEPT, file_bytes, plain, planted
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless

from medsynth.config.deidentify import Deidentify
from medsynth.errors import DataError, PrivacyError, UnreadableError
from medsynth.imaging.deidentify import Deidentifier, SecretKey, actions
from medsynth.imaging.deidentify.residual import identifying_values, scan_bytes

SECRET_PREAMBLE = b"ZQPREAMBLELEAK".ljust(128, b"x")


@pytest.fixture
def deidentifier() -> Deidentifier:
    return Deidentifier(SecretKey(bytes(range(32))), Deidentify(ocr="off"))


def through_file(dataset: Dataset, preamble: bytes = bytes(128)) -> Dataset:
    return pydicom.dcmread(BytesIO(file_bytes(dataset, preamble)))


def survivors(secrets: dict[str, bytes], data: bytes) -> list[str]:
    lower = data.lower()
    forms = lambda secret: (secret.lower(), secret.decode().lower().encode("utf-16-le"))  # noqa: E731
    return [place for place, secret in secrets.items() if any(form in lower for form in forms(secret))]


@pytest.mark.parametrize("modality", ["CT", "MR", "ENHANCED"])
def test_no_planted_secret_survives_in_the_written_file(modality: str, deidentifier: Deidentifier) -> None:
    dataset, secrets = planted(modality)
    before = file_bytes(dataset, SECRET_PREAMBLE)
    assert len(secrets) >= 80
    assert survivors(secrets, before) == list(secrets), "the corpus must hold what it claims to plant"

    after = file_bytes_of(deidentifier.dataset(pydicom.dcmread(BytesIO(before))))

    assert survivors({**secrets, "preamble": b"ZQPREAMBLELEAK"}, after) == []
    assert b"LEAK" not in after.upper()
    assert after[:128] == bytes(128)


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_no_planted_secret_survives_in_memory(modality: str, deidentifier: Deidentifier) -> None:
    dataset, secrets = planted(modality)
    assert survivors(secrets, file_bytes_of(deidentifier.dataset(dataset))) == []


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_other_encodings_leak_nothing_and_read_back(syntax: UID, deidentifier: Deidentifier) -> None:
    dataset, secrets = planted("CT")
    for keyword in ("ModalityLUTSequence",):  # pydicom cannot swap the bytes of a LUT of ambiguous VR
        del dataset[keyword]
    secrets.pop("LUTExplanation")
    dataset.file_meta.TransferSyntaxUID = syntax
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = through_file(dataset)
    after = file_bytes_of(deidentifier.dataset(source))
    assert survivors(secrets, after) == []
    result = pydicom.dcmread(BytesIO(after))
    assert result.file_meta.TransferSyntaxUID == syntax
    assert (result.Rows, result.KVP, result.ImagePositionPatient) == (16, 120, [-125.5, -120.25, 60.125])
    assert result.DeidentificationMethodCodeSequence[-1].CodeValue == "113100"


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("read", [True, False], ids=["file", "memory"])
def test_technical_values_and_pixels_are_intact(modality: str, read: bool, deidentifier: Deidentifier) -> None:
    source = through_file(plain(modality)) if read else plain(modality)
    result = pydicom.dcmread(BytesIO(file_bytes_of(deidentifier.dataset(source))))
    for keyword in KEPT["both"] + KEPT[modality]:
        assert result[keyword].value == source[keyword].value, keyword
    assert np.array_equal(result.pixel_array, source.pixel_array)


def test_source_is_not_changed(deidentifier: Deidentifier) -> None:
    dataset, _ = planted("CT")
    before = file_bytes(dataset)
    deidentifier.dataset(dataset)
    assert file_bytes(dataset) == before


def test_no_warning_or_log_line_repeats_a_value(
    deidentifier: Deidentifier, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    dataset, _ = planted("CT")
    raw = file_bytes(dataset).replace(b"DS\x06\x002.5   ", b"DS\x06\x00ZQBAD ").replace(b"19610203", b"ZQDATEXX")
    source = pydicom.dcmread(BytesIO(raw))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        deidentifier.dataset(source)
        identifying_values(source)
    assert caught == []
    assert caplog.text == ""
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("header", [b"DS\x04\0", b"UN\0\0\x04\0\0\0", b"LO\x04\0"], ids=["DS", "UN", "LO"])
def test_a_number_that_is_text_is_dropped(header: bytes, deidentifier: Deidentifier) -> None:
    raw = file_bytes(plain("CT"))
    place = raw.index(b"\x18\x00\x60\x00DS\x04\x00120 ") + 4
    source = pydicom.dcmread(BytesIO(raw[:place] + header + b"ANNA" + raw[place + 8 :]))
    result = deidentifier.dataset(source)
    assert result["KVP"].value is None  # type 2: there, empty
    assert b"ANNA" not in file_bytes_of(result)


def test_a_known_number_that_came_as_un_is_kept(deidentifier: Deidentifier) -> None:
    raw = file_bytes(plain("CT"))
    place = raw.index(b"\x18\x00\x60\x00DS\x04\x00120 ") + 4
    source = pydicom.dcmread(BytesIO(raw[:place] + b"UN\0\0\x04\0\0\x00120 " + raw[place + 8 :]))
    result = pydicom.dcmread(BytesIO(file_bytes_of(deidentifier.dataset(source))))
    assert (result["KVP"].VR, result.KVP) == ("DS", 120)


def test_compressed_pixels_keep_every_byte(deidentifier: Deidentifier) -> None:
    dataset = plain("CT")
    dataset.compress(RLELossless)
    source = through_file(dataset)
    result = deidentifier.dataset(source)
    assert result.PixelData == source.PixelData
    after = pydicom.dcmread(BytesIO(file_bytes_of(result)))
    assert after.file_meta.TransferSyntaxUID == RLELossless
    assert np.array_equal(after.pixel_array, source.pixel_array)


def test_markers_say_what_was_done() -> None:
    deidentifier = Deidentifier(SecretKey(bytes(range(32))), Deidentify(ocr="off", accept_faces=True))
    dataset, _ = planted("CT")
    dataset.BurnedInAnnotation, dataset.RecognizableVisualFeatures = "NO", "YES"
    result = deidentifier.dataset(through_file(dataset))
    assert result.PatientIdentityRemoved == "YES"
    assert result.DeidentificationMethod[0] == "Basic Application Confidentiality Profile"
    assert result.DeidentificationMethod[1] == "earlier de-identification (text removed)"
    assert "2026c" in result.DeidentificationMethod[2]
    assert all(len(text) <= 64 for text in result.DeidentificationMethod)
    assert [item.CodeValue for item in result.DeidentificationMethodCodeSequence] == ["113101", "113100"]
    assert result.DeidentificationMethodCodeSequence[0].CodeMeaning == "Clean Pixel Data Option"
    assert result.LongitudinalTemporalInformationModified == "REMOVED"
    assert (result.BurnedInAnnotation, result.RecognizableVisualFeatures) == ("NO", "YES")
    purposes = [item.PurposeOfReferenceCodeSequence[0].CodeValue for item in result.ContributingEquipmentSequence]
    assert purposes == ["109101", "109104"]
    assert [element.keyword for element in result.ContributingEquipmentSequence[0]] == [
        "Manufacturer",
        "PurposeOfReferenceCodeSequence",
    ]
    assert result.PatientName == result.PatientID == deidentifier.patient_of(dataset)


def test_doing_it_twice_marks_once_and_keeps_the_chain(deidentifier: Deidentifier) -> None:
    once = deidentifier.dataset(through_file(plain("MR")))
    twice = deidentifier.dataset(through_file(once))
    assert len(twice.DeidentificationMethodCodeSequence) == 1
    assert twice.DeidentificationMethod == once.DeidentificationMethod
    assert twice.PixelData == once.PixelData


def test_types_decide_what_stands_in_for_a_removed_value(deidentifier: Deidentifier) -> None:
    dataset = plain("CT")
    dataset.SeriesDate = dataset.AcquisitionDate = dataset.ContentDate = "20200102"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL", "SMITHJOHN"]
    result = deidentifier.dataset(dataset)
    assert "SeriesDate" not in result  # type 3, X/D
    assert "AcquisitionDate" not in result  # type 3, X/Z
    assert "ContentDate" in result  # type 2C, Z/D
    assert not result.ContentDate
    assert not result.StudyDate  # type 2, Z
    assert list(result.ImageType) == ["ORIGINAL", "PRIMARY", "AXIAL", "OTHER"]


def test_references_stay_consistent_between_files(deidentifier: Deidentifier) -> None:
    first, second = plain("CT"), plain("CT")
    second.SOPInstanceUID = "1.2.826.0.1.3680043.99.1.9"
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = first.SOPClassUID, first.SOPInstanceUID
    second.add_new(0x00081140, "SQ", [reference])
    mapped = [deidentifier.dataset(dataset) for dataset in (first, second)]
    assert mapped[0].SeriesInstanceUID == mapped[1].SeriesInstanceUID
    assert mapped[0].SOPInstanceUID != mapped[1].SOPInstanceUID
    assert mapped[0].FrameOfReferenceUID.startswith("2.25.")
    assert len({mapped[0].SOPInstanceUID, first.SOPInstanceUID}) == 2
    assert "ReferencedImageSequence" not in mapped[1]  # type 3 in both classic images: X


def test_enhanced_images_keep_geometry_inside_functional_groups(deidentifier: Deidentifier) -> None:
    dataset = plain("MR")
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    dataset.NumberOfFrames = 2
    dataset.PixelData = dataset.PixelData * 2
    frames = []
    for place in range(2):
        position, content, source = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [0, 0, place]
        content.FrameAcquisitionDateTime, content.FrameComments, content.StackID = "19700203101112", "ZQNOTE", "1"
        content.DimensionIndexValues = [1, place + 1]
        source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID = dataset.SOPClassUID, "1.2.826.0.1.7.7"
        source.PurposeOfReferenceCodeSequence = [Dataset()]
        frame = Dataset()
        frame.PlanePositionSequence, frame.FrameContentSequence = [position], [content]
        frame.ReferencedImageSequence = [source]
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = frames
    result = deidentifier.dataset(through_file(dataset))
    for place, frame in enumerate(result.PerFrameFunctionalGroupsSequence):
        assert frame.PlanePositionSequence[0].ImagePositionPatient == [0, 0, place]
        content = frame.FrameContentSequence[0]
        assert (content.StackID, content.DimensionIndexValues) == ("1", [1, place + 1])
        assert content.FrameAcquisitionDateTime == "19000101000000"  # type 1C, D
        assert "FrameComments" not in content
        assert not frame.ReferencedImageSequence  # type 2, Z
    assert b"1.2.826.0.1.7.7" not in file_bytes_of(result)


def test_embedded_overlay_bits_are_cleared_without_moving_pixels(deidentifier: Deidentifier) -> None:
    for signed in (0, 1):
        dataset = plain("CT")
        dataset.PixelRepresentation = signed
        values = np.arange(192, dtype="<i2").reshape(16, 12) - 96 * signed
        stored = (values.astype("<u2") & 0x0FFF) | 0x8000 * (np.arange(192).reshape(16, 12) % 2 == 0).astype("<u2")
        dataset.PixelData = stored.astype("<u2").tobytes()
        dataset["PixelData"].VR = "OW"
        dataset.add_new(0x60000010, "US", 16)
        dataset.add_new(0x60000102, "US", 15)
        result = deidentifier.dataset(through_file(dataset))
        assert np.array_equal(np.frombuffer(result.PixelData, "<i2").reshape(16, 12), values)


def test_embedded_overlay_in_compressed_pixels_is_refused(deidentifier: Deidentifier) -> None:
    dataset = plain("CT")
    dataset.add_new(0x60000010, "US", 16)
    dataset.add_new(0x60000102, "US", 15)
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.90"
    dataset.PixelData = encapsulate([b"\xff\x4f\xff\x51"])
    with pytest.raises(PrivacyError, match="overlay"):
        deidentifier.dataset(dataset)


def test_shown_identity_is_refused_without_repeating_it(deidentifier: Deidentifier) -> None:
    burned, screen, capture = plain("CT"), plain("CT"), plain("CT")
    burned.BurnedInAnnotation = "YES"
    screen.ImageType = ["DERIVED", "SECONDARY", "SCREEN SAVE"]
    capture.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    for dataset in (burned, screen, capture):
        with pytest.raises(PrivacyError) as caught:
            deidentifier.dataset(dataset)
        assert "ORIGINAL" not in str(caught.value)
        assert caught.value.exit_code == 4


def test_damage_is_an_error_that_quotes_nothing(deidentifier: Deidentifier, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(element: object, *rest: object) -> None:
        raise ValueError("Invalid value for VR PN: 'ORIGINAL^ANNA'")  # as pydicom words it

    dataset, _ = planted("CT")
    monkeypatch.setattr(actions, "keep_codes", read)
    with pytest.raises(UnreadableError, match="cannot be read") as caught:
        deidentifier.dataset(dataset)
    assert "ANNA" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_file_of_nobody_is_an_error(deidentifier: Deidentifier) -> None:
    dataset = Dataset()
    dataset.SOPClassUID = plain("CT").SOPClassUID
    with pytest.raises(DataError, match="patient ID or any UID"):
        deidentifier.dataset(dataset)


def test_patients_without_id_do_not_become_one(deidentifier: Deidentifier) -> None:
    one, two = plain("CT"), plain("CT")
    one.PatientID = two.PatientID = ""
    two.PatientName = "OTHER^EVE"
    assert deidentifier.patient_of(one) != deidentifier.patient_of(two)
    assert deidentifier.patient_of(one) == deidentifier.patient_of(plain_like(one))


def plain_like(dataset: Dataset) -> Dataset:
    twin = plain("MR")
    twin.PatientID, twin.PatientName = dataset.PatientID, dataset.PatientName
    return twin


def test_pseudonym_of_a_header_is_that_of_the_table(deidentifier: Deidentifier) -> None:
    result = deidentifier.dataset(through_file(plain("CT")))
    assert result.PatientID == deidentifier.patient("PID-ORIGINAL-1 ") == deidentifier.patient("PID-ORIGINAL-1")
    assert len(result.PatientID) == 13


def test_empty_sop_instance_uid_is_taken_from_the_file_meta(deidentifier: Deidentifier) -> None:
    dataset = plain("CT")
    expected = deidentifier.key.uid(dataset.SOPInstanceUID)
    data = file_bytes(dataset).replace(
        b"\x08\x00\x18\x00UI\x1a\x001.2.826.0.1.3680043.99.1.1", b"\x08\x00\x18\x00UI\0\0"
    )
    source = pydicom.dcmread(BytesIO(data))
    assert not source.SOPInstanceUID
    result = deidentifier.dataset(source)
    assert result.SOPInstanceUID == result.file_meta.MediaStorageSOPInstanceUID == expected


def test_report_counts_attributes_and_shows_no_value(deidentifier: Deidentifier) -> None:
    dataset, secrets = planted("CT")
    deidentifier.dataset(through_file(dataset))
    deidentifier.dataset(through_file(dataset))
    report = deidentifier.report
    assert report["StudyDate"] == {"Z": 2}
    assert report["PatientName"] == {"Z": 2, "pseudonym": 2}
    assert report["SOPInstanceUID"] == {"U": 2}
    assert report["KVP"] == {"K": 2}
    assert report["private"]["private"] >= 12
    assert survivors(secrets, repr(report).encode()) == []
    assert deidentifier.take_report() == report
    assert deidentifier.report == {}


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_residual_search_knows_the_secrets_and_finds_none_afterwards(modality: str, deidentifier: Deidentifier) -> None:
    dataset, _ = planted(modality)
    source = through_file(dataset)
    values = identifying_values(source)
    assert "Zvyagintseva" in values
    assert "山田竹" in values
    assert "PatientID" in scan_bytes(values, file_bytes(source))
    assert scan_bytes(values, file_bytes_of(deidentifier.dataset(source))) == set()


def file_bytes_of(dataset: Dataset) -> bytes:
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()
