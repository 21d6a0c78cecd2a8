"""The code that MLflow keeps beside a registered model and runs to load it (MLflow's "models from code").

Not imported by the package: MLflow executes the file, which names the model at its end.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext
from numpy.typing import NDArray

from medsynth.diffusion.geometry import grid_of
from medsynth.diffusion.model_folder import load_model
from medsynth.errors import ConfigError
from medsynth.models.conditions import NULL_LABEL, mask_name
from medsynth.seeding import SEED_BITS

if TYPE_CHECKING:
    DataFrame = Any  # pandas comes without types
else:
    from pandas import DataFrame  # MLflow looks at the annotation of `predict` at run time

COUNT, SEED = "count", "seed"
_SCALE = "guidance_of_"


class VolumeModel(PythonModel):
    """Rows of conditions in, volumes out.

    Each row asks for `count` volumes (1 unless given), the first drawn with `seed` (0 unless given) and each further
    one with the next seed; an empty condition is left to the model. Answers float32 [N, X, Y, Z] in the scans' own
    unit, rows in order. A model of several grids takes rows of one grid at a time, which they name in the column `grid`.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Check every file against its digest, then load, onto the GPU where there is one.

        MLflow's own MLFLOW_DEFAULT_PREDICTION_DEVICE names another device. Raises ModelFolderError for an altered folder.
        """
        wanted = os.environ.get("MLFLOW_DEFAULT_PREDICTION_DEVICE")
        device = torch.device(wanted or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._pipeline = load_model(Path(context.artifacts["model"])).to(device)

    def predict(
        self, context: PythonModelContext, model_input: DataFrame, params: dict[str, Any] | None = None
    ) -> NDArray[np.float32]:
        rows = [_present(row) for row in model_input.to_dict(orient="records")]
        mask_column = mask_name(self._pipeline.condition_declaration)
        conditions: list[dict[str, Any]] = []
        masks: list[NDArray[np.uint8] | None] = []
        seeds: list[int] = []
        for row in rows:
            count, seed = int(row.pop(COUNT, 1)), int(row.pop(SEED, 0))
            if count < 1 or seed < 0:
                raise ConfigError([f"expected {COUNT} >= 1 and {SEED} >= 0, found {count} and {seed}"])
            mask = row.pop(mask_column, None) if mask_column else None
            seeds += [(seed + i) % 2**SEED_BITS for i in range(count)]
            conditions += [row] * count
            masks += [None if mask is None else np.asarray(mask, np.uint8)] * count
        output = self._pipeline(
            conditions, masks=self._stacked(masks, conditions[0]), seeds=seeds, **_sampling(params or {})
        )
        return np.stack([np.asarray(scan, np.float32)[0] for scan in output.scans])

    def _stacked(self, masks: list[NDArray[np.uint8] | None], conditions: dict[str, Any]) -> torch.Tensor | None:
        """[N, 1, X, Y, Z], rows without a mask filled with the null label; None where no row has one."""
        if all(mask is None for mask in masks):
            return None
        box = grid_of(self._pipeline.geometry, conditions).box
        stacked = np.full((len(masks), 1, *box), NULL_LABEL, np.uint8)
        for i, mask in enumerate(masks):
            if mask is None:
                continue
            if mask.shape != box:
                raise ConfigError([f"expected a mask of {list(box)} voxels, found {list(mask.shape)}"])
            stacked[i, 0] = mask
        return torch.from_numpy(stacked)


def _sampling(params: dict[str, Any]) -> dict[str, Any]:
    """MLflow's flat parameters as the pipeline takes them: `guidance_of_<condition>` become one dict."""
    named = {name: value for name, value in params.items() if not name.startswith(_SCALE)}
    scales = {name.removeprefix(_SCALE): value for name, value in params.items() if name.startswith(_SCALE)}
    if "guidance_interval" in named:
        named["guidance_interval"] = tuple(map(float, named["guidance_interval"]))
    return {**named, "guidance": scales} if scales else named


def _present(row: dict[str, Any]) -> dict[str, Any]:
    """The row without its empty cells (None and NaN, which alone differs from itself)."""
    return {
        name: value
        for name, value in row.items()
        if value is not None and not (isinstance(value, float) and value != value)
    }


set_model(VolumeModel())
