"""U-Net on CamVid, small enough for a CPU; add `:smoke` for a short test run.

python run.py --config=configs/camvid.py --config.data.root=DIR --workdir=runs/camvid

DIR holds CamVid (Brostow et al. 2009; 367 / 101 / 233 images of 360x480, 11 classes) in
SegNet's layout or in the `folder` format. Results: experiments/camvid/README.md.
"""

from ml_collections import ConfigDict, config_dict

from configs.common import base
from configs.common.base import Loss


def get_config(size: str = "full", loss: Loss | None = None) -> ConfigDict:
    smoke = size == "smoke"
    config = base.get_config(size)
    config.total_steps = 2 if smoke else 1_200
    config.data.update(
        name="camvid",
        root=config_dict.placeholder(str),
        partial=False,
        crop_hw=(64, 64) if smoke else (256, 320),
    )
    config.augment.scale_range = (0.75, 1.5)
    # Random batches, since one or two of these images already have all classes.
    config.sampler = dict(name="random", batch_max=4 if smoke else 6)
    # The network runs at half the image's resolution, which is a quarter of the work.
    config.model.input_stride = 2
    config.loss = loss or [
        dict(name="softmax_cross_entropy", weight=1.0),
        dict(name="soft_dice", weight=1.0, classes="present"),
    ]
    config.evaluate.final_split = "val" if smoke else "test"
    config.evaluate.size_multiple = 1  # all images have one size
    return config.lock()
