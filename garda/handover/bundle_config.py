"""``inference.json`` of a bundle: garda's way from a scan to a label map, in MONAI's and torch's words.

The syntax is MONAI's (https://docs.monai.io/en/stable/config_syntax.html): ``$`` begins an expression, ``@`` names
another entry, ``_target_`` a class. The grid is torch's own ``interpolate`` and ``pad``, as in
:mod:`garda.data.preprocess`: MONAI's ``Spacing`` and ``Resize`` have no such low-pass filter, and its
``CenterSpatialCrop`` cuts images with an odd side one pixel further.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from garda.data.orientation import PLANES
from garda.data.task import Groups, Task
from garda.data.volume import LUMA

BATCH = 16  # slices or windows computed at once
TOWARDS = {"L": (-1, 0, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}  # in RAS coordinates
ENDS = [["L", "R"], ["P", "A"], ["I", "S"]]  # of the axes of RAS, in which nibabel's affines are
COLOURS = (
    "$lambda picture: picture if picture.mode in ('1', 'L', 'I', 'F') or picture.mode.startswith('I;16')"
    " else picture.convert('L' if picture.mode in ('LA', 'La') else 'RGB')"
)
# (H, W) of a scan's slices in the task's pixels
SIDES = "[max(1, round(n * float(has) / wants)) for n, has, wants in zip(scan.shape[1:3], scan.pixdim, @spacing)]"


def inference(
    task: Task, widths: Sequence[int], networks: int = 1, zoom: float = 1.0, largest: Groups = ()
) -> dict[str, Any]:
    """The configuration as plain values, to be run in the bundle's folder.

    It reads scans (C, H, W, D) and writes label maps of class indices, uint8, on each scan's own grid.

    Args:
        task: what is segmented; its plane is not ``acquired``, and it corrects no bias field.
        widths: channels of the network's six levels, see :class:`garda.models.unet.SegmenterSettings`.
        networks: how many there are; of several, the mean of their probabilities counts.
        zoom: factor by which slices are enlarged where nothing is resampled to a spacing.
        largest: of which classes the largest piece alone is kept.

    Raises:
        KeyError: the task's plane is ``acquired``.

    >>> task = Task(name="heart", classes=("background", "ventricle"), size=(64, 48), spacing_mm=(2.0, 1.5))
    >>> found = inference(task, (4, 4, 4, 4, 4, 4))
    >>> found["network_def"]["_target_"], found["network_def"]["out_channels"]
    ('BasicUNet', 2)
    >>> found["inferer"]["roi_size"], found["spacing"]
    ([64, 48], [2.0, 1.5])
    """
    network = {"in_channels": task.channels, "out_channels": len(task.classes), "features": [*widths]}
    window = {"spatial_dim": 2, "roi_size": [*task.size], "sw_batch_size": BATCH, "overlap": 0.25, "mode": "gaussian"}
    weights = {"load_path": "$@bundle_root + '/models/model.pt'", "load_dict": {"model": "@network"}}
    parts = {name: f"@{name}" for name in ("network", "inferer", "postprocessing")}
    inferer: dict[str, Any] = {"inferer": _component("SliceInferer", **window)}
    if networks > 1:  # the logarithm of a mean of probabilities is what its softmax gives back
        mean = "sum(torch.softmax(@slice_inferer(image, each), dim=1) for each in several) / len(several)"
        inferer = {"slice_inferer": inferer["inferer"], "inferer": f"$lambda image, several: ({mean}).log()"}
    return {
        "imports": ["$import glob", "$import os", "$from scipy import ndimage"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/labels'",
        "suffix": ".nii.gz",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "datalist": "$sorted(glob.glob(os.path.join(@dataset_dir, '*' + @suffix)))",
        **_networks(network, networks),
        **_reading(task),
        **_grid(task, zoom),
        "preprocessing": _preprocessing(task),
        "dataset": _component("Dataset", data="$[{'image': i} for i in @datalist]", transform="@preprocessing"),
        "dataloader": _component("DataLoader", dataset="@dataset", batch_size=1, num_workers=0),
        **inferer,
        **_components(),
        "postprocessing": _postprocessing(largest),
        "handlers": [_component("CheckpointLoader", **weights, map_location="@device")],
        "evaluator": _component(
            "SupervisedEvaluator", device="@device", val_data_loader="@dataloader", **parts, val_handlers="@handlers"
        ),
        "run": ["$@evaluator.run()"],
    }


def _networks(arguments: dict[str, Any], count: int) -> dict[str, Any]:
    """One network, or a list of them, on the device."""
    made = [_component("BasicUNet", spatial_dims=2, **arguments, norm="batch", act="relu") for _ in range(count)]
    if count == 1:
        return {"network_def": made[0], "network": "$@network_def.to(@device)"}
    return {"network_def": made, "network": "$torch.nn.ModuleList(@network_def).to(@device)"}


def _component(target: str, **arguments: Any) -> dict[str, Any]:
    """What MONAI makes an object of: a class's name and its arguments."""
    return {"_target_": target, **arguments}


