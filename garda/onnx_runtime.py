"""ONNX Runtime in torch's place: a network that it computes, and is called as torch's are."""

from __future__ import annotations

import torch
from monai.networks.nets import BasicUNet
from torch import Tensor, nn

from garda.handover.exported import on_cpu
from garda.handover.onnx_file import INPUT, OUTPUT, make_model

LIBRARY = "onnxruntime"
PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")  # the first that this build of it has


class OnnxNetwork(nn.Module):
    """A segmenter in float32, with as many CPU threads as torch has."""

    def __init__(self, network: BasicUNet, channels: int) -> None:
        """Export ``network``, whose images have so many channels, in memory."""
        import onnxruntime

        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        there = onnxruntime.get_available_providers()
        model = make_model(on_cpu(network), channels).SerializeToString()
        providers = [name for name in PROVIDERS if name in there]
        self._session = onnxruntime.InferenceSession(model, options, providers=providers)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] to (B, K, H, W) logits on the same device; H and W multiples of 16."""
        (logits,) = self._session.run([OUTPUT], {INPUT: image.cpu().contiguous().numpy()})
        return torch.from_numpy(logits).to(image.device)
