"""Burned-in text: suspected by the header, found by OCR, blanked and verified, or refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from burned_in import NAME, SIZE, anatomy, as_read, copy_of, image, letters, put, reread, secondary_capture
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.pixels import pixel_array
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from medsynth.config.deidentify import Deidentify
from medsynth.errors import ConfigError, PrivacyError, UnreadableError
from medsynth.imaging.deidentify import Deidentifier, SecretKey, guard, ocr
from medsynth.imaging.deidentify.guard import PixelGuard, blank, has_strokes
from medsynth.imaging.deidentify.regions import Region, read_rules, regions_for, shipped_rules
from medsynth.imaging.deidentify.suspicion import suspected_text

needs_ocr = [
    pytest.mark.slow,
    pytest.mark.skipif(not importlib.util.find_spec(ocr.PACKAGE), reason="needs the extra medsynth-diffusion[ocr]"),
]
RULES = """
rules:
  - name: our-scanner
    when: {Manufacturer: "siem*", Rows: 240}
    blank: [[4, 4, 140, 30]]
"""
SYNTAXES = [
    *(ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian),
    *(RLELossless, JPEG2000Lossless, JPEGLSLossless),
]


@pytest.fixture
def rules(tmp_path: Path) -> str:
    path = tmp_path / "regions.yaml"
    path.write_text(RULES)
    return str(path)


def cleaning(rules: str | None = None, mode: str = "off") -> PixelGuard:
    return PixelGuard(Deidentify(options=("clean_pixel_data",), regions=rules, ocr=mode))  # type: ignore[arg-type]


def through(guard: PixelGuard, source: Dataset) -> Dataset:
    """Check and clean, as the driver does; the result is read back from a file."""
    regions = guard.check(source)
    assert regions
    clean = copy_of(source)
    guard.clean(source, clean, regions)
    return reread(clean)


SUSPECTED = {
    "annotation": {"BurnedInAnnotation": "YES"},
    "secondary capture": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"},
    "multi-frame secondary capture": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.4"},
    "screen": {"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]},
    "Siemens sheet": {"ImageType": ["DERIVED", "SECONDARY", "OTHER", "CT_SOM5 PROT"]},
    "Philips sheet": {"ImageType": ["DERIVED", "SECONDARY", "DOSE_INFO"]},
    "GE sheet": {"SeriesDescription": "Dose Report"},
    "conversion": {"ConversionType": "SD"},
    "modality": {"Modality": "OT"},
    "colours": {"PhotometricInterpretation": "RGB"},
    "palette": {"PhotometricInterpretation": "PALETTE COLOR"},
}
PLAIN = {
    "nothing": {},
    "annotation no": {"BurnedInAnnotation": "NO"},
    "scout": {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
    "reformatted": {"ImageType": ["DERIVED", "SECONDARY", "MPR"]},
    "low dose": {"SeriesDescription": "Low dose chest"},
    "inverted": {"PhotometricInterpretation": "MONOCHROME1"},
}


@pytest.mark.parametrize("values", SUSPECTED.values(), ids=SUSPECTED)
@pytest.mark.parametrize("said", [None, "NO"])
def test_what_looks_like_text_is_refused_whatever_the_header_denies(
    values: dict[str, object], said: str | None
) -> None:
    source = image()
    if said is not None:
        source.BurnedInAnnotation = said
    for keyword, value in values.items():
        setattr(source, keyword, value)
    with pytest.raises(PrivacyError, match=r"option clean_pixel_data.*install medsynth-diffusion\[ocr\].*leave"):
        PixelGuard(Deidentify(ocr="off")).check(source)


@pytest.mark.parametrize("values", PLAIN.values(), ids=PLAIN)
def test_scans_raise_no_suspicion(values: dict[str, object]) -> None:
    source = image(**values)
    assert not suspected_text(source)
    assert PixelGuard(Deidentify(ocr="off")).check(source) == ()


def test_no_message_repeats_a_value() -> None:
    source = image(ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE", "ACHTERBERG"], SeriesDescription="Brandvold")
    with pytest.raises(PrivacyError) as caught:
        PixelGuard(Deidentify(ocr="off")).check(source)
    assert not {"ACHTERBERG", "BRANDVOLD", "SIEMENS"} & set(str(caught.value).upper().replace(",", " ").split())


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("frames", [1, 3])
def test_a_rule_blanks_its_region_and_nothing_else(syntax: UID, frames: int, rules: str) -> None:
    dataset = image(BurnedInAnnotation="YES")
    ink = letters(NAME, *SIZE)
    if frames > 1:
        pixels = np.stack([anatomy(seed=k) for k in range(frames)])
        pixels[:, ink] = 3000
        put(dataset, pixels)
    source = as_read(dataset, syntax)
    before = source.pixel_array.copy()
    result = through(cleaning(rules), source)
    after = result.pixel_array
    expected = before.copy().reshape(frames, *SIZE)
    expected[:, 4:34, 4:144] = expected.reshape(frames, -1).min(axis=1)[:, None, None]
    assert np.array_equal(after.reshape(frames, *SIZE), expected)
    assert not np.any(after.reshape(frames, *SIZE)[:, ink] == 3000)
    assert result.BurnedInAnnotation == "NO"
    assert result.file_meta.TransferSyntaxUID == (ExplicitVRLittleEndian if syntax in SYNTAXES[3:] else syntax)
    assert np.array_equal(source.pixel_array, before)


def test_inverted_grey_is_blanked_with_its_highest_value() -> None:
    values = np.arange(24, dtype=np.int16).reshape(1, 4, 6, 1)
    assert (blank(values, (Region(1, 1, 2, 2),), "MONOCHROME1")[0, 1:3, 1:3] == 23).all()
    assert (blank(values, (Region(1, 1, 2, 2),), "MONOCHROME2")[0, 1:3, 1:3] == 0).all()


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL"])
def test_colours_are_blanked_to_black(photometric: str, rules: str) -> None:
    dataset = secondary_capture(colour=True)
    dataset.PhotometricInterpretation = photometric
    source = as_read(dataset)
    result = through(cleaning(rules), source)
    after, before = pixel_array(result, raw=True), pixel_array(source, raw=True)
    assert (after[4:34, 4:144] == ([0, 0, 0] if photometric == "RGB" else [0, 128, 128])).all()
    assert np.array_equal(after[40:], before[40:])
    assert result.PhotometricInterpretation == photometric


def test_planes_of_colour_are_put_together(rules: str) -> None:
    dataset = secondary_capture(colour=True)
    dataset.PixelData = np.ascontiguousarray(dataset.pixel_array.transpose(2, 0, 1)).tobytes()
    dataset.PlanarConfiguration = 1
    source = as_read(dataset)
    result = through(cleaning(rules), source)
    assert np.array_equal(result.pixel_array[40:], source.pixel_array[40:])


def test_lossy_compression_stays_said(rules: str) -> None:
    source = dcmread(str(get_testdata_file("SC_rgb_jpeg_dcmtk.dcm")))
    source.Manufacturer = "Siemens"
    for keyword in ("LossyImageCompression", "LossyImageCompressionMethod"):
        if keyword in source:
            del source[keyword]
    clean = copy_of(source)
    cleaning(rules).clean(source, clean, [Region(0, 0, 20, 10)])
    assert clean.LossyImageCompression == "01"
    assert clean.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    result = reread(clean)
    assert not np.any(result.pixel_array[:10, :20])
    assert np.array_equal(result.pixel_array[10:], source.pixel_array[10:])


def test_the_option_alone_does_not_blank_without_knowing_where() -> None:
    with pytest.raises(PrivacyError, match="regions"):
        cleaning().check(image(BurnedInAnnotation="YES"))


def test_a_rule_does_nothing_without_the_option(rules: str) -> None:
    with pytest.raises(PrivacyError, match="clean_pixel_data"):
        PixelGuard(Deidentify(regions=rules, ocr="off")).check(image(BurnedInAnnotation="YES"))


def test_a_required_package_that_is_missing_is_an_error_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    guard._finder.cache_clear()
    monkeypatch.setattr(ocr, "PACKAGE", "no_such_package_of_any_kind")
    with pytest.raises(ConfigError, match=r"medsynth-diffusion\[ocr\]"):
        PixelGuard(Deidentify(ocr="require"))
    with pytest.raises(PrivacyError):
        PixelGuard(Deidentify(ocr="auto")).check(image(BurnedInAnnotation="YES"))
    guard._finder.cache_clear()


def test_the_rules_that_come_with_medsynth_load_and_fit_what_they_name() -> None:
    sheet = image(Manufacturer="GE MEDICAL SYSTEMS", SeriesDescription="Dose Report", Rows=512, Columns=512)
    assert regions_for(sheet, shipped_rules()) == (Region(0, 0, 512, 121),)
    assert regions_for(image(), shipped_rules()) == ()
    assert all(rule.source for rule in shipped_rules())


def test_shares_are_of_the_image_and_nothing_sticks_out(tmp_path: Path) -> None:
    path = tmp_path / "shares.yaml"
    path.write_text(
        'rules:\n  - {name: a, when: {ManufacturerModelName: "x?1"}, blank: [[0.0, 0.9, 1, 0.1], [250, 0, 99, 9]]}\n'
    )
    rules = read_rules(path)
    assert regions_for(image(ManufacturerModelName="XY1"), rules) == (Region(0, 216, 256, 24), Region(250, 0, 6, 9))
    assert regions_for(image(ManufacturerModelName="XYZ1"), rules) == ()


def test_the_sites_rules_come_first(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text('rules:\n  - {name: own, when: {Manufacturer: "GE*"}, blank: [[0, 0, 512, 30]]}\n')
    sheet = image(Manufacturer="GE MEDICAL SYSTEMS", SeriesDescription="Dose Report", BurnedInAnnotation="YES")
    sheet.Rows = sheet.Columns = 512
    assert cleaning(str(path)).check(sheet) == (Region(0, 0, 512, 30),)


def test_all_mistakes_in_rules_come_at_once_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        "rules:\n"
        "  - name: first\n"
        "    when: {Manufacturer: a, Colums: 3}\n"
        "    blank: [[0, 0, 10]]\n"
        "  - name: SECOND\n"
        "    when: {Modality: CT}\n"
        "    blank: [[0, 0, 10, 0]]\n"
    )
    with pytest.raises(ConfigError) as caught:
        read_rules(path)
    text = "\n".join(caught.value.mistakes)
    for line, word in [(3, "Colums"), (4, "blank"), (5, "name"), (6, "Manufacturer"), (7, "area")]:
        assert any(f":{line}:" in mistake and word in mistake for mistake in caught.value.mistakes), (line, text)
    with pytest.raises(ConfigError, match="expected a YAML file of rules"):
        read_rules(tmp_path / "none.yaml")


def test_suspected_pixels_that_cannot_be_decoded_are_unreadable(rules: str) -> None:
    source = as_read(image(BurnedInAnnotation="YES"))
    source.PixelData = source.PixelData[:100]
    with pytest.raises(UnreadableError):
        cleaning(rules).clean(source, copy_of(source), [Region(0, 0, 4, 4)])


def test_letters_are_strokes_and_metal_is_not() -> None:
    pixels = anatomy()
    assert not has_strokes(pixels)
    metal = pixels.copy()
    metal[70:86, 100:120] = 3071
    assert not has_strokes(metal)
    for height in (9, 16, 30):
        drawn = pixels.copy()
        drawn[letters(NAME, *SIZE, height=height)] = 3071
        assert has_strokes(drawn)
    assert not has_strokes(np.full(SIZE, 5))


class TestOcr:
    pytestmark = needs_ocr

    @pytest.mark.parametrize("modality", ["CT", "MR"])
    @pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEG2000Lossless])
    def test_text_is_found_and_blanked_and_anatomy_stays(self, modality: str, syntax: UID) -> None:
        source = as_read(image(modality, BurnedInAnnotation="YES"), syntax)
        before = source.pixel_array
        after = through(cleaning(mode="require"), source).pixel_array
        assert not np.any(after[letters(NAME, *SIZE)] == 3000)
        assert np.array_equal(after[60:], before[60:])

    @pytest.mark.parametrize("colour", [False, True])
    def test_a_screen_is_cleaned(self, colour: bool) -> None:
        source = as_read(secondary_capture(colour=colour))
        result = through(cleaning(mode="require"), source)
        assert not np.any(result.pixel_array[letters(NAME, *SIZE)] == 250)
        assert np.array_equal(result.pixel_array[100:140, 40:200], source.pixel_array[100:140, 40:200])
        assert cleaning(mode="require").check(result) == ()

    def test_text_is_refused_without_the_option(self) -> None:
        with pytest.raises(PrivacyError, match="clean_pixel_data"):
            PixelGuard(Deidentify()).check(secondary_capture())

    def test_a_soft_suspicion_without_text_passes_and_an_admission_does_not(self) -> None:
        for settings in (Deidentify(), Deidentify(options=("clean_pixel_data",))):
            assert PixelGuard(settings).check(secondary_capture(text="")) == ()
            with pytest.raises(PrivacyError, match="none that could be blanked"):
                PixelGuard(settings).check(image(text="", BurnedInAnnotation="YES"))

    def test_a_rule_that_misses_text_is_completed(self, rules: str) -> None:
        source = image(BurnedInAnnotation="YES")
        pixels = source.pixel_array.copy()
        pixels[letters("QUINTAVALLE", *SIZE, at=(60, 130))] = 3000
        put(source, pixels)
        after = through(cleaning(rules, "require"), source).pixel_array
        assert not np.any(after == 3000)

    def test_text_that_is_left_is_noticed(self) -> None:
        source = image(BurnedInAnnotation="YES")
        with pytest.raises(PrivacyError, match="expected no text after blanking"):
            cleaning(mode="require").clean(source, copy_of(source), [Region(0, 140, 9, 9)])

    def test_every_frame_is_read(self) -> None:
        dataset = image(BurnedInAnnotation="YES")
        pixels = np.stack([anatomy(seed=k) for k in range(3)])
        pixels[2, letters(NAME, *SIZE)] = 3000
        put(dataset, pixels)
        regions = cleaning(mode="require").check(dataset)
        assert {region.frame for region in regions} == {2}

    @pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
    def test_letters_that_no_header_admits_are_found_at_the_highest_value(self, syntax: UID) -> None:
        source = as_read(image(), syntax)
        with pytest.raises(PrivacyError, match="drawn into the pixels"):
            PixelGuard(Deidentify()).check(source)
        assert not np.any(through(cleaning(mode="auto"), source).pixel_array[letters(NAME, *SIZE)] == 3000)
        assert PixelGuard(Deidentify()).check(as_read(image(text="R"), syntax)) == ()

    def test_nothing_that_was_read_is_printed_or_logged(
        self, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        cleaning(mode="require").check(secondary_capture())
        cleaning(mode="require").check(secondary_capture(text=""))
        assert capfd.readouterr() == ("", "")
        assert caplog.text == ""


def deidentifier(**settings: object) -> Deidentifier:
    return Deidentifier(SecretKey(bytes(range(32))), Deidentify(ocr="off", **settings))  # type: ignore[arg-type]


def claims(clean: Dataset) -> list[str]:
    return [code.CodeValue for code in clean.DeidentificationMethodCodeSequence]


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_only_cleaned_pixels_claim_to_be_clean(syntax: UID, rules: str) -> None:
    guarded = deidentifier(options=("clean_pixel_data",), regions=rules)
    suspected = reread(guarded.dataset(as_read(image(BurnedInAnnotation="YES"), syntax)))
    plain_one = reread(guarded.dataset(as_read(image(text=""), syntax)))
    assert claims(suspected) == ["113100", "113101"]
    assert suspected.BurnedInAnnotation == "NO"
    assert not np.any(suspected.pixel_array[letters(NAME, *SIZE)] == 3000)
    assert claims(plain_one) == ["113100"]
    assert "BurnedInAnnotation" not in plain_one
    assert plain_one.file_meta.TransferSyntaxUID == syntax
    assert np.array_equal(plain_one.pixel_array, image(text="").pixel_array)


def test_the_deidentifier_refuses_text_and_faces() -> None:
    with pytest.raises(PrivacyError, match="burned-in"):
        deidentifier().dataset(image(BurnedInAnnotation="YES"))
    face = image(text="", BodyPartExamined="HEAD", PixelSpacing=[0.9, 0.9])
    with pytest.raises(PrivacyError, match="face"):
        deidentifier().dataset(face)
    accepted = deidentifier(accept_faces=True).dataset(face)
    assert claims(accepted) == ["113100"]
    assert "RecognizableVisualFeatures" not in accepted
