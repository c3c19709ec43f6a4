r"""`configs/folder.py` with Balance-batch; add `:smoke` for a short test run.

python run.py --config=configs/folder_balance_batch.py --config.data.root=DIR \
    --config.sampler.batch_cl=4 --workdir=runs/folder

Every batch of at most `batch_max` images has at least `batch_cl` distinct classes.
Choose `batch_cl` for your data. If no batch can have so many classes, an error gives
the largest number that is possible.
"""

from ml_collections import ConfigDict

from configs import folder


def get_config(size: str = "full") -> ConfigDict:
    config = folder.get_config(size).unlock()
    config.sampler.name = "balance_batch"
    config.sampler.batch_cl = 3
    return config.lock()
