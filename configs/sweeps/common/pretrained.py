"""What the studies with a pretrained network share: the network, and their arms."""

from collections.abc import Mapping

from ml_collections import ConfigDict

from configs.sweeps.common.arms import random_and_balance_batch, with_matched

LOSSES = {
    "ce": dict(name="softmax_cross_entropy"),
    "dice": dict(name="soft_dice"),
    "iou": dict(name="soft_iou"),
}


def use_pretrained_network(config: ConfigDict) -> None:
    """Sets the model and optimizer: DeepLab v3+ on EfficientNet-Lite0 from ImageNet.

    The norms of the backbone keep their statistics, as in the Balance-batch paper, so
    that small batches do not disturb them. The norms, and the stages at strides 2 and
    4, are frozen: without them a step is cheaper, and their edges serve any images. The
    rest of the backbone learns so slowly that it keeps what it knows: in runs of 200
    steps on animals, 1.2e-3 instead of 1.2e-4 gave a mean IoU of 0.19 instead of 0.41.
    """
    config.model = dict(
        name="deeplab_v3_plus",
        backbone="efficientnet_lite0",
        output_stride=16,
        width=16,
        norm="batch",
        backbone_norm="frozen",
        pretrained="efficientnet_lite0",
    )
    config.schedule.update(learning_rate=2e-3, warmup_steps=30)
    config.optimizer.weight_decay = 1e-3
    config.optimizer.groups = (
        dict(match="backbone/(stem|stage[12]|.*norm)", frozen=True),
        dict(match="backbone", learning_rate_factor=0.06),
    )


def balance_batch_arms(
    loss: str,
    *,
    prefix: str,
    total_steps: int,
    batch_max: int,
    batch_cl: int,
    mean_batch_size: float,
    is_headline: bool,
    min_pixels: int,
) -> dict[str, dict]:
    """Returns the arms of a loss: variants that a study compares, by name.

    These are random batches, `PREFIX-random`, Balance-batch for as many steps,
    `PREFIX-clN`, and its control `PREFIX-clN-matched`, random batches of the same
    sizes. A headline has more: `PREFIX-clN-images`, Balance-batch for as many images,
    and `PREFIX-clN-crops`, which keeps its classes in the crops, with its control.

    Args:
        loss: key of `LOSSES`.
        prefix: beginning of the names.
        total_steps: number of steps with random batches.
        batch_max: largest number of images in a batch.
        batch_cl: number of distinct classes in a batch.
        mean_batch_size: mean number of images in a batch of Balance-batch.
        is_headline: whether the loss carries a headline with these batches.
        min_pixels: a class counts where it has as many pixels.
    """
    arms = random_and_balance_batch(
        {prefix: LOSSES[loss]},
        total_steps=total_steps,
        batch_max=batch_max,
        mean_batch_sizes={batch_cl: mean_batch_size},
        min_pixels=min_pixels,
    )
    name = f"{prefix}-cl{batch_cl}"
    if is_headline:
        arms[f"{name}-crops"] = {**arms[name], "augment.keep_classes": True}
    else:
        del arms[f"{name}-images"]
    return with_matched(arms, [name, f"{name}-crops"])


def compare_with_controls(
    arms: Mapping[str, Mapping],
) -> tuple[tuple[str, str], ...]:
    """Returns pairs of arms to compare: with random batches, then with controls.

    Every arm of a loss is compared with random batches, `PREFIX-random`, and every arm
    that has a control `ARM-matched` with that.
    """
    controls = {arm for arm in arms if arm.endswith("-matched")}
    with_random = tuple(
        (arm, f"{arm.partition('-')[0]}-random")
        for arm in arms
        if arm not in controls and not arm.endswith("-random")
    )
    own = tuple((arm, f"{arm}-matched") for arm in arms if f"{arm}-matched" in controls)
    return with_random + own
