"""From YAML, presets and `--set` to one pipeline, or to all mistakes at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from torch import nn

from medsynth.config.load import load_pipeline
from medsynth.config.resolved import resolved_yaml, schema
from medsynth.config.shipped import copy_out, pipelines, presets, shipped
from medsynth.errors import ConfigError, UsageError
from medsynth.models.unet import LatentUNet

GOOD = """\
name: mine
cohort: {kind: csv, csv: cohort.csv}
conditions:
  diagnosis: {kind: category, values: [benign, malignant]}
"""


def write(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def mistakes(path: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        load_pipeline(path, overrides)
    assert raised.value.exit_code == 2
    return raised.value.mistakes


def test_relative_paths_start_at_the_file(tmp_path: Path) -> None:
    found = load_pipeline(write(tmp_path, GOOD))
    assert found.cohort.kind == "csv"
    assert found.cohort.csv == str(tmp_path / "cohort.csv")


def test_paths_given_with_set_start_at_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    found = load_pipeline(write(tmp_path, GOOD), ["cohort.csv=here.csv", "name=here.csv".replace(".csv", "")])
    assert found.cohort.kind == "csv"
    assert found.cohort.csv == str(other / "here.csv")
    assert found.name == "here"


def test_variables_in_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = GOOD.replace("cohort.csv", "'${SCANS_AT:-fallback}/c.csv'")
    monkeypatch.delenv("SCANS_AT", raising=False)
    assert load_pipeline(write(tmp_path, text)).cohort.csv == str(tmp_path / "fallback" / "c.csv")  # type: ignore[union-attr]
    monkeypatch.setenv("SCANS_AT", "/scans")
    assert load_pipeline(write(tmp_path, text)).cohort.csv == "/scans/c.csv"  # type: ignore[union-attr]
    monkeypatch.delenv("SCANS_AT")
    (line,) = mistakes(write(tmp_path, text.replace(":-fallback", "")))
    assert "SCANS_AT" in line


def test_all_mistakes_come_at_once_each_with_place_and_nearest_name(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """\
name: bad name
seed: "7"
cohort: {kind: csvv}
conditions:
  d: {kind: category, values: [a, a]}
  n: {kind: number, range: [3, 1]}
prepare:
  spacing: [1, 1, 1]
