"""Contact sheets: one picture a site, a slice a scan, with its label and what the task's grid sees of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from garda.core import files
from garda.core.errors import RunFolderError
from garda.data.task import Task
from garda.data.volume import Volume, grid_for

MOST, ACROSS, SIDE, LINE = 60, 10, 144, 12  # scans a sheet, and in a row; pixels of a tile and of its name
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (204, 121, 167), (240, 228, 66), (213, 94, 0))  # Okabe, Ito
Tile = Image.Image


def check_folder(folder: Path) -> None:
    """Refuse a run folder: what travels or is archived with a run holds no image.

    Raises:
        RunFolderError: it is one, or lies in one.
    """
    for parent in (folder.absolute(), *folder.absolute().parents):
        if (parent / "plan.json").exists():
            raise RunFolderError(folder, "lies in a run folder, which holds no image", "give --pictures another folder")


def draw(volume: Volume, task: Task) -> Tile:
    """The slice with the most foreground, or the middle one: its label in colour, the grid of the task framed."""
    index, label = len(volume.image) // 2, volume.label
    if label is not None and label.any():
        index = int((label > 0).sum((1, 2)).argmax())
    grey = (volume.image[index].mean(0).numpy() * 255).astype(np.uint8)
    colours = np.stack([grey] * 3, axis=-1).astype(np.float32)
    if label is not None:
        marked = label[index].numpy()
        paint = np.array(COLOURS)[(marked - 1) % len(COLOURS)]
        colours = np.where(marked[..., None] > 0, 0.6 * colours + 0.4 * paint, colours)
    grid = grid_for(volume, task)
    height, width = grid.resampled
    scale = SIDE / max(height, width)
    slice_ = Image.fromarray(colours.astype(np.uint8)).resize(
        (max(1, round(width * scale)), max(1, round(height * scale)))
    )
    tile = Image.new("RGB", (SIDE, SIDE + LINE))
    tile.paste(slice_, (0, 0))
    rows, columns = grid.window()
    down, across = slice_.height / grid.shape[0], slice_.width / grid.shape[1]
    box = (columns.start * across, rows.start * down, columns.stop * across - 1, rows.stop * down - 1)
    pen = ImageDraw.Draw(tile)
    pen.rectangle(box, outline=(255, 255, 255))
    pen.text((2, SIDE), volume.case.encode("ascii", "replace").decode()[-24:], fill=(255, 255, 255))
    return tile


def write(path: Path, tiles: Sequence[Tile]) -> Path:
    """Write a sheet that its owner alone may read.

    Raises:
        RunFolderError: no space left, or the folder cannot be written.
    """
    across = min(ACROSS, len(tiles))
    sheet = Image.new("RGB", (across * SIDE, math.ceil(len(tiles) / across) * (SIDE + LINE)))
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (number % across * SIDE, number // across * (SIDE + LINE)))
    with files.replacing(path) as temporary:
        temporary.touch(mode=0o600)
        sheet.save(temporary, format="PNG")
    return path
