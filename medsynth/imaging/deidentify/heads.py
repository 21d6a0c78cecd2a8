"""Whether a face could be recognised from a scan, by body part and field of view. Values are looked at in memory only.

What counts, in this order: a header that says RecognizableVisualFeatures NO or YES is believed. A body part that is known
(BodyPartExamined, codes of AnatomicRegionSequence) decides; where it is not, the words of the series' description and
protocol do, then those of the study's. A head counts from a field of view of 120 mm on. Nothing known: an image counts if
its field of view could be a head's in both directions. Descriptions that name the head beside another body part count
where the field of view could be a head's.
"""

from __future__ import annotations

import re

import numpy as np
from pydicom.dataset import Dataset

from medsynth.imaging.deidentify.elements import DAMAGE, whole_number
from medsynth.imaging.deidentify.suspicion import text_values
from medsynth.imaging.quiet import quiet_pydicom

VISUAL_FEATURES, BODY_PART, SPACING = 0x00280302, 0x00180015, 0x00280030
SERIES_TEXTS = (0x0008103E, 0x00181030)
STUDY_TEXTS = (0x00081030, 0x00321060)
SMALLEST_FACE_MM = 120.0
LARGEST_HEAD_MM = 300.0
LONGEST_HEAD_MM = 350.0
"""How far the frames of a multi-frame object reach, at most, if it is a head and no more."""

# fmt: off
HEAD_CODES = frozenset({
    "12738006", "122494005", "117590005", "81745001", "371398005", "89545001", "91397008", "69536005", "774007",
    "1101003", "661005", "91609006", "59066005", "70925003", "74386004", "45048000", "417437006", "416319003",
    "416152001", "45206002", "363654007", "2095001", "89546000", "53620006", "38266002",
    "T-A0100", "T-11501", "T-AB001", "T-AB000", "T-AA000", "T-D0801", "T-D1200", "T-11196", "T-D1100",
    "T-D1000", "T-D1400", "T-D1213", "T-11180", "T-11133", "T-11170", "T-11149", "T-D1600", "R-FAB52",
    "R-FAB54", "R-FAB53", "T-21000", "T-D14AE", "T-22000", "T-11100", "T-15290", "T-D0010",
})
# fmt: on
"""Codes of PS3.16 CID 4 (SNOMED CT, and SNOMED-RT before it) for regions with part of a face, and for the whole body."""

HEAD_PARTS = (
    r"HEAD|BRAIN|SKULL|FACE|FACIAL|FACEBONES|NECK|ORBITS?|ORBITA|SINUS(?:ES)?|NNH|NNS|MAXILLA|MANDIBLE|JAW|DENTAL|IACS?|"
    r"PITUITARY|SELLA|EARS?|EYES?|NOSE|CRANIUM|CRANIAL|CRANIO|CEREBRAL|CEREBRUM|NEURO|TMJ|PETROUS|MASTOIDS?|STROKE|"
    r"CSPINE|CERVICAL|WHOLE ?BODY|KOPF|HALS|SCHAEDEL|SCHÄDEL|HIRN|GEHIRN|GESICHT|CRANE|CRÂNE|TETE|TÊTE|CERVEAU|VISAGE|"
    r"ENCEPHALE|ENCÉPHALE|TESTA|CRANIO|CABEZA|CEREBRO|CRANEO|CRÁNEO|HOOFD|HERSENEN|HEADNECK|NEUROCRANIUM"
)
OTHER_PARTS = (
    r"CHEST|THORAX|THORACIC|LUNGS?|ABDOMEN|ABDOMINAL|ABD|PELVIS|PELVIC|LIVER|KIDNEYS?|RENAL|PROSTATE|UTERUS|BLADDER|COLON|"
    r"PANCREAS|SPLEEN|BREASTS?|MAMMA|HEART|CARDIAC|CORONARY|AORTA|TSPINE|LSPINE|SSPINE|LUMBAR|SACRUM|COCCYX|HIPS?|"
    r"FEMUR|THIGH|KNEES?|TIBIA|CALF|ANKLE|FOOT|FEET|TOES?|SHOULDERS?|CLAVICLE|HUMERUS|ELBOW|FOREARM|WRIST|HANDS?|"
    r"FINGERS?|THUMB|ARMS?|LEGS?|EXTREMITY|RIBS?|STERNUM|SCROTUM|RECTUM|BOWEL|TAP|CAP|UROGRAM|LEBER|LUNGE|BECKEN|KNIE|"
    r"SCHULTER|HUEFTE|HÜFTE|HERZ"
)
WORD = r"(?<![^\W\d_])(?:{})(?![^\W\d_])"
NAMES_HEAD, NAMES_OTHER = (re.compile(WORD.format(parts)) for parts in (HEAD_PARTS, OTHER_PARTS))
NO_HEAD = re.compile(
    r"HEAD[ _-]*(?:COIL|FIRST|IN|OUT)|(?:FEMORAL|HUMERAL|RADIAL|FIBULAR|METATARSAL|METACARPAL)[ _-]*(?:HEAD|NECK)|"
    r"(?:HEAD|NECK)[ _-]*OF|CORONARY[ _-]*SINUS|WITHOUT[ _-]*HEAD"
)
"""Phrases with such a word that speak of something else."""
JOINED = re.compile(r"(?:HEAD|NECK|BRAIN|SKULL)")
"""In a body part, which is one word: HEADNECK, NECKCHESTABDOMEN."""


