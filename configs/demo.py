"""U-Net on the embedded scenes with Balance-batch; add `:smoke` for a short test run.

python run.py --config=configs/demo.py --workdir=runs/demo

The scenes are synthetic images that segloss draws, so nothing must be downloaded.
"""

from ml_collections import ConfigDict

from configs.common import base
from configs.common.base import Loss


def get_config(size: str = "full", loss: Loss | None = None) -> ConfigDict:
    smoke = size == "smoke"
    config = base.get_config(size)
    config.evaluate_every_steps = 2.0 if smoke else 1 / 4
    config.data.update(
        name="longtail_scenes",
        train=40 if smoke else 600,
        val=8 if smoke else 100,
        image_hw=(32, 32) if smoke else (96, 96),
        crop_hw=(32, 32) if smoke else (96, 96),
    )
    config.sampler = dict(name="balance_batch", batch_max=9, batch_cl=8)
    # Half the image's resolution takes a third of the time; edges become coarser.
    config.model.input_stride = 2
    config.loss = loss or dict(name="softmax_cross_entropy")
    config.evaluate.update(batch_size=10, size_multiple=1)
    return config.lock()
