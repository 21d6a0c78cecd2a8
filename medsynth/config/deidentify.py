"""Settings of de-identification: which options of PS3.15 Annex E apply, and what becomes of text and faces in pixels."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from medsynth.config.base import ConfigPath, Settings

Option = Literal[
    "retain_full_dates",
    "retain_modified_dates",
    "retain_patient_characteristics",
    "retain_device_identity",
    "retain_institution_identity",
    "retain_uids",
    "retain_safe_private",
    "clean_descriptors",
    "clean_structured_content",
    "clean_graphics",
    "clean_pixel_data",
    "clean_recognizable_visual_features",
]
"""The options of PS3.15 table E.1-1 by their names in the standard."""


class Deidentify(Settings):
    """How identities are taken out. Without options: the Basic Application Level Confidentiality Profile alone."""

    options: tuple[Option, ...] = ()
    """`clean_pixel_data` masks suspected images where a rule says which region, `clean_recognizable_visual_features` runs
    `face_command` on suspected heads; without them such images are refused."""
    regions: ConfigPath | None = None
    """YAML of your own devices' regions with burned-in text, read before the rules that come with medsynth."""
    ocr: Literal["auto", "off", "require"] = "auto"
    """Look for text in suspected images: where an OCR package is installed, never, or refuse to go on without one."""
    face_command: Annotated[tuple[str, ...], Field(min_length=2)] | None = None
    """Program and arguments that remove a face; `{input}` and `{output}` stand for NIfTI files on the same grid."""
    accept_faces: bool = False
    """Let heads through as they are. A face can be recognised from a head scan, whatever its header says."""

    @model_validator(mode="after")
    def _coherent(self) -> Deidentify:
        wrong: list[str] = []
        if len(set(self.options)) != len(self.options):
            wrong.append("options: expected each option once")
        if {"retain_full_dates", "retain_modified_dates"} <= set(self.options):
            wrong.append("options: expected one of retain_full_dates and retain_modified_dates, found both")
        cleans_faces = "clean_recognizable_visual_features" in self.options
        if cleans_faces != (self.face_command is not None):
            wrong.append("face_command: expected it together with the option clean_recognizable_visual_features")
        if cleans_faces and self.accept_faces:
            wrong.append("accept_faces: expected false where faces are cleaned")
        if self.face_command is not None and any(
            sum(mark in word for word in self.face_command) != 1 for mark in ("{input}", "{output}")
        ):
            wrong.append("face_command: expected {input} and {output} once each")
        if wrong:
            raise ValueError("\n".join(wrong))
        return self
