"""Prints before a run starts: its parts, and the classes that its batches will hold."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from segloss.config import RunConfig, index_windows
from segloss.data import BadSampleError, ClassSets, count_in_crops, count_rows
from segloss.remote import shown
from segloss.train.parameter_groups import trained_part
from segloss.train.setup import Setup
from segloss.train.start import Start
from segloss.trained.evaluation import describe_large_images

# Images whose labels are read to measure what crops hold.
_IMAGES = 200


def introduce(setup: Setup, start: Start, workdir: Path, console: Console) -> None:
    """Prints the dataset, model, devices, steps, sampler, and classes in crops.

    Also prints what is frozen in the model, and not read, void or absent in the
    dataset.
    """
    dataset, step = setup.dataset, int(start.state.step)
    parameters = _count(params := start.state.params)
    frozen = parameters - _count(trained_part(setup.optimizer, params))
    share = f" ({frozen / 1e6:.2f} M of them frozen)" if frozen else ""
    kind = "" if dataset.bands.is_rgb else f" ({dataset.bands})"
    lines = [
        f"{dataset.name}: {len(dataset.source('train'))} training images{kind} of "
        f"{dataset.num_classes} classes; {type(setup.model).__name__} with "
        f"{parameters / 1e6:.2f} M parameters{share} on {jax.device_count()} "
        f"{jax.devices()[0].platform} device(s); "
        + (f"resumes from step {step} of " if step else "trains for ")
        + f"{setup.config.total_steps} steps in {shown(workdir)}"
    ]
    if step and start.pretrained:
        lines.append(
            f"the run started from the weights in {start.pretrained['file']}, SHA-256 "
            f"{start.pretrained['sha256'][:16]}; they are not read again"
        )
    lines += [
        *dataset.notes,
        *dataset.describe_classes("train"),
        describe_steps(setup.config),
        describe_unused_rows(setup.sampler.batch_max, jax.device_count()),
        setup.sampler.describe(),
        describe_uncounted(setup),
        describe_crops(setup),
    ]
    evaluate = setup.config.evaluate
    for split in dict.fromkeys((evaluate.split, evaluate.final_split)):
        lines.append(describe_large_images(dataset, split, evaluate.inference))
    for line in filter(None, lines):
        console.print(line, soft_wrap=True)


def _count(params: Any) -> int:
    return sum(x.size for x in jax.tree.leaves(params))


def describe_steps(config: RunConfig) -> str:
    """Returns a line about the warm-up and the intervals of a run, in steps."""
    warm_up = config.schedule.hyperparameters.get("warmup_steps", 0)
    return (
        f"warm-up of {warm_up} step{'s' * (warm_up != 1)}; evaluates every "
        f"{config.evaluate_every_steps} steps, saves every "
        f"{config.checkpoint_every_steps} and logs every {config.log_every_steps}"
    )


def describe_unused_rows(batch_max: int, num_devices: int) -> str:
    """Returns a line about batch rows that never hold an image; "" if there are none.

    A batch has `batch_max` rows, rounded up to a multiple of `num_devices`.
    """
    rows = count_rows(batch_max, num_devices)
    unused = rows - batch_max
    if not unused:
        return ""
    fitting = " or ".join(str(n) for n in (rows - num_devices, rows) if n)
    return (
        f"sampler.batch_max={batch_max} on {num_devices} devices: every step computes "
        f"{rows} rows, and {unused} of them never {'hold' if unused > 1 else 'holds'} "
        f"an image; batch_max={fitting} has no such rows"
    )


def describe_uncounted(setup: Setup) -> str:
    """Returns a line about classes of images that no crop can keep; "" if none.

    With `keep_classes`, the sampler plans as if the images lacked these classes.
    """
    config, windows = setup.config, setup.loading.windows
    index = setup.dataset.class_index("train")
    planned = index_windows(setup.dataset, index, config.sampler, windows)
    if planned is index:
        return ""
    sets = [ClassSets.from_counts(x.pixel_counts) for x in (index, planned)]
    held, kept = (x.samples_per_class() for x in sets)
    if (held == kept).all():
        return ""
    worst = int(np.argmax((held - kept) / np.maximum(held, 1)))
    others = "" if setup.sampler.owes_one else " together with the classes that do"
    return (
        f"augment.keep_classes: of all classes of all images, {(held - kept).sum():,} "
        f"of {held.sum():,} do not count, since none of the {windows} holds "
        f"{windows.min_pixels} or more pixels of them{others}; "
        f"{setup.dataset.class_names[worst]} counts in {kept[worst]:,} of the "
        f"{held[worst]:,} images that have it"
    )


def describe_crops(setup: Setup) -> str:
    """Returns a line about the mean number of classes in the crops of a batch.

    It is measured on the first batches, about 200 images.
    """
    windows, sampler = setup.loading.windows, setup.sampler
    batches = range(-(-_IMAGES // sampler.batch_max))
    try:
        counted = count_in_crops(
            setup.dataset.source("train", images=False),
            sampler,
            windows,
            batches,
            num_classes=setup.dataset.num_classes,
            ignore_label=setup.dataset.ignore_label,
        )
    except BadSampleError as error:  # the run skips it, or stops at it in its turn
        return f"the classes in crops are not measured: {error}"
    images, crops = (
        x.sum(axis=1).mean() for x in (counted.in_images, counted.in_crops)
    )
    line = (
        f"the first {len(batches)} batches have on average {images:.1f} classes in "
        f"their images, and {crops:.1f} in {windows}"
    )
    if sampler.batch_cl is None:
        return line
    share = counted.share_with(sampler.batch_cl, first_class=sampler.first_class)
    return f"{line}; {share:.0%} of them keep batch_cl={sampler.batch_cl} in the crops"
