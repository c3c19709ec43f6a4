"""The protocol of `configs/voc2012_paper.py`, field by field, with where each is from.

"Paper" is Balance-batch's protocol as far as it is known here. The rest is as in
kazuto1011/deeplab-pytorch, in configs/voc12.yaml unless another file is named, or how
runs are read and reported here.
"""

import pytest

DATA = {
    "name": "voc2012",  # paper; 10,582 images for training, 1,449 for evaluation
    "crop_hw": (321, 321),  # paper
    "root": None,
    "partial": False,
    "on_bad_sample": "raise",
}
PROTOCOL = {
    "seed": 0,
    "total_steps": 20_000,  # paper
    "checkpoint_every_steps": 5_000,  # paper
    "evaluate_every_steps": 5_000,
    "log_every_steps": 10,
    "augment": {  # paper: random scales; libs/datasets/base.py
        "scales": (0.5, 0.75, 1.0, 1.25, 1.5),  # SCALES
        "keep_classes": False,  # paper: classes are promised in the images
        "antialias": False,  # cv2.resize(..., INTER_LINEAR)
        "flip_probability": 0.5,  # random.random() < 0.5
        "brightness": 0.0,  # colours as they are
        "contrast": 0.0,
        "saturation": 0.0,
    },
    "model": {
        "name": "multi_scale",  # paper: MSC, fused by the maximum
        "scales": (0.5, 0.75, 1.0),  # libs/models/msc.py
        "network": {
            "name": "deeplab_v2",  # paper
            "stage_sizes": (3, 4, 23, 3),  # paper: ResNet-101
            "norm": "frozen",  # main.py: freeze_bn()
            "remat": False,
        },
        "pretrained": None,  # paper: weights of COCO, a file that the user names
    },
    "optimizer": {
        "name": "sgd",  # paper
        "momentum": 0.9,  # paper
        "weight_decay": 5e-4,  # paper
        "decay": "l2",  # torch.optim.SGD
        "accumulate_steps": 1,  # not ITER_SIZE: the paper's batches are whole
        "groups": (  # main.py: get_params
            {"match": "aspp/.*/kernel", "learning_rate_factor": 10.0},
            {
                "match": "aspp/.*/bias",
                "learning_rate_factor": 20.0,
                "weight_decay": 0.0,
            },
            # As fast as there, on images of 1/57.63 of their levels: 57.63^2.
            {
                "match": "backbone/conv1/kernel",
                "learning_rate_factor": pytest.approx(3321.2, rel=1e-4),
                "weight_decay": pytest.approx(5e-4 / 3321.2, rel=1e-4),
            },
            {"match": "norm", "frozen": True},  # in none of the groups
        ),
    },
    "schedule": {
        "name": "polynomial",  # paper
        "learning_rate": 2.5e-4,  # paper
        "power": 0.9,  # paper
        "warmup_steps": 0,
    },
    "evaluate": {  # paper: the 1,449 images whole, one confusion matrix
        "split": "val",
        "final_split": "val",
        "batch_size": 4,
        "size_multiple": 32,
        "scales": (1.0,),
        "flip": False,
        "window_hw": None,
        "window_stride": 2 / 3,
        "max_pixels": 2**21,  # more than any image of VOC: all are whole
        "checkpoint": "newest",  # main.py: checkpoint_final.pth
    },
}
LOSS_SECTIONS = {
    # CrossEntropyLoss(ignore_index=255) of main.py is the mean over pixels.
    "ce": {"name": "softmax_cross_entropy", "normalize_by": "pixels"},
    # Paper, eq. 5: over all classes of the whole batch, and over its samples.
    "soft_iou": {"name": "soft_iou", "classes": "all", "normalize_by": "samples"},
    "soft_dice": {
        "name": "soft_dice",
        "denominator": "squared",
        "classes": "all",
        "normalize_by": "samples",
    },
}
