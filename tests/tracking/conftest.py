"""A tiny model folder with random weights, a reader of everything that a store holds, and a real server."""

import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request

import pytest
import torch

from medsynth.config.evidence import Tracking
from medsynth.diffusion.model_folder import save_model
from medsynth.diffusion.pipeline import LatentVolumePipeline
from medsynth.models.autoencoder import KLAutoencoder
from medsynth.models.unet import LatentUNet
from medsynth.tracking.store import open_client, tracking_uri

CONDITIONS = {
    "diagnosis": {"kind": "category", "values": ["benign", "malignant"], "dropout": 0.1},
    "diameter_mm": {"kind": "number", "range": [3.0, 40.0], "unit": "mm", "dropout": 0.1},
    "nodule": {"kind": "mask", "labels": {"nodule": 1}, "dropout": 0.1},
}
BOX = (16, 8, 16)
PATIENCE_SECONDS = 120


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        autoencoder = KLAutoencoder(downsampling=4, latent_channels=2, width=8, blocks=1).eval()
        denoiser = LatentUNet(
            latent_channels=2,
            downsampling=4,
            widths=[8],
            blocks=1,
            attention=["linear"],
            head_channels=8,
            mask_channels=4,
            conditions=CONDITIONS,
        ).eval()
        torch.nn.init.normal_(denoiser.head.conv.weight, std=0.2)
    pipeline = LatentVolumePipeline(
        autoencoder=autoencoder,
        denoiser=denoiser,
        objective={"kind": "flow", "logit_mean": 0.0, "logit_std": 1.0, "shift": "auto"},
        conditions=CONDITIONS,
        intensity={"kind": "hu_window", "low": -1000.0, "high": 400.0, "unit": "HU", "reference": None},
        geometry={
            "spacing_mm": [1.0, 1.0, 2.0],
            "box": list(BOX),
            "modality": "CT",
            "unit": "HU",
            "orientation": "RAS",
        },
    )
    folder = tmp_path_factory.mktemp("made") / "a folder of Alice"
    save_model(pipeline, folder, {"medsynth": "test"})
    return folder


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """A fresh database; MLflow takes seconds to lay out its tables, so tests copy this one."""
    folder = tmp_path_factory.mktemp("store")
    open_client(tracking_uri(Tracking(), folder))
    return folder / "mlflow.db"


@pytest.fixture
def workspace(tmp_path, empty_store):
    """A folder whose name needs care, with an empty store."""
    folder = tmp_path / "Müller, Jane" / "runs"
    folder.mkdir(parents=True)
    shutil.copy(empty_store, folder / "mlflow.db")
    return folder


@pytest.fixture(scope="session")
def dump():
    """Everything a workspace's store says: the whole database as SQL, and every artifact's name and bytes."""

    def read(workspace):
        database = sqlite3.connect(workspace / "mlflow.db")
        try:
            parts = ["\n".join(database.iterdump()).encode()]
        finally:
            database.close()
        for file in sorted((workspace / "artifacts").rglob("*")):
            parts.append(str(file.relative_to(workspace)).encode())
            if file.is_file():
                parts.append(file.read_bytes())
        return b"\n".join(parts)

    return read


@pytest.fixture(scope="session")
def server(tmp_path_factory, empty_store):
    """A real MLflow server on loopback: its address, and the folder that only it may look into."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--serve-artifacts",
        "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment, start_new_session=True)
    uri = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{uri}/health", timeout=5) as answer:
                if answer.status == 200:
                    break
            assert process.poll() is None, (folder / "log").read_text()[-2000:]
            assert time.monotonic() < until, (folder / "log").read_text()[-2000:]
            time.sleep(0.5)
        yield uri, folder
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)
