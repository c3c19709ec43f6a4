r"""Values and gradients of other libraries' losses on small fixed inputs, as JSON.

python -m venv .venv-peers
.venv-peers/bin/pip install -r requirements.txt torch==2.13.0 torchvision==0.28.0 \
    segmentation-models-pytorch==0.6.0 monai==1.6.1 scikit-learn==1.9.1 keras==3.15.1
PYTHONPATH=. JAX_ENABLE_X64=1 KERAS_BACKEND=jax \
    .venv-peers/bin/python tests/oracles/make_peer_values.py

Logits are channels last, as here. Peers compute in float64 where they let us; what is
not finite is stored as null. `tests/losses/test_peers.py` reads the file.
"""

import json
import pathlib

import jax
import keras
import numpy as np
import optax.losses
import torch
from sklearn import metrics as sk
from torch import nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.torch_imports import import_smp

smp = import_smp()
# After SMP, because both import torchvision.
from monai import losses as monai  # noqa: E402

OUTPUT = pathlib.Path(__file__).parent / "peer_values.json"
VOID = 255
WEIGHTS = [0.5, 2.0, 3.0, 1.5]


def make_inputs():
    """Logits and labels by name; labels are ids, or as many numbers as logits."""
    rng = np.random.default_rng(0)
    line = rng.integers(0, 3, (2, 6))
    plane = rng.integers(0, 3, (2, 3, 4))  # of four classes: the last is absent
    plane[0, 0, :3] = plane[1, 2, 3] = VOID  # leaves 20 pixels
    volume = rng.integers(0, 3, (1, 2, 3, 2))
    predicted = np.where(rng.random(plane.shape) < 0.6, plane % 4, 0)
    hard = np.where(np.eye(4, dtype=bool)[predicted], 1e4, -1e4)
    strokes = np.zeros((1, 8, 9), int)
    strokes[0, 1:3, 1:8], strokes[0, 4:8, 3:7] = 1, 2
    tags = rng.integers(0, 2, (2, 3, 4, 3))
    tags_void = np.where(rng.random(tags.shape) < 0.25, VOID, tags)
    tag_scores = rng.normal(0, 2, tags.shape)
    binary_void = np.array(tags_void[..., 0])
    return {
        "line": (rng.normal(0, 2, (*line.shape, 3)), line),
        "plane": (rng.normal(0, 2, (*plane.shape, 4)), plane),
        "volume": (rng.normal(0, 2, (*volume.shape, 3)), volume),
        "strokes": (rng.normal(0, 2, (*strokes.shape, 3)), strokes),
        "saturated": (hard, plane),
        "tags": (tag_scores, tags),
        "tags_void": (tag_scores, tags_void),
        "tags_soft": (tag_scores, rng.random(tags.shape).round(3)),
        "tags_saturated": (np.where(tag_scores > 0, 1e4, -1e4), tags),
        "binary_void": (tag_scores[..., 0], binary_void),
    }


def weights(count=4):
    return torch.tensor(WEIGHTS[:count], dtype=torch.float64)


def cross_entropy(**kwargs):
    return nn.CrossEntropyLoss(ignore_index=VOID, **kwargs)


def top_k(x, y, k):
    losses = F.cross_entropy(x, y, ignore_index=VOID, reduction="none")
    return losses.flatten().topk(k).values.mean()


def labelled(loss):
    """For losses that know of no void: the other elements in a row."""
    return lambda x, y: loss(x[y != VOID], y[y != VOID].double())


def complement(x, y):
    share = y.mean()
    weight = torch.where(y == 1, 1 - share, share)
    return F.binary_cross_entropy_with_logits(x, y, weight)


def inverse(x, y):
    return F.binary_cross_entropy_with_logits(x, y, pos_weight=1 / y.mean())


def gated(x, y):
    weight = torch.where(x.sigmoid() < 0.3, 4.0, 1.0).detach()
    return F.binary_cross_entropy_with_logits(x, y, weight)


def log_bilinear(x, y):
    """What class is seen, by columns, where another is, by rows, costs 1 to 6."""
    costs = torch.tensor([[0.0, 1, 2], [3, 0, 4], [5, 6, 0]]).to(x)
    misses = torch.log1p(-x.softmax(1)).movedim(1, -1)
    return 0.7 * F.cross_entropy(x, y) - 0.3 * (costs[y] * misses).sum(-1).mean()


def log_cosh(x, y):
    dice = of_monai("DiceLoss", squared_pred=True, batch=True, **EXACT)
    return dice(x, y).cosh().log()


