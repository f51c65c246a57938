"""Networks leave torch by the plain form of their blocks: what is exported needs none of our code."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from gamlib import build_model


@pytest.mark.slow
def test_a_network_with_gam_gives_the_same_numbers_in_onnx(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build_model("resnet18", attention="gam", num_classes=10, stem="cifar", width=0.25).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        ours = network(x)
    torch.onnx.export(network, (x,), str(tmp_path / "network.onnx"), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx")
    (theirs,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(theirs, ours.numpy(), rtol=1e-4, atol=1e-5)
    kinds = [node.op_type for node in onnx.load(tmp_path / "network.onnx").graph.node]
    assert kinds.count("Conv") == 20 + 2 * 8  # ResNet-18's, and two in each of eight blocks