def could_show_a_face(source: Dataset) -> bool:
    """Whether a recognisable face may be in the scan to which the image belongs. Errs on the side of a face."""
    said = text_values(source, VISUAL_FEATURES)
    if said in (["NO"], ["YES"]):
        return said == ["YES"]
    with quiet_pydicom():
        try:
            head, other = _structured(source)
            series_head, series_other = _named(source, SERIES_TEXTS)
            if not (head or other or series_head or series_other):
                head, other = _named(source, STUDY_TEXTS)
            sides, reach = _field_of_view(source)
        except (*DAMAGE, AttributeError, KeyError, IndexError):
            return True  # a header this damaged is refused right after; until then nothing speaks against a face
    large_enough = max(sides, default=SMALLEST_FACE_MM) >= SMALLEST_FACE_MM
    could_be = large_enough and all(SMALLEST_FACE_MM <= side <= LARGEST_HEAD_MM for side in sides)
    if head or (series_head and not (other or series_other)):
        return large_enough
    if other or series_other:
        return series_head and could_be
    return bool(sides) and could_be and reach <= LONGEST_HEAD_MM


def _structured(source: Dataset) -> tuple[bool, bool]:
    """Whether the coded body part is one with a head, or another one."""
    part = " ".join(text_values(source, BODY_PART))
    head, other = _parts(part)
    head = head or JOINED.search(part) is not None
    holders = [source, *(source.get("SharedFunctionalGroupsSequence") or ())]
    holders += [item for holder in holders[1:] for item in holder.get("FrameAnatomySequence") or ()]
    for holder in holders:
        for code in holder.get("AnatomicRegionSequence") or ():
            value = str(code.get("CodeValue") or "").strip().upper()
            named_head, named_other = _parts(str(code.get("CodeMeaning") or "").upper())
            head = head or value in HEAD_CODES or named_head
            other = other or named_other
    return head, other


def _named(source: Dataset, tags: tuple[int, ...]) -> tuple[bool, bool]:
    """Whether descriptive texts name the head, and whether they name another part of the body."""
    return _parts(" ".join(value for tag in tags for value in text_values(source, tag)))


def _parts(text: str) -> tuple[bool, bool]:
    plain = NO_HEAD.sub(" ", text)
    return NAMES_HEAD.search(plain) is not None, NAMES_OTHER.search(text) is not None


def _field_of_view(source: Dataset) -> tuple[list[float], float]:
    """Height and width of the image in mm (empty where unknown), and how far the frames of one object reach along their
    normal (0 for one image)."""
    shared = list(source.get("SharedFunctionalGroupsSequence") or ())
    frames = list(source.get("PerFrameFunctionalGroupsSequence") or ())
    measures = [item for holder in (*frames[:1], *shared) for item in holder.get("PixelMeasuresSequence") or ()]
    spacing = next((text_values(item, SPACING) for item in (*measures, source) if SPACING in item), [])
    if len(spacing) != 2 or not all(spacing):
        return [], 0.0
    pixels = (whole_number(source, 0x00280010, 0), whole_number(source, 0x00280011, 0))
    sides = [float(step) * count for step, count in zip(spacing, pixels, strict=True)]
    places = [
        [float(number) for number in item.ImagePositionPatient]
        for frame in frames
        for item in frame.get("PlanePositionSequence") or ()
        if item.get("ImagePositionPatient")
    ]
    reach = float(np.linalg.norm(np.ptp(np.array(places), axis=0))) if len(places) > 1 else 0.0
    return sides, reach
