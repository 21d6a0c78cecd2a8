"""Runs, metrics, artifacts and the model registry; the only folder that imports MLflow."""
