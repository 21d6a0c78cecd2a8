"""Modality lookup tables (PS3.3 C.11.1)."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from dicom_series import CT, MR, AsItIs, stored_values, write_series
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut
from pydicom.sequence import Sequence
from pydicom.uid import ImplicitVRLittleEndian

from medsynth.errors import DataError, UnreadableError
from medsynth.imaging.deidentify import Deidentifier, SecretKey
from medsynth.imaging.dicom import find_series
from medsynth.imaging.read import read_scan


def with_table(entries, first, *, bits=16, unit="HU", data=None, signed=False, count=None, rescale=False):
    def edit(dataset, k):
        if not rescale:
            del dataset.RescaleSlope, dataset.RescaleIntercept
        if "RescaleType" in dataset:
            del dataset.RescaleType
        item = Dataset()
        vr = "SS" if signed else "US"
        stated = len(entries) if count is None else count
        item.add_new(0x00283002, vr, [stated % 65536 if not signed else stated, first, bits])
        item.ModalityLUTType = unit
        item.LUTExplanation = "Nora's table"
        item.add_new(0x00283006, "OW", np.asarray(entries, "<u2").tobytes() if data is None else data)
        dataset.ModalityLUTSequence = Sequence([item])
        if signed:
            dataset.PixelRepresentation, dataset.BitsStored, dataset.HighBit = 1, 16, 15

    return edit


@pytest.mark.parametrize("implicit", [False, True])
def test_each_stored_value_becomes_its_entry_and_the_ends_continue(tmp_path, implicit):
    entries = np.random.default_rng(1).permutation(3000)[:2000]
    stored = stored_values(4)
    paths = write_series(tmp_path, stored, edit=with_table(entries, 700))
    if implicit:
        for path in paths:
            dataset = pydicom.dcmread(path)
            dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
            dataset.save_as(path, implicit_vr=True)
    scan = np.asarray(read_scan(tmp_path, deidentifier=AsItIs()))[0].transpose(2, 1, 0)
    expected = entries[np.clip(stored.astype(int) - 700, 0, 1999)]
    assert (stored < 700).any() and (stored > 2699).any()
    assert np.array_equal(scan, expected)
    judged = [apply_modality_lut(pixels, pydicom.dcmread(path)) for pixels, path in zip(stored, paths, strict=True)]
    assert np.array_equal(scan, np.array(judged))


def test_the_first_mapped_value_is_signed_where_pixels_are(tmp_path):
    entries = np.arange(100) * 3
    stored = (stored_values(3) % 200).astype(np.int16) - 100
    write_series(tmp_path, stored, edit=with_table(entries, -50, signed=True))
    scan = np.asarray(read_scan(tmp_path, deidentifier=AsItIs()))[0].transpose(2, 1, 0)
    assert np.array_equal(scan, entries[np.clip(stored + 50, 0, 99)])


def test_entries_of_eight_bits_may_be_packed(tmp_path):
    entries = np.random.default_rng(2).integers(0, 256, 4000).astype(np.uint8)
    stored = stored_values(3)
    write_series(tmp_path, stored, edit=with_table(entries, 0, bits=8, data=entries.tobytes()))
    scan = np.asarray(read_scan(tmp_path, deidentifier=AsItIs()))[0].transpose(2, 1, 0)
    assert np.array_equal(scan, entries[stored])


def test_a_table_of_65536_entries_states_zero(tmp_path):
    entries = np.random.default_rng(3).integers(0, 30000, 65536)
    stored = stored_values(3)
    write_series(tmp_path, stored, edit=with_table(entries, 0))
    scan = np.asarray(read_scan(tmp_path, deidentifier=AsItIs()))[0].transpose(2, 1, 0)
    assert np.array_equal(scan, entries[stored])


def test_the_unit_of_a_ct_must_be_hounsfield(tmp_path):
    write_series(tmp_path / "ct", stored_values(3), kind=CT, edit=with_table(np.arange(4000), 0, unit="OD"))
    with pytest.raises(DataError, match="another unit than HU"):
        find_series(tmp_path / "ct").series[0].check()
    write_series(tmp_path / "mr", stored_values(3), kind=MR, edit=with_table(np.arange(4000), 0, unit="US"))
    assert read_scan(tmp_path / "mr", deidentifier=AsItIs()).meta["unit"] == "a.u."


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (with_table(np.arange(10), 0, data=b"\1\0\2\0"), "contradicts its own descriptor"),
        (with_table(np.arange(10), 0, bits=40), "contradicts its own descriptor"),
        (with_table(np.arange(10), 0, bits=12, data=bytes(10)), "contradicts its own descriptor"),
        (with_table(np.arange(10), 0, rescale=True), "two meanings"),
    ],
)
def test_tables_that_contradict_something_are_refused(tmp_path, edit, words):
    write_series(tmp_path, stored_values(3), edit=edit)
    with pytest.raises((DataError, UnreadableError), match=words) as raised:
        find_series(tmp_path).series[0].check()
    assert "Nora" not in str(raised.value)


def test_the_table_survives_de_identification(tmp_path):
    secrets = tmp_path / "secrets"
    secrets.mkdir(mode=0o700)
    deidentifier = Deidentifier(SecretKey.load_or_create(secrets / "key"))
    entries = np.arange(4000)[::-1] // 2
    stored = stored_values(3)
    write_series(tmp_path / "ct", stored, edit=with_table(entries, 0))
    scan = np.asarray(read_scan(tmp_path / "ct", deidentifier=deidentifier))[0].transpose(2, 1, 0)
    assert np.array_equal(scan, entries[stored])
