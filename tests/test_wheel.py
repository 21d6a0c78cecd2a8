"""The built wheel, alone: what is in it, and that it runs away from the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
KINDS = {".py", ".json", ".css", ".j2", ".typed", ".yaml"}
"""What the package is made of; anything else in its folder would be a leftover."""
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")

TINY = {
    "cohort.patients": 16,
    "prepare.spacing_mm": [3, 3, 3],
    "prepare.box": [16, 16, 16],
    "prepare.split": {"train": 0.5, "validation": 0.25, "test": 0.25, "stratify": "diagnosis"},
    "autoencoder.network": {"downsampling": 2, "latent_channels": 2, "width": 8, "blocks": 1},
    "autoencoder.training": {"steps": 6, "batch_size": 2, "warmup_steps": 1},
    "denoiser.network": {"widths": [16], "blocks": 1, "head_channels": 8, "mask_channels": 4},
    "denoiser.training": {"steps": 6, "batch_size": 2, "warmup_steps": 1},
    "generate.count": 8,
    "generate.sampling": {"sampler": "flow_euler", "evaluations": 2},
    "evaluate.benefit": {"steps": 2, "batch_size": 4, "seeds": 1, "ratios": [1.0]},
    "evaluate.bootstrap": 100,
    "evaluate.pictures": 2,
    "tracking.system_metrics": False,
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=out, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


class Installed:
    """An environment that holds the wheel and, beside it, the third-party packages of this one but no medsynth."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.folder = folder / "elsewhere"
        self.folder.mkdir()
        self.home = folder / "home"
        self.home.mkdir()
        others = folder / "third-party"
        others.mkdir()
        for kind in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
            for entry in Path(kind).iterdir():
                if "medsynth" not in entry.name and entry.suffix != ".pth":
                    (others / entry.name).symlink_to(entry)
        self._call(sys.executable, "-m", "venv", str(folder / "venv"))
        self.python = folder / "venv" / "bin" / "python"
        self._call(str(self.python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel))
        self.packages = Path(self._call(str(self.python), "-c", "import sysconfig as s; print(s.get_path('purelib'))"))
        (self.packages / "third-party.pth").write_text(f"{others}\n", encoding="utf-8")

    def __call__(self, *arguments: str) -> str:
        """Standard output of the installed `medsynth` command."""
        return self._call(str(self.python.with_name("medsynth")), *arguments)

    def _call(self, *command: str) -> str:
        environment = {name: os.environ[name] for name in THREADS if name in os.environ}
        environment |= {"PATH": os.environ["PATH"], "HOME": str(self.home), "LANG": "C.UTF-8"}
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.folder, env=environment, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout.strip()


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("installed"), wheel)


def test_the_wheel_holds_the_package_its_data_the_presets_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if not name.startswith("medsynth_diffusion-")}
        about = {name.partition("/")[2] for name in archive.namelist()} - {name.partition("/")[2] for name in found}
    package = {path for path in (ROOT / "medsynth").rglob("*") if path.is_file() and path.suffix in KINDS}
    expected = {path.relative_to(ROOT).as_posix() for path in package}
    for folder in ("pipelines", "configs"):
        expected |= {f"medsynth/_shipped/{p.relative_to(ROOT).as_posix()}" for p in (ROOT / folder).rglob("*.yaml")}
    assert found == expected
    assert about == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}
    assert found > {
        "medsynth/py.typed",
        "medsynth/reporting/page.html.j2",
        "medsynth/reporting/page.css",
        "medsynth/imaging/deidentify/table.json",
        "medsynth/imaging/deidentify/vocabulary.json",
        "medsynth/_shipped/pipelines/demo.yaml",
        "medsynth/_shipped/configs/prepare/ct-lung-crop.yaml",
    }


def test_an_editable_build_leaves_the_presets_where_they_are(tmp_path: Path) -> None:
    code = (
        "import sys; from hatchling.builders.wheel import WheelBuilder;"
        "list(WheelBuilder(sys.argv[1]).build(directory=sys.argv[2], versions=['editable']))"
    )
    subprocess.run([sys.executable, "-c", code, str(ROOT), str(tmp_path)], check=True, capture_output=True)
    (built,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert [Path(name).suffix for name in names] == [".pth"]


def test_the_command_answers_from_the_wheel(installed: Installed) -> None:
    from medsynth import __version__

    assert installed("--version") == f"medsynth {__version__}"
    where = installed._call(str(installed.python), "-c", "import medsynth; print(medsynth.__file__)")
    assert Path(where).is_relative_to(installed.packages)


def test_every_preset_and_pipeline_is_found(installed: Installed) -> None:
    code = (
        "import json; from medsynth.config.load import PRESET_SECTIONS; from medsynth.config.shipped import *;"
        "print(json.dumps({'pipelines': pipelines(), **{s: sorted(presets(s)) for s in (*PRESET_SECTIONS, 'pacs')}}))"
    )
    found = json.loads(installed._call(str(installed.python), "-c", code))
    expected = {"pipelines": sorted(path.stem for path in (ROOT / "pipelines").glob("*.yaml"))}
    expected |= {folder.name: sorted(p.stem for p in folder.glob("*.yaml")) for folder in (ROOT / "configs").iterdir()}
    assert {name: stems for name, stems in found.items() if stems} == expected
    for name in expected["pipelines"]:
        assert yaml.safe_load(installed("config", "show", name))["name"] == name


def test_init_copies_pipelines_and_presets_out_and_the_copies_run(installed: Installed) -> None:
    installed("init", "mine")
    copies = {path.relative_to(installed.folder / "mine") for path in (installed.folder / "mine").rglob("*.yaml")}
    originals = {
        path.relative_to(ROOT) for folder in ("pipelines", "configs") for path in (ROOT / folder).rglob("*.yaml")
    }
    assert copies == originals
    assert all((installed.folder / "mine" / path).read_bytes() == (ROOT / path).read_bytes() for path in originals)
    plan = json.loads(installed("run", "mine/pipelines/demo.yaml", "--dry-run", "--json"))
    assert all(line.startswith("run") for line in plan["plan"].values())


def test_the_demo_runs_from_the_wheel_to_the_end(installed: Installed) -> None:
    changes = [word for key, value in TINY.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    summary = json.loads(installed("demo", "--json", *changes))
    workspace = installed.folder / "runs" / "demo"
    assert summary["workspace"] == str(workspace)
    assert list(summary["stages"]) == [
        "prepare",
        "autoencoder",
        "encode",
        "denoiser",
        "generate",
        "evaluate",
        "register",
    ]
    page = (workspace / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in page
    assert len(list((workspace / "synthetic" / "images").glob("*.nii.gz"))) == TINY["generate.count"]
    assert summary["stages"]["register"]["model"] == "demo"
    assert not list(installed.packages.glob("medsynth/**/*.db"))
