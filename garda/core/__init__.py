"""No torch, no image: errors, files, settings, seeds, signals."""

import os

# MONAI imports MLflow, and that writes an installation's number into the user's folder unless it finds this
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