autoencoder: {training: {stepz: 3, learning_rate: -1}}
generate: {sampling: {sampler: flow_hen}}
regster: {}
""",
    )
    found = mistakes(path, "evaluate.bootstrap=1", "generate.cuont=2", "nonsense")
    expected = [
        (":1: name:", "pattern"),
        (":2: seed:", "integer"),
        (":3: cohort:", "did you mean csv?"),
        (":5: conditions.d:", "different"),
        (":6: conditions.n:", "low below high"),
        (":8: prepare.spacing:", "did you mean spacing_mm?"),
        (":9: autoencoder.training.stepz:", "did you mean steps?"),
        (":9: autoencoder.training.learning_rate:", "greater than 0, found -1"),
        (":10: generate.sampling.sampler:", "did you mean flow_heun?"),
        (":11: regster:", "did you mean register?"),
        ("--set: evaluate.bootstrap:", "found 1"),
        ("--set: generate.cuont:", "did you mean count?"),
        ("--set nonsense:", "KEY.PATH=VALUE"),
    ]
    for place, words in expected:
        assert [line for line in found if place in line and words in line], (place, words, found)
    assert len(found) == len(expected)


def test_settings_that_contradict_each_other(tmp_path: Path) -> None:
    text = (
        GOOD
        + "prepare: {box: [47, 48, 48], centre: mask, split: {stratify: diagnoses}}\ngenerate: {conditions: {x: 1}}\n"
    )
    found = mistakes(write(tmp_path, text))
    assert [line.split(": ")[1] for line in found] == [
        "prepare.split.stratify", "prepare.box", "generate.conditions.x", "prepare.centre",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ("generate: {conditions: {diagnosis: malignent}}", "generate.conditions.diagnosis", "did you mean malignant?"),
        ("generate: {conditions: {size: 400}}", "generate.conditions.size", "from 1 to 9"),
        ("generate: {conditions: {size: wide}}", "generate.conditions.size", "from 1 to 9"),
        ("generate: {conditions: {lesion: 1}}", "generate.conditions.lesion", "masks are drawn"),
        ("generate: {conditions: {sex: F}}", "generate.conditions.sex", "that steer (diagnosis, size, lesion)"),
        ("generate: {counts: {malignent: 3}}", "generate.counts.malignent", "did you mean malignant?"),
        (
            "generate: {sampling: {guidance: {diagnos: 3}}}",
            "generate.sampling.guidance.diagnos",
            "did you mean diagnosis?",
        ),
        ("generate: {sampling: {guidance: 2}}", "generate.sampling.guidance", "conditions.size.dropout above 0"),
        (
            "generate: {sampling: {guidance: {size: 2}}}",
            "generate.sampling.guidance",
            "conditions.size.dropout above 0",
        ),
        (
            "denoiser: {network: {attention: [grouped_linear], widths: [96]}}",
            "denoiser.network",
            "even number of heads",
        ),
        (
            "autoencoder: {loss: {adversarial: 0.3}}\nprepare: {box: [16, 16, 2]}",
            "autoencoder.loss",
            "at least 4 voxels",
        ),
    ],
)
def test_what_a_generator_could_never_do_is_told_before_anything_runs(
    text: str, key: str, words: str, tmp_path: Path
) -> None:
    conditions = (
        "  size: {kind: number, range: [1, 9], dropout: 0}\n  sex: {kind: category, values: [F, M], steer: false}\n"
        "  lesion: {kind: mask, labels: {lesion: 1}}\n"
    )
    found = [line for line in mistakes(write(tmp_path, GOOD + conditions + text + "\n")) if key in line]
    assert found
    assert words in found[0]


@pytest.mark.parametrize(
    "text",
    ["{kind: number, range: [-.inf, 3]}", "{kind: number, range: [0, .inf]}", "{kind: mask, labels: {a: 1, b: 1}}"],
)
def test_conditions_that_mean_nothing_are_refused(text: str, tmp_path: Path) -> None:
    assert mistakes(write(tmp_path, GOOD + f"  other: {text}\n"))


def test_cross_attention_needs_something_to_look_at(tmp_path: Path) -> None:
    alone = "name: m\ncohort: {kind: phantom}\nconditions: {nodule: {kind: mask, labels: {nodule: 1}}}\n"
    (line,) = mistakes(write(tmp_path, alone + "denoiser: {network: {cross_attention: true}}\n"))
    assert "denoiser.network.cross_attention" in line
    wide = write(tmp_path, GOOD + "denoiser: {network: {kind: transformer, width: 32, group_width: 256}}\n")
    assert load_pipeline(wide).denoiser.network.kind == "transformer"


def test_a_condition_may_not_take_a_column_of_the_manifest(tmp_path: Path) -> None:
    (line,) = mistakes(write(tmp_path, GOOD.replace("diagnosis", "split")))
    assert "conditions.split" in line


@pytest.mark.parametrize("text", ["", "- a\n", "just words", "a: [", "name: x\nname: y"])
def test_a_file_that_is_no_pipeline(tmp_path: Path, text: str) -> None:
    assert all("mine.yaml:" in line for line in mistakes(write(tmp_path, text)))


def test_a_missing_file_names_the_shipped_ones() -> None:
    (line,) = mistakes("dmo")
    assert "did you mean demo?" in line
    assert all(name in line for name in pipelines())


def test_presets_lie_under_the_sections_own_settings(tmp_path: Path) -> None:
    found = load_pipeline(write(tmp_path, GOOD + "denoiser: {preset: tiny, training: {steps: 5}}\n"))
    assert found.denoiser.training.steps == 5
    assert found.denoiser.training.ema_decay == 0.99


def test_another_kind_replaces_a_group_whole(tmp_path: Path) -> None:
    text = GOOD + "prepare: {preset: mr-crop, intensity: {kind: hu_window}}\n"
    assert load_pipeline(write(tmp_path, text)).prepare.intensity.kind == "hu_window"


def test_a_network_without_a_kind_is_the_unet_and_a_transformer_says_so(tmp_path: Path) -> None:
    unet = load_pipeline(write(tmp_path, GOOD + "denoiser: {network: {blocks: 3}}\n")).denoiser.network
    assert (unet.kind, unet.blocks) == ("unet", 3)
    wanted = "denoiser: {network: {kind: transformer, width: 128, patch: 2}}\n"
    other = load_pipeline(write(tmp_path, GOOD + wanted)).denoiser.network
    assert (other.kind, other.grid_factor) == ("transformer", 2)


def test_a_level_narrower_than_a_group_convolves_fully(tmp_path: Path) -> None:
    wanted = "denoiser: {network: {widths: [32, 64], group_width: 64}}\n"
    settings = load_pipeline(write(tmp_path, GOOD + wanted)).denoiser.network
    network = LatentUNet(4, 4, settings.widths, 1, group_width=settings.group_width)
    assert {layer.groups for layer in network.modules() if isinstance(layer, nn.Conv3d)} == {1}


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ("{kind: transformer, widths: [64]}", "unknown key; expected one of kind, width, depth"),
        ("{widthss: [64]}", "did you mean widths?"),
        ("{kind: transfomer}", "did you mean transformer?"),
        ("{kind: transformer, width: 104}", "multiple of head_channels"),
        ("{widths: [64, 96], group_width: 64}", "every width above group_width (64) must be a multiple of it"),
        ("transformer", "expected settings by name, such as {kind: ...}, found 'transformer'"),
    ],
)
def test_mistakes_in_a_network_name_its_own_keys(tmp_path: Path, network: str, expected: str) -> None:
    (line,) = mistakes(write(tmp_path, GOOD + f"denoiser: {{network: {network}}}\n"))
    assert expected in line


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ("{shft: 2}", "did you mean shift?"),
        ("{kind: v, shift: 2}", "expected one of kind, schedule, zero_terminal_snr, weighting"),
        ("{kind: vv}", "expected one of flow, epsilon, v, x0, score (did you mean v?)"),
        ("flow", "expected settings by name, such as {kind: ...}, found 'flow'"),
    ],
)
def test_an_objective_without_a_kind_is_flow_and_mistakes_name_its_own_keys(
    tmp_path: Path, objective: str, expected: str
) -> None:
    found = load_pipeline(write(tmp_path, GOOD + "denoiser: {objective: {shift: 2.0}}\n")).denoiser.objective
    assert (found.kind, found.shift) == ("flow", 2.0)
    (line,) = mistakes(write(tmp_path, GOOD + f"denoiser: {{objective: {objective}}}\n"))
    assert expected in line


def test_a_preset_is_chosen_on_the_command_line(tmp_path: Path) -> None:
    """In whatever order: the section's own settings, and those of other `--set`, lie over it."""
    path = write(tmp_path, GOOD + "denoiser: {preset: tiny, training: {steps: 5}}\n")
    said = ["denoiser.training.batch_size=3", "denoiser.preset=transformer-tiny"]
    for overrides in (said, said[::-1]):
        found = load_pipeline(path, overrides).denoiser
        assert found.network.kind == "transformer"
        assert (found.training.steps, found.training.batch_size) == (5, 3)
    (line,) = mistakes(path, "denoiser.preset=transfomer-tiny")
    assert line.startswith("--set: denoiser.preset: expected one of base,")
    assert line.endswith("(did you mean transformer-tiny?)")
    assert load_pipeline(write(tmp_path, GOOD), ["denoiser.preset=tiny"]).denoiser.network.kind == "unet"


