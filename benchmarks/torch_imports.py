"""Torch libraries that import torchvision, which may be built for CUDA only."""

import importlib
import warnings


def import_smp():
    """segmentation_models_pytorch, even with a torchvision built for CUDA only."""
    return import_with_torchvision("segmentation_models_pytorch")


def import_with_torchvision(name):
    """A module that imports torchvision, which may be built for CUDA only."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except RuntimeError as error:
            if "torchvision::nms" not in str(error):
                raise
        # PyPI's torchvision brings its operators only with CUDA, and its import fails
        # where these two, which no loss uses, are not at least declared.
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(
                f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
        return importlib.import_module(name)
