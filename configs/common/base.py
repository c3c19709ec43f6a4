"""Fields that all training configs share; the dataset, sampler and loss are not set."""

from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict, config_dict

from segloss.errors import SeglossError

# The fields of one loss, or of several to add. `ConfigDict` does not let a field change
# its type from one to the other, so `get_config` of a dataset takes the loss.
Loss = Mapping | Sequence[Mapping]


def get_config(size: str = "full") -> ConfigDict:
    """Returns an unlocked config with the fields that all training configs share.

    Args:
        size: "full", or "smoke" for a test run of seconds.

    Raises:
        SeglossError: if `size` is neither.
    """
    if size not in ("full", "smoke"):
        raise SeglossError(f"config size must be 'full' or 'smoke', got {size!r}.")
    smoke = size == "smoke"
    config = ConfigDict()
    config.seed = 0
    config.total_steps = 4 if smoke else 1_200
    # For every number of steps below: a whole number is steps, and a fraction in (0, 1)
    # is a share of `total_steps`. They are floats, so that flags can set either.
    config.checkpoint_every_steps = 2.0 if smoke else 1 / 12
    config.evaluate_every_steps = 2.0 if smoke else 1 / 3
    config.log_every_steps = 2.0 if smoke else 10.0
    config.data = dict(
        data_dir=config_dict.placeholder(str),
        num_threads=1,
        num_workers=0,
        prefetch_batches=2,
        on_bad_sample="raise",
    )
    config.augment = dict(
        scale_range=(0.5, 1.5),
        flip_probability=0.5,
        # Crops keep the classes for which the sampler chose the image.
        keep_classes=True,
    )
    config.model = dict(
        name="unet",
        depth=1 if smoke else 4,
        width=4 if smoke else 16,
        norm="batch",
        pretrained=config_dict.placeholder(str),
    )
    config.optimizer = dict(name="adamw", weight_decay=1e-2, clip_norm=5.0)
    config.schedule = dict(
        name="cosine", learning_rate=3e-3, warmup_steps=1.0 if smoke else 1 / 24
    )
    config.evaluate = dict(
        split="val",
        final_split="val",
        batch_size=4,
        # Pads images to multiples of 32, so that few sizes must be compiled.
        size_multiple=32,
        scales=(1.0,),
        flip=False,
        window_hw=config_dict.placeholder(tuple),
        window_stride=2 / 3,
        # Larger images are predicted in tiles; 1024x2048 pixels are still whole.
        max_pixels=2**21,
        checkpoint="newest",
    )
    return config
