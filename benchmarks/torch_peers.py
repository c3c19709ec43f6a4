"""Losses of torch libraries, as they are called."""

import importlib
import os
import warnings


def import_smp():
    """segmentation_models_pytorch, also beside a torchvision built for CUDA only."""
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


def torch_peers():
    """Losses `(logits, labels) -> scalar`, channels first, by row of the benchmark.

    Empty where torch is not installed; without those of a library that is not.
    """
    # Or torch's threads spin between its calls, which slows whatever comes next, and
    # torch itself many times over where others use the machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        import torch
        from torch.nn import functional as F  # noqa: N812
    except ImportError:
        return {}

    def top_k(logits, labels):
        loss = F.cross_entropy(logits, labels, reduction="none").flatten()
        return loss.topk(loss.numel() // 4).values.mean()

    def focal(logits, labels):
        loss = F.cross_entropy(logits, labels, reduction="none")
        return ((1 - torch.exp(-loss)) ** 2 * loss).mean()

    def poly(logits, labels):
        loss = F.cross_entropy(logits, labels, reduction="none")
        return (loss + 1 - torch.exp(-loss)).mean()

    def weighted(logits, labels):
        weight = torch.arange(1, logits.shape[1] + 1).to(logits)
        return F.cross_entropy(logits, labels, weight)

    rows = {
        "softmax_cross_entropy": {"torch": F.cross_entropy},
        "softmax_cross_entropy void": {
            "torch": lambda x, y: F.cross_entropy(x, y, ignore_index=255)
        },
        "softmax_cross_entropy weights": {"torch": weighted},
        "sigmoid_cross_entropy": {"torch": F.binary_cross_entropy_with_logits},
        "focal_loss": {"torch": focal},
        "poly_loss": {"torch": poly},
        "top_k_cross_entropy": {"torch": top_k},
    }
    for library in (_smp_rows, _monai_rows):
        try:
            more = library()
        except ImportError:
            continue
        for name, peers in more.items():
            rows[name] = rows.get(name, {}) | peers
    return rows


def _smp_rows():
    losses = import_smp().losses
    mode, void = "multiclass", dict(ignore_index=255)
    weighted = dict(alpha=0.3, beta=0.7)
    focal = losses._functional.softmax_focal_loss_with_logits
    rows = {
        "sigmoid_cross_entropy": losses.SoftBCEWithLogitsLoss(),
        "focal_loss": focal,
        "sigmoid_focal_loss": losses.FocalLoss("multilabel", alpha=0.25),
        "soft_dice": losses.DiceLoss(mode),
        "soft_dice linear": losses.DiceLoss(mode),
        "soft_dice void": losses.DiceLoss(mode, **void),
        "soft_iou": losses.JaccardLoss(mode),
        "tversky": losses.TverskyLoss(mode, **weighted),
        "focal_tversky": losses.TverskyLoss(mode, gamma=0.75, **weighted),
        "lovasz_softmax": losses.LovaszLoss(mode),
        "lovasz_softmax bins": losses.LovaszLoss(mode),
        "lovasz_hinge": losses.LovaszLoss("binary", per_image=True),
    }
    return {name: {"SMP": loss} for name, loss in rows.items()}


def _monai_rows():
    from monai import losses

    def of_ids(loss):
        return lambda logits, labels: loss(logits, labels[:, None])

    softmax = dict(softmax=True, to_onehot_y=True)
    dice = dict(batch=True, **softmax)
    rows = {
        "focal_loss": of_ids(losses.FocalLoss(use_softmax=True, to_onehot_y=True)),
        "sigmoid_focal_loss": losses.FocalLoss(alpha=0.25),
        "soft_dice": of_ids(losses.DiceLoss(squared_pred=True, **dice)),
        "soft_dice linear": of_ids(losses.DiceLoss(**dice)),
        "soft_dice void": of_ids(
            losses.DiceLoss(squared_pred=True, ignore_index=255, **dice)
        ),
        "soft_iou": of_ids(losses.DiceLoss(jaccard=True, **dice)),
        "tversky": of_ids(losses.TverskyLoss(alpha=0.3, beta=0.7, **dice)),
        "generalized_dice": of_ids(losses.GeneralizedDiceLoss(**dice)),
        "soft_cldice": of_ids(losses.SoftclDiceLoss(**softmax)),
    }
    return {name: {"MONAI": loss} for name, loss in rows.items()}
