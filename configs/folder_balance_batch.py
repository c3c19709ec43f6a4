r"""`configs/folder.py` with Balance-batch; add `:smoke` to try it in seconds.

python run.py --config=configs/folder_balance_batch.py --config.data.root=DIR \
    --config.sampler.batch_cl=4 --workdir=runs/folder

`batch_cl` distinct classes in every batch of at most `batch_max` images: choose it for
your data. One that no batch can reach is refused, with the largest that can be had.
"""

from ml_collections import ConfigDict

from configs import folder


def get_config(size: str = "full") -> ConfigDict:
    config = folder.get_config(size).unlock()
    config.sampler.name = "balance_batch"
    config.sampler.batch_cl = 3
    return config.lock()