def of_monai(name, **kwargs):
    """A loss of MONAI for class ids, with smoothing 1e-5 unless told."""
    loss = getattr(monai, name)(to_onehot_y=True, **{"softmax": True} | kwargs)
    return lambda x, y: loss(x, y[:, None])


def monai_focal(**kwargs):
    loss = monai.FocalLoss(to_onehot_y=True, use_softmax=True, **kwargs)
    return lambda x, y: loss(x, y[:, None])


def tags_of(loss):
    """For losses that ask for float labels."""
    return lambda x, y: loss(x, y.double())


def lovasz(*args, **kwargs):
    """SMP's, which mixes float32 into what is float64."""
    loss = smp.losses.LovaszLoss(*args, **kwargs)
    return lambda x, y: loss(x.float(), y)


def focal_tversky(x, y):
    """MONAI's Tversky of each class, to the power that SMP applies to their mean."""
    options = dict(alpha=0.3, beta=0.7, batch=True, reduction="none")
    return (of_monai("TverskyLoss", **options)(x, y) ** 0.75).mean()


def cldice(x, y):
    """Mean over the classes of MONAI's clDice, which would add them up as one."""
    loss = monai.SoftclDiceLoss(smooth=1e-12)
    targets = F.one_hot(y).movedim(-1, 1).to(x)
    classes = zip(x.softmax(1).split(1, 1), targets.split(1, 1), strict=True)
    return torch.stack([loss(p, t) for p, t in classes]).mean()


def boundary(x, y):
    """MONAI's loss above that of a perfect prediction."""
    targets = F.one_hot(y).movedim(-1, 1).to(x)
    best = monai.BoundaryLoss()(targets, targets)
    return monai.BoundaryLoss(softmax=True)(x, targets) - best


MULTI, TAGS = "multiclass", "multilabel"
smp_focal = smp.losses._functional.softmax_focal_loss_with_logits
VOIDED = dict(ignore_index=VOID)
EXACT = dict(smooth_nr=0.0, smooth_dr=0.0)