def _reading(task: Task) -> dict[str, Any]:
    """Pictures to one-slice volumes, and intensities to [0, 1]; a scan is (C, ...) as MONAI loads it."""
    low, high = task.intensity.percentiles
    window = task.intensity.window
    grey = f"torch.tensordot(torch.tensor({LUMA.tolist()}), picture, dims=1)[None]" if task.channels == 1 else "picture"
    unit: dict[str, Any] = {"b_min": 0.0, "b_max": 1.0, "clip": True}
    scale = _component("ScaleIntensityRangePercentiles", lower=low, upper=high, **unit)
    to_unit = f"@stretch(scan) if np.ptp(np.percentile(scan.numpy(), [{low}, {high}])) == 0 else @scale(scan)"
    if window is not None:
        scale, to_unit = _component("ScaleIntensityRange", a_min=window[0], a_max=window[1], **unit), "@scale(scan)"
    return {
        "picture_reader": _component("PILReader", converter=COLOURS),
        "picture_affine": _picture_affine(task),
        "pixels": f"$lambda picture: {grey} if len(picture) == 3 else picture",
        "to_volume": "$lambda scan: scan if scan.ndim == 4 else scan[..., None] if 'mode' not in scan.meta else "
        "monai.data.MetaTensor(@pixels(scan.as_tensor())[..., None], affine=torch.tensor(@picture_affine), "
        "meta=scan.meta)",
        "scale": scale,
        "stretch": _component("ScaleIntensity"),
        "to_unit": f"$lambda scan: {to_unit}",
    }


def _grid(task: Task, zoom: float) -> dict[str, Any]:
    """Slices (D, C, H, W) of a scan (C, H, W, D) to the network's :class:`garda.data.preprocess.Grid` and back."""
    missing = "max(0, wants - n)" if task.fit == "patch" else "wants - n"
    enlarged = "list(scan.shape[1:3])" if zoom == 1 else f"[max(1, round(n * {zoom})) for n in scan.shape[1:3]]"
    sides = enlarged if task.spacing_mm is None else SIDES
    repeated = "scan.repeat(3 // len(scan), 1, 1, 1)" if task.channels == 3 else "scan"
    return {
        "spacing": None if task.spacing_mm is None else [*task.spacing_mm],
        "size": [*task.size],
        "sides": f"$lambda scan: {sides}",
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
        _component("LoadImaged", keys="image", ensure_channel_first=True, reader="$[@picture_reader, 'NibabelReader']"),
        _component("Lambdad", keys="image", func="@to_volume"),
        _component("Orientationd", keys="image", axcodes=codes[1] + codes[0] + codes[2], labels=ENDS),
        _component("Lambdad", keys="image", func="@to_unit"),
        _component("CopyItemsd", keys="image", names="scan"),
        _component("Lambdad", keys="image", func="@to_network"),
    ]
    return _component("Compose", transforms=transforms)


def _components() -> dict[str, str]:
    """The largest piece of a mask, and a label map (1, H, W, D) without a group's other pieces."""
    return {
        "piece": "$lambda inside: (lambda pieces: pieces == np.bincount(pieces[inside]).argmax() if inside.any() else "
        "inside)(ndimage.label(inside)[0])",
        "keep": "$lambda pred, group: (lambda inside: pred.masked_fill(torch.as_tensor(inside & ~@piece(inside), "
        "device=pred.device)[None], 0))(np.isin(pred[0].cpu().numpy(), group))",
    }


def _postprocessing(largest: Groups) -> dict[str, Any]:
    names = {"output_dir": "@output_dir", "output_postfix": "seg", "output_ext": "@suffix"}
    plain = {"output_dtype": "$np.uint8", "resample": False, "separate_folder": False, "print_log": False}
    transforms = [
        _component("Activationsd", keys="pred", softmax=True),
        "$lambda data: {**data, 'pred': @from_network(data['pred'], data['scan'])}",
        _component("AsDiscreted", keys="pred", argmax=True),
        *(f"$lambda data: {{**data, 'pred': @keep(data['pred'], {[*group]})}}" for group in largest),
        _component("Invertd", keys="pred", orig_keys="image", transform="@preprocessing"),
        _component("SaveImaged", keys="pred", **names, **plain),
    ]
    return _component("Compose", transforms=transforms)


def _picture_affine(task: Task) -> list[list[float]]:
    """The affine of a picture's (columns, rows, 1) array: as if it lay in the task's plane, of the task's pixels."""
    rows, columns = task.spacing_mm or (1.0, 1.0)
    affine = np.eye(4)
    affine[:3, :3] = np.transpose([TOWARDS[code] for code in PLANES[task.plane]]) * (columns, rows, 1.0)
    return affine.tolist()
