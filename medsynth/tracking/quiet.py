"""MLflow, told before its import to send nothing anywhere and to say nothing on its own.

The rest of this folder takes MLflow's names from here, so that no import of it can come first.
"""

from __future__ import annotations

import logging
import os

_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # read by mlflow.telemetry.utils.is_telemetry_disabled
    "DO_NOT_TRACK": "true",
    "MLFLOW_UV_AUTO_DETECT": "false",  # would copy pyproject.toml and uv.lock of the current folder into the model
    "MLFLOW_LOG_UV_FILES": "false",
    "MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_PRINT_MODEL_URLS_ON_CREATION": "false",
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK": "true",  # what a model requires is this very package
}
os.environ.update(_SETTINGS)
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")

import mlflow  # noqa: E402
from mlflow import MlflowClient  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402

for _name in ("mlflow", "alembic"):
    logging.getLogger(_name).setLevel(logging.WARNING)
# Logs, with a traceback that quotes the row, what it raises as well.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)

__all__ = ["MlflowClient", "MlflowException", "mlflow"]
