"""U-Net on your own data in the `folder` format; add `:smoke` for a short test run.

python run.py --config=configs/folder.py --config.data.root=DIR --workdir=runs/folder

DIR holds `classes.txt` (lines `index name`) and the folders `train` and `val`, each
with `images` and `labels`. A label is an 8-bit PNG of class indices; 255 is unknown.
"""

from ml_collections import ConfigDict, config_dict


def get_config(size: str = "full") -> ConfigDict:
    if size not in ("full", "smoke"):
        raise ValueError(f"config size must be 'full' or 'smoke', got {size!r}.")
    smoke = size == "smoke"
    config = ConfigDict()
    config.seed = 0
    config.total_steps = 4 if smoke else 20_000
    config.checkpoint_every_steps = 2 if smoke else 500
    config.evaluate_every_steps = 2 if smoke else 1_000
    config.log_every_steps = 2 if smoke else 10
    config.data = dict(
        name="folder",
        root=config_dict.placeholder(str),
        ignore_label=255,
        data_dir=config_dict.placeholder(str),
        # In pixels after scaling; images may be of any and of different sizes.
        crop_hw=(32, 32) if smoke else (256, 256),
        num_threads=1 if smoke else 4,
        num_workers=0,
        prefetch_batches=2 if smoke else 4,
        on_bad_sample="raise",
    )
    config.augment = dict(scale_range=(0.5, 1.5), flip_probability=0.5)
    # Random batches, since a good batch_cl depends on the data.
    config.sampler = dict(name="random", batch_max=4 if smoke else 16)
    config.model = dict(
        name="unet",
        depth=1 if smoke else 4,
        width=4 if smoke else 32,
        norm="batch",
        pretrained=config_dict.placeholder(str),
    )
    config.loss = dict(name="softmax_cross_entropy")
    config.optimizer = dict(name="adamw", weight_decay=1e-2, clip_norm=5.0)
    config.schedule = dict(
        name="cosine", learning_rate=1e-3, warmup_steps=1 if smoke else 500
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
        checkpoint="newest",
    )
    return config.lock()