# What torch computes: input, and loss of scores with the channels first and labels.
TORCH = {
    "torch CE": ("plane", cross_entropy()),
    "torch CE line": ("line", cross_entropy()),
    "torch CE volume": ("volume", cross_entropy()),
    "torch CE weight": ("plane", cross_entropy(weight=weights())),
    "torch CE weight smoothing": (
        "plane",
        cross_entropy(weight=weights(), label_smoothing=0.1),
    ),
    "torch CE sum": ("plane", cross_entropy(reduction="sum")),
    "torch CE saturated": ("saturated", cross_entropy()),
    "torch CE saturated weight": ("saturated", cross_entropy(weight=weights())),
    "torch CE top 5": ("plane", lambda x, y: top_k(x, y, 5)),
    "torch BCE": ("tags", tags_of(nn.BCEWithLogitsLoss())),
    "torch BCE soft": ("tags_soft", tags_of(nn.BCEWithLogitsLoss())),
    "torch BCE pos_weight": (
        "tags_soft",
        tags_of(nn.BCEWithLogitsLoss(pos_weight=weights(3)[:, None, None])),
    ),
    "torch BCE saturated": ("tags_saturated", tags_of(nn.BCEWithLogitsLoss())),
    "torch BCE complement": ("tags_void", labelled(complement)),
    "torch BCE inverse": ("tags_void", labelled(inverse)),
    "torch BCE gated": ("tags_void", labelled(gated)),
    "torch log-bilinear": ("volume", log_bilinear),
    "SMP SoftBCE sum": (
        "tags_void",
        tags_of(smp.losses.SoftBCEWithLogitsLoss(reduction="sum", **VOIDED)),
    ),
    "SMP softmax focal": ("line", smp_focal),
    "SMP softmax focal volume 0.5": ("volume", lambda x, y: smp_focal(x, y, 0.5)),
    "SMP sigmoid focal": ("tags", smp.losses.FocalLoss(TAGS, alpha=0.25)),
    "SMP sigmoid focal ids": ("plane", smp.losses.FocalLoss(MULTI, 0.25, **VOIDED)),
    "SMP Dice": ("plane", smp.losses.DiceLoss(MULTI, **VOIDED)),
    "SMP Dice line smooth weights": (
        "line",
        smp.losses.DiceLoss(MULTI, smooth=1.0, class_weights=WEIGHTS[:3]),
    ),
    "SMP Dice saturated": ("saturated", smp.losses.DiceLoss(MULTI, **VOIDED)),
    "SMP Dice soft": ("tags_soft", smp.losses.DiceLoss(TAGS)),
    "SMP Dice tags": ("tags_void", smp.losses.DiceLoss(TAGS, **VOIDED)),
    "SMP Jaccard": ("plane", smp.losses.JaccardLoss(MULTI, **VOIDED)),
    "SMP Jaccard soft": ("tags_soft", smp.losses.JaccardLoss(TAGS)),
    "SMP Tversky": (
        "plane",
        smp.losses.TverskyLoss(MULTI, alpha=0.3, beta=0.7, **VOIDED),
    ),
    "SMP Tversky line": ("line", smp.losses.TverskyLoss(MULTI, alpha=0.9, beta=0.1)),
    "SMP Tversky soft": (
        "tags_soft",
        smp.losses.TverskyLoss(TAGS, alpha=0.3, beta=0.7),
    ),
    "SMP Lovasz": ("plane", lovasz(MULTI, **VOIDED)),
    "SMP Lovasz per image": ("plane", lovasz(MULTI, True, VOID)),
    "SMP Lovasz volume": ("volume", lovasz(MULTI)),
    "SMP Lovasz saturated": ("saturated", lovasz(MULTI, **VOIDED)),
    "SMP Lovasz hinge": ("binary_void", lovasz("binary", True, VOID)),
    "MONAI focal": ("plane", monai_focal(weight=WEIGHTS, **VOIDED)),
    "MONAI focal saturated": ("saturated", monai_focal(gamma=1.0, **VOIDED)),
    "MONAI sigmoid focal": ("tags", tags_of(monai.FocalLoss(alpha=0.25, gamma=1.5))),
    "MONAI Dice": ("plane", of_monai("DiceLoss", batch=True, **VOIDED)),
    "MONAI squared Dice": (
        "plane",
        of_monai("DiceLoss", squared_pred=True, batch=True, **VOIDED),
    ),
    "MONAI squared Dice per image": (
        "plane",
        of_monai("DiceLoss", squared_pred=True, **VOIDED),
    ),
    "MONAI squared Dice volume weights": (
        "volume",
        of_monai("DiceLoss", squared_pred=True, weight=WEIGHTS[:3], **EXACT),
    ),
    "MONAI log cosh Dice": ("line", log_cosh),
    "MONAI squared Dice tags": (
        "tags",
        tags_of(monai.DiceLoss(sigmoid=True, squared_pred=True, batch=True, **EXACT)),
    ),
    "MONAI Jaccard": (
        "plane",
        of_monai("DiceLoss", jaccard=True, batch=True, **VOIDED),
    ),
    "MONAI Jaccard smooth": (
        "line",
        of_monai("DiceLoss", jaccard=True, smooth_nr=1.0, smooth_dr=1.0),
    ),
    "MONAI Tversky": (
        "plane",
        of_monai("TverskyLoss", alpha=0.3, beta=0.7, batch=True, **VOIDED),
    ),
    "MONAI Tversky per image": (
        "plane",
        of_monai("TverskyLoss", alpha=0.8, beta=0.1, **VOIDED),
    ),
    "MONAI Tversky to the power": ("line", focal_tversky),
    "MONAI generalized Dice": (
        "line",
        of_monai("GeneralizedDiceLoss", batch=True, **EXACT),
    ),
    "MONAI generalized Dice volume": (
        "volume",
        of_monai("GeneralizedDiceLoss", smooth_nr=0.1, smooth_dr=0.1, batch=True),
    ),
    "MONAI clDice": ("strokes", cldice),
    "MONAI boundary": ("strokes", boundary),
}


def one_hot(x, y):
    return jax.nn.one_hot(y, x.shape[-1], dtype=x.dtype)


def of_optax(name, **kwargs):
    loss = getattr(optax.losses, name)
    return lambda x, y: loss(x, one_hot(x, y), **kwargs).mean()


def optax_sigmoid_focal(x, y):
    return optax.losses.sigmoid_focal_loss(x, y, alpha=0.25, gamma=0.5).mean()


# What JAX computes, of scores with the channels last.
JAX = {
    "optax poly": ("line", of_optax("poly_loss_cross_entropy", epsilon=1.0)),
    "optax poly volume": ("volume", of_optax("poly_loss_cross_entropy", epsilon=2.0)),
    "optax sigmoid focal": ("tags", optax_sigmoid_focal),
    "optax Dice smooth": ("line", of_optax("dice_loss")),
    "optax Tversky smooth": ("volume", of_optax("dice_loss", alpha=0.8, beta=0.4)),
}


def monai_distances(labels):
    targets = F.one_hot(torch.tensor(labels)).movedim(-1, 1)
    return monai.BoundaryLoss().compute_distance_map(targets).movedim(1, -1).numpy()


