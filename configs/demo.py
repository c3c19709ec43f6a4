"""U-Net on the embedded scenes with Balance-batch; add `:smoke` for a short test run.

python run.py --config=configs/demo.py --workdir=runs/demo
"""

from ml_collections import ConfigDict, config_dict


def get_config(size: str = "full") -> ConfigDict:
    if size not in ("full", "smoke"):
        raise ValueError(f"config size must be 'full' or 'smoke', got {size!r}.")
    smoke = size == "smoke"
    config = ConfigDict()
    config.seed = 0
    config.total_steps = 4 if smoke else 1_200
    config.checkpoint_every_steps = 2 if smoke else 100
    config.evaluate_every_steps = 2 if smoke else 300
    config.log_every_steps = 2 if smoke else 10
    config.data = dict(
        name="longtail_scenes",
        train=40 if smoke else 600,
        val=8 if smoke else 100,
        image_hw=(32, 32) if smoke else (96, 96),
        data_dir=config_dict.placeholder(str),
        crop_hw=(32, 32) if smoke else (96, 96),
        num_threads=1,
        num_workers=0,
        prefetch_batches=2,
        on_bad_sample="raise",
    )
    config.augment = dict(scale_range=(0.5, 1.5), flip_probability=0.5)
    config.sampler = dict(name="balance_batch", batch_max=9, batch_cl=8)
    # Half the image's resolution takes a third of the time; edges become coarser.
    config.model = dict(
        name="unet",
        depth=1 if smoke else 4,
        width=4 if smoke else 16,
        norm="batch",
        input_stride=2,
        pretrained=config_dict.placeholder(str),
    )
    config.loss = dict(name="softmax_cross_entropy")
    config.optimizer = dict(name="adamw", weight_decay=1e-2, clip_norm=5.0)
    config.schedule = dict(
        name="cosine", learning_rate=3e-3, warmup_steps=1 if smoke else 50
    )
    config.evaluate = dict(
        split="val",
        final_split="val",
        batch_size=10,
        size_multiple=1,
        scales=(1.0,),
        flip=False,
        window_hw=config_dict.placeholder(tuple),
        window_stride=2 / 3,
        checkpoint="newest",
    )
    return config.lock()
