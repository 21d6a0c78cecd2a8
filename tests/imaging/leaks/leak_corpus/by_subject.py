"""Places by what stands there: who, when, where, which machine; codes; what earlier tools left."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from .carriers import CLASSIC, item
from .secrets import Secret
from .sheet import Place, Plant, Sheet

UIDS, DATES = frozenset({"retain_uids"}), frozenset({"retain_full_dates"})
TIMES = frozenset({"retain_full_dates", "retain_modified_dates"})
PERSON, DEVICE = frozenset({"retain_patient_characteristics"}), frozenset({"retain_device_identity"})
INSTITUTION = frozenset({"retain_institution_identity"})
NOTHING: frozenset[str] = frozenset()

WORDS: dict[str, tuple[tuple[str, ...], frozenset[str]]] = {
    "who": (
        (
            *("PatientID", "IssuerOfPatientID", "OtherPatientIDs", "PatientInsurancePlanCodeSequence", "MilitaryRank"),
            *(
                "BranchOfService",
                "CountryOfResidence",
                "RegionOfResidence",
                "PatientReligiousPreference",
                "AdmissionID",
            ),
            *(
                "AccessionNumber",
                "StudyID",
                "CurrentPatientLocation",
                "PatientInstitutionResidence",
                "ServiceEpisodeID",
            ),
            *("MedicalRecordLocator", "ClinicalTrialSubjectID", "ResponsibleOrganization"),
        ),
        NOTHING,
    ),
    "who, characteristics": (("EthnicGroup", "Occupation"), PERSON),
    "free text": (
        (
            *("StudyDescription", "SeriesDescription", "ProtocolName", "ImageComments", "DerivationDescription"),
            *("RequestedProcedureDescription", "PerformedProcedureStepDescription", "ReasonForStudy"),
            *("AdmittingDiagnosesDescription", "AcquisitionComments", "AdditionalPatientHistory", "MedicalAlerts"),
            *(
                "Allergies",
                "ContrastBolusAgent",
                "VisitComments",
                "ReasonForTheRequestedProcedure",
                "InterpretationText",
            ),
            *("AcquisitionProtocolDescription", "AcquisitionDeviceProcessingDescription", "RequestingService"),
        ),
        NOTHING,
    ),
    "where": (
        ("InstitutionName", "InstitutionalDepartmentName", "InstitutionAddress", "ClinicalTrialSiteName"),
        INSTITUTION,
    ),
    "machine": (
        ("StationName", "DeviceSerialNumber", "DetectorID", "PlateID", "GantryID", "CassetteID", "GeneratorID"),
        DEVICE,
    ),
    "terms": (
        (
            *("FilterType", "ReceiveCoilName", "PositionReferenceIndicator", "Laterality", "BodyPartExamined"),
            *("ManufacturerModelName", "SoftwareVersions", "SequenceName", "ConvolutionKernel", "TransmitCoilName"),
            *("ImageID", "FrameOfInterestDescription", "AnatomicalOrientationType", "PatientPosition"),
        ),
        NOTHING,
    ),
    "machine, terms": (("Manufacturer",), DEVICE),
}
"""Attributes that hold text: subject -> keywords, and the options under which their values may stay."""
TERMS_UNDER_DEVICE = ("ManufacturerModelName", "SoftwareVersions")
NAMES = ("PatientName", "OtherPatientNames", "PatientBirthName", "ReferringPhysicianName", "PerformingPhysicianName",
         "NameOfPhysiciansReadingStudy", "RequestingPhysician", "ResponsiblePerson")  # fmt: skip
DAYS = ("PatientBirthDate", "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "LastMenstrualDate",
        "PerformedProcedureStepStartDate", "DateOfLastCalibration")  # fmt: skip
NEVER_KEPT_DAYS = ("PatientBirthDate",)
MOMENTS = ("StudyTime", "SeriesTime", "AcquisitionTime", "ContentTime", "PatientBirthTime")
IDENTIFIERS = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "IrradiationEventUID",
               "InstanceCreatorUID", "SynchronizationFrameOfReferenceUID", "DeviceUID", "RelatedGeneralSOPClassUID",
               "ConcatenationUID")  # fmt: skip


def places() -> Iterator[Place]:
    """All of them."""
    for subject, (keywords, allowed) in WORDS.items():
        for keyword in keywords:
            may = DEVICE if keyword in TERMS_UNDER_DEVICE else allowed
            yield Place(subject, keyword, _word(keyword), allowed=may)
    for keyword in NAMES:
        yield Place("names", keyword, _set(keyword, "name"))
    for keyword in DAYS:
        yield Place("days", keyword, _set(keyword, "day"), allowed=NOTHING if keyword in NEVER_KEPT_DAYS else DATES)
    for keyword in MOMENTS:
        yield Place("times", keyword, _set(keyword, "time"), allowed=NOTHING if "Birth" in keyword else TIMES)
    for keyword in IDENTIFIERS:
        allowed = UIDS | DEVICE if keyword == "DeviceUID" else UIDS
        yield Place("UIDs", keyword, _set(keyword, "uid"), allowed=allowed)
    yield Place("UIDs", "file meta and dataset disagree", _uid_of_meta_alone, allowed=UIDS)
    yield Place("many values", "first of two names", _operators(0))
    yield Place("many values", "last of three names", _operators(2), alone=True)
    yield Place("many values", "third date", _third_date, allowed=DATES)
    yield Place("many values", "second image type value", _second_type)
    yield from _codes()
    yield from _earlier()


def _word(keyword: str) -> Plant:
    def plant(sheet: Sheet) -> Secret:
        secret = sheet.secrets.word()
        if keyword.endswith("Sequence"):
            sheet.dataset.__setattr__(keyword, Sequence([_code(secret.text, "99X", "plan")]))
        elif keyword == "Manufacturer":
            sheet.dataset.Manufacturer = f"Works of {secret.text}"
        else:
            setattr(sheet.dataset, keyword, secret.text)
        return secret

    return plant


def _set(keyword: str, kind: str) -> Plant:
    def plant(sheet: Sheet) -> Secret:
        secret: Secret = getattr(sheet.secrets, kind)()
        setattr(sheet.dataset, keyword, f"{secret.text}^Ximena" if kind == "name" else secret.text)
        if keyword == "SOPInstanceUID":
            sheet.dataset.file_meta.MediaStorageSOPInstanceUID = secret.text
        return secret

    return plant


def _uid_of_meta_alone(sheet: Sheet) -> Secret:
    secret = sheet.secrets.uid()
    sheet.dataset.SOPInstanceUID = secret.text
    text = secret.text.encode()
    tag = b"\x08\x00\x18\x00UI" + struct.pack("<H", len(text) + len(text) % 2)
    sheet.edits.append(lambda data: data.replace(tag + text, tag + text[:-4] + b"8888", 1))
    return secret


def _operators(place: int) -> Plant:
    def plant(sheet: Sheet) -> Secret:
        secret = sheet.secrets.name()
        names = ["Adams^A", "Berg^B", "Cole^C"]
        names[place] = f"{secret.text}^Ximena"
        sheet.dataset.OperatorsName = names
        return secret

    return plant


def _third_date(sheet: Sheet) -> Secret:
    secret = sheet.secrets.day()
    sheet.add(0x00181200, "DA", ["20170101", "20170102", secret.text])
    return secret


def _second_type(sheet: Sheet) -> Secret:
    secret = sheet.secrets.word()
    sheet.dataset.ImageType = [*sheet.dataset.ImageType, "NORM", secret.text]
    return secret


def _code(value: str, scheme: str, meaning: str, **more: str) -> Dataset:
    return item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning, **more)


def _coded(keyword: str, make: Callable[[str], Dataset]) -> Plant:
    def plant(sheet: Sheet) -> Secret:
        secret = sheet.secrets.word()
        items = list(sheet.dataset.get(keyword) or ())
        setattr(sheet.dataset, keyword, Sequence([*items, make(secret.text)]))
        return secret

    return plant


def _codes() -> Iterator[Place]:
    region = "AnatomicRegionSequence"
    for name, keyword, make in (
        ("meaning of a known code", region, lambda word: _code("69536005", "SCT", word)),
        ("version of a known code", region, lambda word: _code("69536005", "SCT", "Head", CodingSchemeVersion=word)),
        ("value of a local code", region, lambda word: _code(word, "99LOCAL", "Head")),
        ("meaning of a local code", region, lambda word: _code("L1", "99LOCAL", word)),
        ("long value of a code", region, lambda word: item(LongCodeValue=word, CodeMeaning="Head")),
        ("URN of a code", region, lambda word: item(URNCodeValue=f"urn:x:{word}", CodeMeaning="Head")),
        ("meaning of a method code", "DeidentificationMethodCodeSequence", lambda word: _code("113101", "DCM", word)),
        ("value of a method code", "DeidentificationMethodCodeSequence", lambda word: _code(word, "DCM", "method")),
        ("procedure code", "ProcedureCodeSequence", lambda word: _code("P1", "99X", word)),
        ("protocol code", "PerformedProtocolCodeSequence", lambda word: _code("P1", "99X", word)),
        ("view code", "ViewCodeSequence", lambda word: _code("399110001", "SCT", word)),
        (
            *("coding scheme name", "CodingSchemeIdentificationSequence"),
            lambda word: item(CodingSchemeDesignator="99LOCAL", CodingSchemeName=word),
        ),
        (
            *("coding scheme organisation", "CodingSchemeIdentificationSequence"),
            lambda word: item(CodingSchemeDesignator="99LOCAL", CodingSchemeResponsibleOrganization=word),
        ),
        ("context of acquisition", "AcquisitionContextSequence", lambda word: item(ValueType="TEXT", TextValue=word)),
        (
            *("meaning within acquisition context", "AcquisitionContextSequence"),
            lambda word: item(ValueType="CODE", ConceptNameCodeSequence=Sequence([_code("109054", "DCM", word)])),
        ),
    ):
        yield Place("codes", name, _coded(keyword, make))


def _equipment(keyword: str) -> Callable[[str], Dataset]:
    def make(word: str) -> Dataset:
        made = item(Manufacturer="SIEMENS", PurposeOfReferenceCodeSequence=Sequence([_code("109101", "DCM", "x")]))
        if keyword == "PurposeOfReferenceCodeSequence":
            made.PurposeOfReferenceCodeSequence = Sequence([_code("109101", "DCM", word)])
        else:
            setattr(made, keyword, word)
        return made

    return make


def _earlier() -> Iterator[Place]:
    """What equipment and tools write about themselves and about what stood there before."""
    for keyword, allowed in (
        *(("InstitutionName", INSTITUTION), ("InstitutionAddress", INSTITUTION), ("OperatorsName", NOTHING)),
        *(("ContributionDescription", NOTHING), ("DeviceSerialNumber", DEVICE), ("StationName", DEVICE)),
        *(("Manufacturer", DEVICE), ("ManufacturerModelName", DEVICE), ("SoftwareVersions", DEVICE)),
        *(("PurposeOfReferenceCodeSequence", NOTHING), ("ImageComments", NOTHING)),
    ):
        plant = _coded("ContributingEquipmentSequence", _equipment(keyword))
        yield Place("contributing equipment", keyword, plant, allowed=allowed)
    yield Place("earlier tools", "DeidentificationMethod, free text", _method)
    yield Place("earlier tools", "OriginalAttributesSequence", _coded("OriginalAttributesSequence", _original))
    yield Place(
        *("earlier tools", "source of previous values"),
        _coded("OriginalAttributesSequence", lambda word: item(SourceOfPreviousValues=word)),
    )
    yield Place(
        *("earlier tools", "certificate of a signature"),
        _coded("DigitalSignaturesSequence", lambda word: item(CertificateOfSigner=word.encode())),
    )
    yield Place(
        *("earlier tools", "encrypted attributes, in fact plain"),
        _coded("EncryptedAttributesSequence", lambda word: item(EncryptedContent=word.encode())),
    )
    yield Place(
        *("earlier tools", "other patient IDs in a sequence"),
        _coded("OtherPatientIDsSequence", lambda word: item(PatientID=word, IssuerOfPatientID="X")),
    )
    yield Place(
        *("earlier tools", "issuer of accession number"),
        _coded("IssuerOfAccessionNumberSequence", lambda word: item(LocalNamespaceEntityID=word)),
    )
    for keyword in ("ReferencedStudySequence", "ReferencedPerformedProcedureStepSequence", "ReferencedImageSequence"):
        yield Place("references", keyword, _referenced(keyword), allowed=UIDS)
    yield Place("references", "comment inside a source image", _comment_in_source, CLASSIC)


def _method(sheet: Sheet) -> Secret:
    secret = sheet.secrets.word()
    sheet.dataset.DeidentificationMethod = ["Basic Application Confidentiality Profile", f"by hand, {secret.text}"]
    return secret


def _original(word: str) -> Dataset:
    return item(ModifiedAttributesSequence=Sequence([item(PatientID=word)]), ModifyingSystem="X")


def _referenced(keyword: str) -> Plant:
    def plant(sheet: Sheet) -> Secret:
        secret = sheet.secrets.uid()
        setattr(
            sheet.dataset,
            keyword,
            Sequence([item(ReferencedSOPClassUID="1.2.840.10008.5.1.4.1.1.2", ReferencedSOPInstanceUID=secret.text)]),
        )
        return secret

    return plant


def _comment_in_source(sheet: Sheet) -> Secret:
    secret = sheet.secrets.word()
    source = item(
        ReferencedSOPClassUID="1.2.840.10008.5.1.4.1.1.2", ReferencedSOPInstanceUID="1.2.826.0.1.3680043.98.5"
    )
    source.ImageComments = secret.text
    sheet.dataset.SourceImageSequence = Sequence([source])
    return secret
