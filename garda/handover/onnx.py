"""ONNX: the network alone as one file, with what its user must know as properties of the model."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from garda import __version__
from garda.core import files
from garda.core.errors import ConfigError
from garda.handover import load
from garda.handover.load import Exported
from garda.models import unet

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

NEEDED = ("onnx", "onnxscript")
LIBRARY = "onnxruntime"
PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")  # the first that this build of it has
INPUT, OUTPUT = "image", "logits"


def write_onnx(exported: Exported, out: Path) -> None:
    """Write ``image`` (B, C, H, W) float32 in [0, 1] to ``logits`` (B, K, H, W), H and W any multiples of 16.

    Args:
        exported: the network, and what is to be known of it.
        out: the file; appears whole or not at all.

    Raises:
        ConfigError: a library is missing.
        RunFolderError: the file cannot be written.
    """
    require("--to onnx")
    model = make_model(exported.network, exported.task.channels)
    for key, value in describe(exported).items():
        model.metadata_props.add(key=key, value=value)
    with files.replacing(out) as temporary:
        temporary.write_bytes(model.SerializeToString())


def require(option: str, *more: str) -> None:
    """Refuse an option whose libraries are missing: those that make a model, and ``more``.

    Raises:
        ConfigError: one or several are.

    >>> require("--runtime onnx", "a_library_that_nobody_has")
    Traceback (most recent call last):
    garda.core.errors.ConfigError: --runtime onnx: needs a_library_that_nobody_has; run: pip install "garda[onnx]"
    """
    missing = [name for name in (*NEEDED, *more) if find_spec(name) is None]
    if missing:
        raise ConfigError(option, f"needs {' and '.join(missing)}", 'run: pip install "garda[onnx]"')


def make_model(network: nn.Module, channels: int) -> ModelProto:
    """A network as a graph from ``INPUT`` to ``OUTPUT`` whose batch, height and width are free.

    Nothing in it says where it was traced: no path, no stack trace.

    Args:
        network: in evaluation mode, float32, on the CPU; left as it is.
        channels: of its images.
    """
    network = unet.with_conv_transpose(copy.deepcopy(network))  # an operation that every program knows
    free = {0: torch.export.Dim("batch"), 2: 16 * torch.export.Dim("height"), 3: 16 * torch.export.Dim("width")}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which is not needed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own about itself
        program = torch.onnx.export(
            network,
            (torch.zeros(2, channels, 32, 48),),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=(free,),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None  # which it only is where torch writes a file itself
    model: ModelProto = program.model_proto
    graph: GraphProto = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return model


def describe(exported: Exported) -> dict[str, str]:
    """The model's properties; all but task, domain, package (its digest) and garda (its version) are JSON.

    ``size`` is in pixels, ``spacing_mm`` in mm, rows before columns; ``percentiles`` of a scan, or the ends of a
    ``window``, or the mean of voxels above ``zscore`` less and plus three deviations, become 0 and 1; slices
    are enlarged by ``zoom`` where nothing is resampled to a spacing; of each group of classes in ``largest``, a scan's
    largest piece alone is to be kept.
    """
    task, intensity = exported.task, exported.task.intensity
    texts = {"task": task.name, "domain": exported.domain, "package": exported.digest, "garda": __version__}
    values = {name: getattr(task, name) for name in ("channels", "classes", "size", "spacing_mm", "fit", "plane")}
    values |= {"zoom": exported.zoom, "largest": exported.largest}
    scale = "window" if intensity.window is not None else "zscore" if intensity.zscore is not None else "percentiles"
    values |= {name: getattr(intensity, name) for name in (scale, "bias_field_correction")}
    return texts | {name: json.dumps(value) for name, value in values.items()}


class OnnxNetwork(nn.Module):
    """A segmenter in float32, with as many CPU threads as torch has."""

    def __init__(self, network: nn.Module, channels: int) -> None:
        """Export ``network``, whose images have so many channels, in memory.

        Raises:
            ImportError: ONNX Runtime is missing; :func:`require` tells it in one line.
        """
        import onnxruntime

        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        model = make_model(load.on_cpu(network), channels).SerializeToString()
        providers = [name for name in PROVIDERS if name in onnxruntime.get_available_providers()]
        self._session = onnxruntime.InferenceSession(model, options, providers=providers)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] to (B, K, H, W) logits on the same device; H and W multiples of 16."""
        (logits,) = self._session.run([OUTPUT], {INPUT: image.cpu().contiguous().numpy()})
        return torch.from_numpy(logits).to(image.device)
