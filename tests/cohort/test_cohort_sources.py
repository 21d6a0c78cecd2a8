"""Tables and folders as people hand them over, with every mistake in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medsynth.cohort.source import read_sources
from medsynth.cohort.table import read_table
from medsynth.config.cohort import CategoryCondition, CsvCohort, FolderCohort, MaskCondition, NumberCondition
from medsynth.errors import CohortError, UnreadableError

CONDITIONS = {
    "diagnosis": CategoryCondition(kind="category", values=("benign", "malignant")),
    "diameter_mm": NumberCondition(kind="number", range=(3.0, 40.0), unit="mm"),
}
HEADER = "patient,image,diagnosis,diameter_mm"
ROWS = ["anna,a.nii.gz,benign,4.5", "bert,b.nii.gz,malignant,12", "cleo,c.nii.gz,benign,39.99"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in "abcdefgh":
        (tmp_path / f"{name}.nii.gz").touch()
        (tmp_path / f"m{name}.nii.gz").touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x.nii").touch()
    return tmp_path


def read(folder: Path, text: str | bytes, conditions: Any = CONDITIONS, **settings: Any) -> list:
    path = folder / "cohort.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_sources(CsvCohort(kind="csv", csv=str(path), **settings), conditions)


def mistakes(folder: Path, text: str, conditions: Any = CONDITIONS) -> list[str]:
    with pytest.raises(CohortError) as caught:
        read(folder, text, conditions)
    return str(caught.value).splitlines()


def lines(*rows: str, header: str = HEADER) -> str:
    return "\n".join([header, *rows]) + "\n"


GOOD = lines(*ROWS)


def values(cases: list) -> list[tuple]:
    return [(c.row, c.patient, c.image.name, c.conditions) for c in cases]


def test_a_plain_table(folder: Path) -> None:
    cases = read(folder, GOOD)
    assert [c.row for c in cases] == [2, 3, 4]
    assert [c.patient for c in cases] == ["anna", "bert", "cleo"]
    assert cases[0].image == folder / "a.nii.gz"
    assert cases[1].conditions == {"diagnosis": "malignant", "diameter_mm": 12.0}
    assert cases[0].mask is None and cases[0].series is None and cases[0].split is None


SEMICOLON = GOOD.replace(",", ";").replace("4.5", "4,5").replace("39.99", "39,99")


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbf" + GOOD.encode(),
        GOOD.encode("utf-16"),
        GOOD.replace("\n", "\r\n").encode(),
        GOOD.replace("\n", "\r").encode(),
        SEMICOLON.encode(),
        ("sep=;\r\n" + SEMICOLON.replace("\n", "\r\n")).encode(),
        GOOD.replace(",", "\t").encode(),
        ("\n".join(",".join(f'"{cell}"' for cell in line.split(",")) for line in GOOD.splitlines())).encode(),
        GOOD.replace(",", " , ").encode(),
        ("\n".join(line + ",,," for line in GOOD.splitlines())).encode(),
        GOOD.replace("\n", "\n\n").encode(),
    ],
    ids=["bom", "utf16", "crlf", "cr", "semicolon", "sep-line", "tab", "quoted", "spaces", "trailing", "blank-lines"],
)
def test_every_dialect_says_the_same(folder: Path, text: bytes) -> None:
    expected = [row[1:] for row in values(read(folder, GOOD))]
    assert [row[1:] for row in values(read(folder, text))] == expected


def test_row_numbers_are_lines_of_the_file(folder: Path) -> None:
    text = (
        'patient,image,diagnosis,diameter_mm,note\n\nanna,a.nii.gz,benign,5,"two\nlines"\nbert,b.nii.gz,malignant,5,\n'
    )
    assert [case.row for case in read(folder, text)] == [3, 5]
    assert [case.row for case in read(folder, "sep=,\n" + text)] == [4, 6]


def test_all_mistakes_come_at_once_and_name_no_patient(folder: Path) -> None:
    header = "patient,image,mask,split,diagnosis,diameter_mm"
    rows = [
        "Quintus Secretus,a.nii.gz,ma.nii.gz,train,benign,5",
        "Quintus Secretus,b.nii.gz,,test,malignant,5",
        ",c.nii.gz,,,benign,5",
        "p4,missing-Secretus.nii.gz,,,benign,5",
        "p5,,,,benign,5",
        "p6,d.nii.gz,mz.nii.gz,,benign,5",
        "p7,e.nii.gz,,val,benign,5",
        "p8,f.nii.gz,,,malignnant,5",
        "p9,g.nii.gz,,,,5",
        "p10,h.nii.gz,,,benign,bulky",
        "p11,sub/x.nii,,,benign,77.25",
        "p12,sub,,,benign,nan",
        "p13,a.nii.gz,ma.nii.gz,,benign,",
    ]
    found = mistakes(folder, lines(*rows, header=header))
    text = "\n".join(found)
    for expected in (
        "cohort.csv rows 2-3: split: one patient is in test and train",
        "cohort.csv row 4: patient: the cell is empty",
        "cohort.csv row 5: image: no such file",
        "cohort.csv row 6: image: the cell is empty",
        "cohort.csv row 7: mask: no such file",
        "cohort.csv row 8: split: expected train, validation or test, or an empty cell (nearest: validation)",
        "cohort.csv row 9: diagnosis: expected benign or malignant, found another word (nearest: malignant)",
        "cohort.csv row 10: diagnosis: the cell is empty",
        "cohort.csv rows 11, 13: diameter_mm: expected a number",
        "cohort.csv row 12: diameter_mm: expected 3 to 40 mm, found a number outside",
        "cohort.csv row 14: diameter_mm: the cell is empty",
        "cohort.csv rows 2, 14: image: the same scan and mask stand in several rows",
    ):
        assert expected in text
    assert len(found) == 12
    for value in ("Secretus", "malignnant", "bulky", "77.25", "p9"):
        assert value not in text


def test_missing_columns_come_with_the_nearest_name(folder: Path) -> None:
    found = mistakes(folder, lines("x,a.nii.gz,benign,5", header="PatientID,image,Diagnosis,diam_mm"))
    assert len(found) == 3
    assert "column patient is missing (nearest: PatientID)" in found[0]
    assert "column diagnosis is missing (nearest: Diagnosis)" in found[1]
    assert "column diameter_mm is missing (nearest: diam_mm)" in found[2]


def test_a_broken_first_line_and_uneven_rows(folder: Path) -> None:
    found = mistakes(folder, "patient,image,image,,note\na,b,c,d,e\na,b\na,b,c,d,e,f\n")
    assert found == [
        "cohort.csv row 1: column image stands there 2 times; keep one",
        "cohort.csv row 1: a column has no name; name it or remove it",
        "cohort.csv rows 3-4: expected 5 cells, as in the first line; complete the row, or quote the cell",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", "found an empty file"),
        (b"\n \r\n", "found an empty file"),
        (b"\xef\xbb\xbf", "found an empty file"),
        ("patient,image\nMüller,a\n".encode("latin-1"), "another encoding in line 2"),
        (b"PK\x03\x04\x00\x00,patient\n", "binary content"),
        (b'patient,image\n"open,a\n', "close the quotation mark"),
    ],
)
def test_what_is_no_table_is_unreadable(folder: Path, text: bytes, expected: str) -> None:
    with pytest.raises(UnreadableError, match=expected) as caught:
        read(folder, text)
    assert "M\xfcller" not in str(caught.value) and caught.value.exit_code == 3


def test_a_missing_table_and_one_without_rows(folder: Path) -> None:
    with pytest.raises(UnreadableError, match="found nothing"):
        read_table(folder / "none.csv")
    with pytest.raises(UnreadableError, match="found a folder"):
        read_table(folder)
    assert "found no usable row" in mistakes(folder, HEADER + "\n")[0]


def test_a_single_class_teaches_nothing(folder: Path) -> None:
    (found,) = mistakes(folder, GOOD.replace("malignant", "benign"))
    assert "all rows hold the same value" in found and "conditions.diagnosis.values" in found
    label = {"diagnosis": CategoryCondition(kind="category", values=("benign", "malignant"), steer=False)}
    assert "all rows hold the same value" in mistakes(folder, GOOD.replace("malignant", "benign"), label)[0]
    three = {"diagnosis": CategoryCondition(kind="category", values=("benign", "malignant", "mixed"))}
    assert "add cases of mixed" in mistakes(folder, GOOD, three)[0]
    one = {"diagnosis": CategoryCondition(kind="category", values=("benign",))}
    assert len(read(folder, GOOD.replace("malignant", "benign"), one)) == 3  # declared as such: nothing to complain of


def test_masks_are_required_only_by_conditions_that_need_them(folder: Path) -> None:
    text = lines("a,a.nii.gz,ma.nii.gz", "b,b.nii.gz,", header="patient,image,mask")
    assert [case.mask for case in read(folder, text, {})] == [folder / "ma.nii.gz", None]
    mask = {"nodule": MaskCondition(kind="mask", labels={"nodule": 1})}
    volume = {"size": CategoryCondition(kind="category", values=("small", "large"), derive="mask_volume")}
    for needs in (mask, volume):
        assert mistakes(folder, text, needs) == [
            "cohort.csv row 3: mask: the cell is empty, but a condition needs the mask; fill it in or drop the row"
        ]
        assert "column mask is missing" in mistakes(folder, lines("a,a.nii.gz", header="patient,image"), needs)[0]
    complete = lines("a,a.nii.gz,ma.nii.gz", header="patient,image,mask")
    assert read(folder, complete, volume)[0].conditions == {"size": None}


def test_rows_marked_unusable_are_left_out(folder: Path) -> None:
    header = HEADER + ",usable,reason"
    rows = [ROWS[0] + ",yes,", "dora,gone.nii.gz,,,no,gantry tilt", ROWS[1] + ",,"]
    assert [case.row for case in read(folder, lines(*rows, header=header))] == [2, 4]
    assert "usable: expected yes or no" in mistakes(folder, lines(*rows, ROWS[2] + ",maybe,", header=header))[0]


def test_paths_start_at_the_table_or_at_root_and_take_backslashes(folder: Path) -> None:
    assert read(folder, lines("a,sub\\x.nii", header="patient,image"), {})[0].image == folder / "sub" / "x.nii"
    inside = read(folder, lines("a,x.nii", header="patient,image"), {}, root=str(folder / "sub"))
    assert inside[0].image == folder / "sub" / "x.nii"
    absolute = read(folder, lines(f"a,{folder}/a.nii.gz", header="patient,image"), {})
    assert absolute[0].image == folder / "a.nii.gz"


def test_the_same_scan_with_two_masks_or_two_series_is_two_cases(folder: Path) -> None:
    text = lines(
        "a,a.nii.gz,ma.nii.gz,1",
        "a,a.nii.gz,mb.nii.gz,1",
        "a,sub,,1.2",
        "a,sub,,1.3",
        header="patient,image,mask,series",
    )
    assert [case.series for case in read(folder, text, {})] == ["1", "1", "1.2", "1.3"]


def test_a_condition_cannot_take_a_column_with_a_meaning(folder: Path) -> None:
    conditions = {"split": CategoryCondition(kind="category", values=("train", "test"))}
    text = lines("a,a.nii.gz,train", header="patient,image,split")
    assert "column split cannot be a condition" in mistakes(folder, text, conditions)[0]


def test_a_folder_of_volumes(tmp_path: Path) -> None:
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    masks.mkdir()
    for name in ("b.nii.gz", "a.nii", ".a.nii", "notes.txt"):
        (images / name).touch()
    for name in ("a.nii.gz", "b.nii.gz"):
        (masks / name).touch()
    conditions = {
        "size": CategoryCondition(kind="category", values=("small", "large"), derive="mask_volume"),
        "organ": MaskCondition(kind="mask", labels={"organ": 1}),
    }
    settings = FolderCohort(kind="folder", images=str(images), masks=str(masks))
    cases = read_sources(settings, conditions)
    assert [(c.row, c.patient, c.image.name, c.mask and c.mask.name) for c in cases] == [
        (1, "a", "a.nii", "a.nii.gz"),
        (2, "b", "b.nii.gz", "b.nii.gz"),
    ]
    assert cases[0].conditions == {"size": None}

    with pytest.raises(CohortError) as caught:
        read_sources(FolderCohort(kind="folder", images=str(images)), CONDITIONS | conditions)
    assert "no column diagnosis" in str(caught.value) and "no column diameter_mm" in str(caught.value)
    assert "set cohort.masks" in str(caught.value)
    (masks / "a.nii.gz").rename(masks / "z.nii.gz")
    with pytest.raises(CohortError, match=r"file 1: image without a mask[^$]*masks belong to no image|1 masks belong"):
        read_sources(settings, conditions)
    (images / "a.nii.gz").touch()
    with pytest.raises(CohortError, match=r"as \.nii and as \.nii\.gz"):
        read_sources(settings, {})
    with pytest.raises(UnreadableError, match="found nothing"):
        read_sources(FolderCohort(kind="folder", images=str(tmp_path / "none")), {})
    with pytest.raises(CohortError, match="found none"):
        (tmp_path / "empty").mkdir()
        read_sources(FolderCohort(kind="folder", images=str(tmp_path / "empty")), {})
