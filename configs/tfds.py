"""U-Net on a dataset of TensorFlow Datasets (TFDS); add `:smoke` for a short test run.

python run.py --config=configs/tfds.py --workdir=runs/pets

TFDS downloads Oxford-IIIT Pet, 0.8 GB, and prepares it; TensorFlow is not needed. Its
labels are 1 pet, 2 background and 3 not classified. `--config.data.builder=NAME` and
the fields below it choose another dataset with an image and a label image, or a
directory that TFDS has prepared. `label_offset` is added to a stored value.
"""

from ml_collections import ConfigDict, config_dict

from configs.common import base


def get_config(size: str = "full") -> ConfigDict:
    smoke = size == "smoke"
    config = base.get_config(size)
    config.total_steps = 2 if smoke else 20_000
    config.checkpoint_every_steps = 2 if smoke else 0.025
    config.evaluate_every_steps = 2 if smoke else 0.05
    config.data.update(
        name="tfds",
        builder="oxford_iiit_pet",
        image="image",
        labels="segmentation_mask",
        # Without names, those that the feature has, or num_classes.
        class_names=("pet", "background"),
        num_classes=config_dict.placeholder(int),
        label_offset=-1,
        # Stored values that do not count.
        void=(3,),
        # For stored values with gaps: that of each class, with label_offset=0.
        values=config_dict.placeholder(tuple),
        train="train[:90%]",
        val="train[90%:]",
        test="test",
        manual_dir=config_dict.placeholder(str),
        # In pixels after scaling; images may be of any and of different sizes.
        crop_hw=(32, 32) if smoke else (256, 256),
        num_threads=1 if smoke else 4,
        prefetch_batches=2 if smoke else 4,
    )
    config.sampler = dict(name="random", batch_max=4 if smoke else 16)
    config.model.width = 4 if smoke else 32
    config.loss = dict(name="softmax_cross_entropy")
    config.schedule.update(learning_rate=1e-3, warmup_steps=1 if smoke else 0.025)
    config.evaluate.final_split = "test"
    return config.lock()
