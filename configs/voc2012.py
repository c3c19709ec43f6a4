"""U-Net on PASCAL VOC 2012 with Balance-batch; add `:smoke` to try it in seconds.

python run.py --config=configs/voc2012.py --config.data.root=DIR --workdir=runs/voc2012

DIR is where VOC 2012 and SBD were unpacked; without them, it says what to download. For
a part of them, add `--config.data.partial`. From scratch on the 10,582 images that are
called train_aug; crops of 321x321, scales 0.5 to 1.5 and the "poly" schedule are
those of Chen et al. 2017 (arXiv:1606.00915).
"""

from ml_collections import ConfigDict, config_dict


def get_config(size: str = "full") -> ConfigDict:
    if size not in ("full", "smoke"):
        raise ValueError(f"config size must be 'full' or 'smoke', got {size!r}.")
    smoke = size == "smoke"
    config = ConfigDict()
    config.seed = 0
    config.total_steps = 2 if smoke else 60_000
    config.checkpoint_every_steps = 2 if smoke else 1_000
    config.evaluate_every_steps = 2 if smoke else 5_000
    config.log_every_steps = 2 if smoke else 10
    config.data = dict(
        name="voc2012",
        root=config_dict.placeholder(str),
        partial=False,
        data_dir=config_dict.placeholder(str),
        crop_hw=(32, 32) if smoke else (321, 321),
        num_threads=1 if smoke else 4,
        num_workers=0,
        prefetch_batches=2 if smoke else 4,
        on_bad_sample="raise",
    )
    config.augment = dict(scale_range=(0.5, 1.5), flip_probability=0.5)
    # On these labels 92 % of attempts reach 8 classes, after 6.4 samples on average.
    config.sampler = dict(
        name="balance_batch", batch_max=4 if smoke else 9, batch_cl=4 if smoke else 8
    )
    config.model = dict(
        name="unet",
        depth=1 if smoke else 4,
        width=4 if smoke else 64,
        norm="batch",
        pretrained=config_dict.placeholder(str),
    )
    config.loss = [
        dict(name="softmax_cross_entropy", weight=1.0),
        dict(name="soft_dice", weight=1.0, classes="present"),
    ]
    # Higher than DeepLab's 2.5e-4, which goes on from weights trained on COCO.
    config.optimizer = dict(
        name="sgd", momentum=0.9, weight_decay=5e-4, decay="l2", clip_norm=5.0
    )
    config.schedule = dict(
        name="polynomial",
        learning_rate=1e-2,
        power=0.9,
        warmup_steps=1 if smoke else 500,
    )
    config.evaluate = dict(
        split="val",
        final_split="val",
        batch_size=4,
        # Sides are padded to a multiple, so that sizes are few and compiling is rare.
        size_multiple=32,
        checkpoint="newest",
    )
    return config.lock()
