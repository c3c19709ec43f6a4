import importlib.util

import jax
import numpy as np
import pytest

from benchmarks.steps import MATMUL, OURS, Candidate, make_batch, step_table
from segloss.models import make_model


def test_table_has_rates_and_shares_of_each_step():
    candidates = {
        ("unet", OURS): Candidate(print, 3_000_000_000),
        ("unet", "torch, eager"): Candidate(print, None),
        MATMUL: Candidate(print, None),
    }
    seconds = {("unet", OURS): [0.5, 0.5], ("unet", "torch, eager"): [1.0, 2.0]}
    table = step_table(
        candidates,
        seconds | {MATMUL: [1.0, 1.0]},
        dict.fromkeys(seconds, 2000000000000.0),
        batch_size=8,
        peak=16e12,
    )
    # 8 images in half a second; 2 TFLOP in it are a fourth of the peak.
    ours = ["unet", OURS, "500", "16", "3.00", "2", "25.0%", ""]
    theirs = ["unet", "torch, eager", "1500", "5.33", "", "2", "8.3%"]
    rows = list(zip(*(column.cells for column in table.columns), strict=True))
    assert rows == [tuple(ours), (*theirs, "3.00 (2.00 to 4.00)")]


@pytest.mark.parametrize("name", ["unet", "deeplab_v3"])
def test_peer_has_the_parameters_of_ours(name):
    pytest.importorskip("torch")
    if name == "deeplab_v3" and importlib.util.find_spec("torchvision") is None:
        pytest.skip(
            "torchvision, the peer, is not installed (see make_network_values.py)"
        )
    from benchmarks import torch_networks

    peer = torch_networks.NETWORKS[name](21)
    model = make_model(name, num_classes=21)
    images = jax.ShapeDtypeStruct((1, 33, 33, 3), np.float32)
    variables = jax.eval_shape(
        lambda key, x: model.init(key, x, train=False), jax.random.key(0), images
    )
    ours = sum(x.size for x in jax.tree.leaves(variables["params"]))
    assert sum(x.numel() for x in peer.parameters()) == ours


def test_step_of_torch_trains_on_any_size():
    pytest.importorskip("torch")
    from benchmarks import torch_networks

    batch = make_batch(9, 2)
    network = torch_networks.UNet(21, depth=1, width=2)
    before = network.head.weight.detach().clone()
    options = dict(dtype="float32", device="cpu", compiled=False)
    torch_networks.make_step(network, batch["images"], batch["labels"], **options)()
    assert (network.head.weight != before).any()
