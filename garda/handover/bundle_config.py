"""``inference.json`` of a bundle: garda's way from a scan to a label map, in MONAI's and torch's words.

The grid is torch's own ``interpolate`` and ``pad``, as in :mod:`garda.data.preprocess`: MONAI's ``Spacing`` and
``Resize`` have no such low-pass filter, and its ``CenterSpatialCrop`` cuts images with an odd side one pixel further.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from garda.data.task import Task
from garda.data.volume import LUMA, PLANES

BATCH = 16  # slices or windows computed at once
TOWARDS = {"L": (-1, 0, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}  # in RAS coordinates
ENDS = [["L", "R"], ["P", "A"], ["I", "S"]]  # of the axes of RAS, in which nibabel's affines are
COLOURS = (
    "$lambda picture: picture if picture.mode in ('1', 'L', 'I', 'F') or picture.mode.startswith('I;16')"
    " else picture.convert('L' if picture.mode in ('LA', 'La') else 'RGB')"
)


def inference(task: Task, widths: Sequence[int]) -> dict[str, Any]:
    """The configuration as plain values, to be run in the bundle's folder.

    Args:
        task: what is segmented; its plane is not ``acquired``, and it corrects no bias field.
        widths: see :class:`garda.models.unet.SegmenterSettings`.
    """
    return {
        "imports": ["$import glob", "$import os"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/labels'",
        "suffix": ".nii.gz",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "datalist": "$sorted(glob.glob(os.path.join(@dataset_dir, '*' + @suffix)))",
        "network_def": _network(task, widths),
        "network": "$@network_def.to(@device)",
        **_reading(task),
        **_grid(task),
        "preprocessing": _preprocessing(task),
        "dataset": {"_target_": "Dataset", "data": "$[{'image': i} for i in @datalist]", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": _inferer(task),
        "postprocessing": _postprocessing(),
        "handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": "$@bundle_root + '/models/model.pt'",
                "load_dict": {"model": "@network"},
                "map_location": "@device",
            }
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "run": ["$@evaluator.run()"],
    }


def _network(task: Task, widths: Sequence[int]) -> dict[str, Any]:
    return {
        "_target_": "BasicUNet",
        "spatial_dims": 2,
        "in_channels": task.channels,
        "out_channels": len(task.classes),
        "features": [*widths],
        "norm": "batch",
        "act": "relu",
    }


def _inferer(task: Task) -> dict[str, Any]:
    return {
        "_target_": "SliceInferer",
        "spatial_dim": 2,
        "roi_size": [*task.size],
        "sw_batch_size": BATCH,
        "overlap": 0.25,
        "mode": "gaussian",
    }


def _reading(task: Task) -> dict[str, Any]:
    """Pictures to one-slice volumes, and intensities to [0, 1]; a scan is (C, ...) as MONAI loads it."""
    low, high = task.intensity.percentiles
    grey = f"torch.tensordot(torch.tensor({LUMA.tolist()}), picture, dims=1)[None]" if task.channels == 1 else "picture"
    return {
        "picture_reader": {"_target_": "PILReader", "converter": COLOURS},
        "picture_affine": _picture_affine(task),
        "pixels": f"$lambda picture: {grey} if len(picture) == 3 else picture",
        "to_volume": "$lambda scan: scan if scan.ndim == 4 else scan[..., None] if 'mode' not in scan.meta else "
        "monai.data.MetaTensor(@pixels(scan.as_tensor())[..., None], affine=torch.tensor(@picture_affine), "
        "meta=scan.meta)",
        "scale": {
            "_target_": "ScaleIntensityRangePercentiles",
            "lower": low,
            "upper": high,
            "b_min": 0.0,
            "b_max": 1.0,
            "clip": True,
        },
        "stretch": {"_target_": "ScaleIntensity"},
        "to_unit": f"$lambda scan: @stretch(scan) if np.ptp(np.percentile(scan.numpy(), [{low}, {high}])) == 0 else "
        "@scale(scan)",
    }


def _grid(task: Task) -> dict[str, Any]:
    """Slices (D, C, H, W) of a scan (C, H, W, D) to the network's :class:`garda.data.preprocess.Grid` and back."""
    missing = "max(0, wants - n)" if task.fit == "patch" else "wants - n"
    own = "list(scan.shape[1:3])"
    wanted = "[max(1, round(n * float(has) / wants)) for n, has, wants in zip(scan.shape[1:3], scan.pixdim, @spacing)]"
    repeated = "scan.repeat(3 // len(scan), 1, 1, 1)" if task.channels == 3 else "scan"
    return {
        "spacing": None if task.spacing_mm is None else [*task.spacing_mm],
        "size": [*task.size],
        "sides": f"$lambda scan: {own if task.spacing_mm is None else wanted}",
        "margins": "$lambda sides: [m for n, wants in zip(reversed(sides), reversed(@size)) "
        f"for missing in [{missing}] for m in (missing // 2, missing - missing // 2)]",
        "resample": "$lambda slices, sides: slices if list(slices.shape[2:]) == list(sides) else "
        "torch.nn.functional.interpolate(slices, size=list(sides), mode='bilinear', align_corners=False, "
        "antialias=True)",
        "uncover": "$lambda shares, margins: torch.cat([torch.nn.functional.pad(shares[:, :1], margins, value=1.0), "
        "torch.nn.functional.pad(shares[:, 1:], margins)], dim=1)",
        "to_network": "$lambda scan: torch.nn.functional.pad(@resample("
        f"{repeated}.movedim(-1, 0), @sides(scan)), @margins(@sides(scan))).movedim(0, -1)",
        "from_network": "$lambda pred, scan: @resample(@uncover(pred.movedim(-1, 0), "
        "[-m for m in @margins(@sides(scan))]), scan.shape[1:3]).movedim(0, -1)",
    }