def faulty_values(inputs):
    """Values that are wrong, kept to show that segloss does not share the faults."""

    def of_torch(loss, given):
        return torch_value_and_grad(loss, *inputs[given])[0]

    line, line_labels = inputs["line"]
    # Of four classes, the first two taken for each other.
    truth, swapped = np.eye(4)[None, :2], 100 * np.eye(4)[None, 1::-1]
    # The sums of half the pixels are more than a float16 holds.
    zeros, ground = np.zeros((1, 512, 256, 2), np.float16), np.zeros((1, 512, 256), int)
    softmax_ce = smp.losses.SoftCrossEntropyLoss(smooth_factor=0.0, **VOIDED)
    return {
        "torch CE all void": of_torch(
            lambda x, y: cross_entropy()(x, torch.full_like(y, VOID)), "plane"
        ),
        "SMP SoftCE mean": of_torch(softmax_ce, "plane"),
        "SMP SoftBCE mean": of_torch(
            tags_of(smp.losses.SoftBCEWithLogitsLoss(**VOIDED)), "tags_void"
        ),
        "SMP focal Tversky": of_torch(
            smp.losses.TverskyLoss(MULTI, alpha=0.3, beta=0.7, gamma=0.75), "line"
        ),
        "SMP Dice float16": torch_value_and_grad(
            smp.losses.DiceLoss(MULTI), zeros, ground
        )[0],
        "optax Dice float16": optax.losses.dice_loss(zeros, one_hot(zeros, ground))[0],
        "optax generalized Dice": optax.losses.multiclass_generalized_dice_loss(
            swapped, truth
        ),
        "keras Tversky": keras.losses.Tversky(alpha=0.9, beta=0.1, axis=(0, 1))(
            one_hot(line, line_labels), jax.nn.softmax(line)
        ),
    }


def scikit_learn_values(logits, labels):
    """Hard predictions, so scores by counting; a class absent from both scores 0."""
    labels, predicted = labels[labels != VOID], logits.argmax(-1)[labels != VOID]
    options = dict(labels=range(4), average=None, zero_division=0)
    scores = {
        "f1_score": sk.f1_score(labels, predicted, **options),
        "jaccard_score": sk.jaccard_score(labels, predicted, **options),
        "fbeta_score(2)": sk.fbeta_score(labels, predicted, beta=2, **options),
        "fbeta_score(0.5)": sk.fbeta_score(labels, predicted, beta=0.5, **options),
    }
    return {f"scikit-learn {k}": 1 - score.mean() for k, score in scores.items()}


def torch_value_and_grad(loss, logits, labels):
    logits, labels = torch.tensor(logits, requires_grad=True), torch.tensor(labels)
    binary = logits.ndim == labels.ndim == 3
    many = logits.ndim == labels.ndim > 3
    value = loss(
        logits if binary else logits.movedim(-1, 1),
        labels.movedim(-1, 1) if many else labels,
    )
    value.backward()
    return value.item(), logits.grad.numpy()


def rounded(values):
    """Nested lists with the nine digits that hold a float32, null for not finite."""
    if np.ndim(values):
        return [rounded(v) for v in values]
    if not np.isfinite(values):
        return None
    return int(values) if values == int(values) else float(f"{values:.9g}")


def main():
    inputs = make_inputs()
    cases = {}
    for name, (given, loss) in TORCH.items():
        cases[name] = (given, *torch_value_and_grad(loss, *inputs[given]))
    for name, (given, loss) in JAX.items():
        cases[name] = (given, *jax.value_and_grad(loss)(*inputs[given]))
    for name, value in scikit_learn_values(*inputs["saturated"]).items():
        cases[name] = ("saturated", value, np.zeros_like(inputs["saturated"][0]))
    arrays = {k: dict(logits=x, labels=y) for k, (x, y) in inputs.items()}
    arrays["strokes"]["distances"] = monai_distances(inputs["strokes"][1])
    faults = {k: dict(value=v) for k, v in faulty_values(inputs).items()}
    cases = {k: dict(input=i, value=v, gradient=g) for k, (i, v, g) in cases.items()}
    stored = {"inputs": arrays, "cases": cases, "faults": faults}
    lines = (f"{json.dumps(k)}: {{\n{to_lines(v)}\n}}" for k, v in stored.items())
    OUTPUT.write_text("{" + ",\n".join(lines) + "}\n")


def to_lines(entries):
    """A line for each, so that a change shows where it is."""
    lines = []
    for name, entry in entries.items():
        entry = {k: v if isinstance(v, str) else rounded(v) for k, v in entry.items()}
        text = json.dumps(entry, separators=(",", ":"))
        lines.append(f"{json.dumps(name)}: {text}")
    return ",\n".join(lines)


if __name__ == "__main__":
    main()
