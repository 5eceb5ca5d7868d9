"""A MONAI bundle: a folder that MONAI alone can run, see https://docs.monai.io/en/stable/mb_specification.html."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import monai
import nibabel
import numpy as np
import torch
from monai.utils import IgniteInfo
from torch import nn

from garda import __version__
from garda.core import files
from garda.core.errors import ConfigError
from garda.data.task import Task
from garda.handover import bundle_config
from garda.handover.format import CARD
from garda.handover.load import Exported
from garda.models.ensemble import Ensemble

SCHEMA = "https://project-monai.github.io/schema/meta_schema_20240725.json"
README = "docs/README.md"
SYNTAX = ("$", "@", "%")  # what MONAI would not read as the text that it is
USE = """## Use

A MONAI bundle with the network for `{domain}`. With MONAI, nibabel, pytorch-ignite and fire installed, in its folder:

    python -m monai.bundle run --config_file configs/inference.json --dataset_dir IMAGES --output_dir LABELS

Every `*.nii.gz` of IMAGES becomes `*_seg.nii.gz` of class indices; for PNG pictures, add `--suffix .png`.
`setup.json` and `ledger.jsonl` are files of the package that the bundle was made from:
{digest}
"""


def write_bundle(exported: Exported, out: Path) -> None:
    """Write a bundle whose labels are those of ``garda predict`` in float32.

    Args:
        exported: the network, and what is to be known of it.
        out: the bundle's folder, named for the model; appears whole or not at all.

    Raises:
        ConfigError: the task reads scans as no bundle can, or MONAI would execute one of its names.
        RunFolderError: no space left, or the folder cannot be written.
    """
    _refuse(exported)
    notice = exported.notice.replace(CARD, README)
    network = exported.network.networks if isinstance(exported.network, Ensemble) else exported.network
    state, networks = network.state_dict(), len(network) if isinstance(network, nn.ModuleList) else 1
    config = bundle_config.inference(exported.task, exported.widths, networks, exported.zoom, exported.largest)
    texts = {
        "configs/metadata.json": json.dumps(metadata(exported), indent=2) + "\n",
        "configs/inference.json": json.dumps(config, indent=2) + "\n",
        README: f"{exported.card}\n{USE.format(domain=exported.domain, digest=exported.digest)}",
        "docs/license.txt": notice,
        "LICENSE": notice,
    }
    contents = {name: text.encode() for name, text in texts.items()}
    weights = io.BytesIO()
    torch.save(dict(state), weights)  # the specification asks for a pickle of tensors alone
    contents["models/model.pt"] = weights.getvalue()
    if exported.generator is not None:
        contents["models/generator.safetensors"] = exported.generator
    with files.replacing_folder(out) as draft:
        for name, written in contents.items():
            with files.replacing(draft / name) as temporary:
                temporary.write_bytes(written)


def metadata(exported: Exported) -> dict[str, Any]:
    """The contents of ``metadata.json``, which ``SCHEMA`` describes; no date, and no site but those of the card.

    Its version, ``0.<stage>.0``, counts the stages that the network has been through.
    """
    task, last = exported.task, exported.entries[-1]
    found = ", ".join(task.classes[1:])
    colours = ["image"] if task.channels == 1 else ["red", "green", "blue"]
    image, labels = _tensor(task, "magnitude", colours, [0, 1]), _tensor(task, "labels", task.classes, [])
    return {
        "schema": SCHEMA,
        "version": f"0.{last.stage}.0",
        "changelog": {
            f"0.{entry.stage}.0": f"stage {entry.stage}, {entry.domain}: {entry.decision}{entry.overruled}"
            for entry in exported.entries
        },
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {"nibabel": nibabel.__version__, "pytorch-ignite": IgniteInfo.OPT_IMPORT_VERSION},
        "name": exported.name,
        "task": f"2-D segmentation of {found}",
        "description": f"A U-Net for {found} ({task.name}) in {task.plane} slices, learnt with garda by {last.method} "
        f"from the labels of {exported.entries[0].domain} alone; this is its network for {exported.domain}.",
        "authors": f"the sites that {README} names",
        "copyright": "see docs/license.txt",
        "intended_use": "Research. Not a medical device; predictions are to be checked by a person who can.",
        "garda": {"version": __version__, "package": exported.digest, "domain": exported.domain},
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": labels}},
    }


def _tensor(task: Task, form: str, channels: Sequence[str], values: list[int]) -> dict[str, Any]:
    """What ``SCHEMA`` asks of a network's input or output; ``values`` is its range, empty for logits."""
    return {
        "type": "image",
        "modality": "n/a",
        "spatial_shape": [*task.size],
        "dtype": "float32",
        "is_patch_data": task.fit == "patch",
        "format": form,
        "num_channels": len(channels),
        "value_range": values,
        "channel_def": {str(index): name for index, name in enumerate(channels)},
    }


def _refuse(exported: Exported) -> None:
    """Refuse what MONAI's transforms cannot do as garda does it, and names that its configuration would execute."""
    task = exported.task
    code = next((text for text in (exported.name, exported.domain, *task.classes) if text.startswith(SYNTAX)), None)
    if code is not None:
        raise ConfigError("--to bundle", f"MONAI takes the name {code!r} for an expression", "give it another name")
    if task.intensity.bias_field_correction:
        what = "the task corrects bias fields, for which MONAI has no transform"
    elif task.intensity.zscore is not None:
        what = "the task takes z-scores above a floor, for which MONAI has no transform"
    elif task.plane == "acquired":
        what = "the task slices every scan as it was acquired, and a bundle turns all scans to one plane"
    else:
        return
    raise ConfigError("--to bundle", what, "use garda predict, or --to onnx and prepare the slices yourself")
