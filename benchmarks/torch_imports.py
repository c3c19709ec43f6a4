"""Imports torch libraries that need torchvision, even if it is built for CUDA only."""

import importlib
import warnings


def import_smp():
    """Returns the module segmentation_models_pytorch."""
    return import_with_torchvision("segmentation_models_pytorch")


def import_with_torchvision(name):
    """Returns the module `name`, which imports torchvision.

    This works even if torchvision cannot find its CUDA operators.
    """
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except RuntimeError as error:
            if "torchvision::nms" not in str(error):
                raise
        # PyPI's torchvision defines its operators only with CUDA, and its import fails
        # unless these two are declared. No loss uses them.
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(
                f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
        return importlib.import_module(name)