def _preprocessing(task: Task) -> dict[str, Any]:
    codes = PLANES[task.plane]
    transforms = [
        {
            "_target_": "LoadImaged",
            "keys": "image",
            "ensure_channel_first": True,
            "reader": "$[@picture_reader, 'NibabelReader']",
        },
        {"_target_": "Lambdad", "keys": "image", "func": "@to_volume"},
        {"_target_": "Orientationd", "keys": "image", "axcodes": codes[1] + codes[0] + codes[2], "labels": ENDS},
        {"_target_": "Lambdad", "keys": "image", "func": "@to_unit"},
        {"_target_": "CopyItemsd", "keys": "image", "names": "scan"},
        {"_target_": "Lambdad", "keys": "image", "func": "@to_network"},
    ]
    return {"_target_": "Compose", "transforms": transforms}


def _postprocessing() -> dict[str, Any]:
    transforms = [
        {"_target_": "Activationsd", "keys": "pred", "softmax": True},
        "$lambda data: {**data, 'pred': @from_network(data['pred'], data['scan'])}",
        {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
        {"_target_": "Invertd", "keys": "pred", "orig_keys": "image", "transform": "@preprocessing"},
        {
            "_target_": "SaveImaged",
            "keys": "pred",
            "output_dir": "@output_dir",
            "output_postfix": "seg",
            "output_ext": "@suffix",
            "output_dtype": "$np.uint8",
            "resample": False,
            "separate_folder": False,
            "print_log": False,
        },
    ]
    return {"_target_": "Compose", "transforms": transforms}


def _picture_affine(task: Task) -> list[list[float]]:
    """The affine of a picture's (columns, rows, 1) array: as if it lay in the task's plane, of the task's pixels."""
    rows, columns = task.spacing_mm or (1.0, 1.0)
    axes = [TOWARDS[code] for code in PLANES[task.plane]]
    sizes = (columns, rows, 1.0)
    return [
        *([*(float(axis[i] * size) for axis, size in zip(axes, sizes, strict=True)), 0.0] for i in range(3)),
        [0.0, 0.0, 0.0, 1.0],
    ]
