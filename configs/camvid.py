"""U-Net on CamVid, small enough for a CPU; add `:smoke` for a short test run.

python run.py --config=configs/camvid.py --config.data.root=DIR --workdir=runs/camvid

DIR holds CamVid (Brostow et al. 2009; 367 / 101 / 233 images of 360x480, 11 classes) in
SegNet's layout or in the `folder` format. Results: experiments/camvid/README.md.
"""

from ml_collections import ConfigDict, config_dict


def get_config(size: str = "full") -> ConfigDict:
    if size not in ("full", "smoke"):
        raise ValueError(f"config size must be 'full' or 'smoke', got {size!r}.")
    smoke = size == "smoke"
    config = ConfigDict()
    config.seed = 0
    config.total_steps = 2 if smoke else 1_200
    config.checkpoint_every_steps = 2 if smoke else 100
    config.evaluate_every_steps = 2 if smoke else 400
    config.log_every_steps = 2 if smoke else 10
    config.data = dict(
        name="camvid",
        root=config_dict.placeholder(str),
        partial=False,
        data_dir=config_dict.placeholder(str),
        crop_hw=(64, 64) if smoke else (256, 320),
        num_threads=1,
        num_workers=0,
        prefetch_batches=2,
        on_bad_sample="raise",
    )
    config.augment = dict(scale_range=(0.75, 1.5), flip_probability=0.5)
    # Random batches, since one or two of these images already have all classes.
    config.sampler = dict(name="random", batch_max=4 if smoke else 6)
    # The network runs at half the image's resolution, a quarter of the work.
    config.model = dict(
        name="unet",
        depth=1 if smoke else 4,
        width=4 if smoke else 16,
        norm="batch",
        input_stride=2,
        pretrained=config_dict.placeholder(str),
    )
    config.loss = [
        dict(name="softmax_cross_entropy", weight=1.0),
        dict(name="soft_dice", weight=1.0, classes="present"),
    ]
    config.optimizer = dict(name="adamw", weight_decay=1e-2, clip_norm=5.0)
    config.schedule = dict(
        name="cosine", learning_rate=3e-3, warmup_steps=1 if smoke else 50
    )
    config.evaluate = dict(
        split="val",
        final_split="val" if smoke else "test",
        batch_size=4,
        size_multiple=1,
        scales=(1.0,),
        flip=False,
        window_hw=config_dict.placeholder(tuple),
        window_stride=2 / 3,
        checkpoint="newest",
    )
    return config.lock()
