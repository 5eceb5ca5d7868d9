"""Scans of every format, a network that has learnt nothing, and packages of an older version."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from garda.data.manifest import Case
from garda.data.task import Task
from garda.data.volume import Volume, grid_for, read_volume
from garda.handover.load import Exported
from garda.models import unet
from garda.models.unet import SegmenterSettings

OLD = Path(__file__).parents[1] / "handover" / "version_0.1.0"
WIDTHS = (4, 4, 4, 4, 4, 4)


def blobs(shape: tuple[int, ...], seed: int) -> np.ndarray:
    coarse = torch.from_numpy(np.random.default_rng(seed).normal(size=(1, 1, *(side // 4 + 1 for side in shape))))
    return torch.nn.functional.interpolate(coarse, size=shape, mode="trilinear")[0, 0].numpy() * 500 + 1000


TASK = Task(name="blobs", classes=("background", "a", "b"), size=(48, 32), spacing_mm=(1.5, 1.25))


def untrained(exported: Exported, task: Task) -> Exported:
    """The same for another task, with a network that finds all classes everywhere, and so forgives nothing."""
    torch.manual_seed(3)
    network = unet.build_segmenter(task, SegmenterSettings(widths=WIDTHS)).eval()
    for weight in (parameter for parameter in network.parameters() if parameter.ndim == 4):
        torch.nn.init.normal_(weight, std=1.2 / weight[0].numel() ** 0.5)
    return replace(exported, task=task, network=network, widths=WIDTHS)


def centre(exported: Exported, volume: Volume) -> None:
    """Let no class of an untrained network win everywhere."""
    height, width = exported.task.size
    slices = grid_for(volume, exported.task).to_network(volume.image)[..., :height, :width]
    with torch.no_grad():
        exported.network.final_conv.bias -= exported.network(slices).mean((0, 2, 3))


def read(image: Path, task: Task) -> Volume:
    return read_volume(Case(image.name, "", "test", str(image), (), (), "here"), task, Path(), with_label=False)


def write_scans(folder: Path) -> Path:
    """Scans that lie in their files in several ways, with odd sides and pixels finer and coarser than the task's."""
    folder.mkdir()
    flipped = np.diag([-0.9, 1.1, 3.0, 1.0])
    turned = np.array([[0.98, 0.0, -0.2, 10.0], [0.2, 0.0, 0.98, -20.0], [0.0, 3.0, 0.0, 5.0], [0.0, 0.0, 0.0, 1.0]])
    for name, shape, affine in (("flipped", (61, 75, 5), flipped), ("turned", (44, 6, 53), turned)):
        nib.save(nib.Nifti1Image(blobs(shape, len(name)).astype(np.int16), affine), folder / f"{name}.nii.gz")
    return folder
