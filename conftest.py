"""What tests and examples in docstrings share: one thread, no server from outside, real data only where given."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The file that starts processes of its own comes first: where files run side by side, it ends last."""
    items.sort(key=lambda item: "test_distributed" not in item.nodeid)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def own_surroundings(tmp_path_factory: pytest.TempPathFactory):
    """No test reads or writes the user's own key folder or tracking server."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GARDA_HOME", str(tmp_path_factory.mktemp("garda_home")))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real scans; skips where GARDA_REAL_DATA does not name one."""
    folder = os.environ.get("GARDA_REAL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("real scans: set GARDA_REAL_DATA to the folder that holds them")
    return Path(folder)


@pytest.fixture(autouse=True)
def beside_a_package(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An example in a docstring runs in a folder of its own, in which ``package.zip`` lies."""
    if isinstance(request.node, pytest.DoctestItem):
        shutil.copy(
            Path(__file__).parent / "tests" / "handover" / "version_0.1.0" / "garda.zip", tmp_path / "package.zip"
        )
        monkeypatch.chdir(tmp_path)