def test_unknown_preset_and_key_of_a_preset(tmp_path: Path) -> None:
    (line,) = mistakes(write(tmp_path, GOOD + "denoiser: {preset: tinny}\n"))
    assert "did you mean tiny?" in line


@pytest.mark.parametrize("name", pipelines())
def test_shipped_pipelines_are_valid_and_round_trip(name: str, tmp_path: Path) -> None:
    found = load_pipeline(name)
    again = load_pipeline(write(tmp_path, resolved_yaml(found)))
    assert again == found


@pytest.mark.parametrize("section", ["deidentify", "prepare", "autoencoder", "denoiser", "evaluate"])
def test_every_preset_is_valid(section: str, tmp_path: Path) -> None:
    assert presets(section)
    for name in presets(section):
        text = GOOD + "  m: {kind: mask, labels: {a: 1}}\n" + f"{section}: {{preset: {name}}}\n"
        assert load_pipeline(write(tmp_path, text + ("" if section == "prepare" else "prepare: {box: [64, 64, 64]}\n")))


def test_init_copies_everything_and_overwrites_nothing(tmp_path: Path) -> None:
    written = copy_out(tmp_path)
    assert {path.stem for path in written} >= set(pipelines())
    assert (tmp_path / "pipelines" / "demo.yaml").read_bytes() == (shipped("pipelines") / "demo.yaml").read_bytes()
    with pytest.raises(UsageError):
        copy_out(tmp_path)


def test_the_schema_accepts_the_shipped_pipelines() -> None:
    found = schema()
    assert found["properties"]["autoencoder"]
    assert "small-crops" in found["$defs"]["Autoencoder"]["properties"]["preset"]["enum"]
    for name in pipelines():
        keys = yaml.safe_load((shipped("pipelines") / f"{name}.yaml").read_text(encoding="utf-8"))
        assert set(keys) <= set(found["properties"])
