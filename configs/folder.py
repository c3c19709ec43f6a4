"""U-Net on your own data in the `folder` format; add `:smoke` for a short test run.

python run.py --config=configs/folder.py --config.data.root=DIR --workdir=runs/folder

DIR holds `classes.txt` (lines `index name`) and the folders `train` and `val`, each
with `images` and `labels`. Labels are class indices; 255 is unknown. docs/own_data.md
says what else they may be, and what the fields of `data` are for.
"""

from ml_collections import ConfigDict, config_dict

from configs.common import base


def get_config(size: str = "full") -> ConfigDict:
    smoke = size == "smoke"
    config = base.get_config(size)
    config.total_steps = 4 if smoke else 20_000
    config.checkpoint_every_steps = 2.0 if smoke else 1 / 40
    config.evaluate_every_steps = 2.0 if smoke else 1 / 20
    config.data.update(
        name="folder",
        root=config_dict.placeholder(str),
        ignore_label=255,
        image_suffix="",
        label_suffix="",
        val_fraction=0.0,
        alpha="drop",
        nodata=config_dict.placeholder(str),
        max_image_pixels=2**28,
        # In pixels after scaling; images may be of any and of different sizes.
        crop_hw=(32, 32) if smoke else (256, 256),
        num_threads=1 if smoke else 4,
        prefetch_batches=2 if smoke else 4,
    )
    # Random batches, since a good batch_cl depends on the data.
    config.sampler = dict(name="random", batch_max=4 if smoke else 16)
    config.model.width = 4 if smoke else 32
    config.loss = dict(name="softmax_cross_entropy")
    config.schedule.update(learning_rate=1e-3, warmup_steps=1.0 if smoke else 1 / 40)
    return config.lock()
