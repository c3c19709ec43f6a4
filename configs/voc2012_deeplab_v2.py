r"""`configs/voc2012.py` with DeepLab v2; add `:smoke` to try it in seconds.

python run.py --config=configs/voc2012_deeplab_v2.py --config.data.root=DIR \
    --config.model.pretrained=FILE --workdir=runs/voc2012_deeplab_v2

Chen et al. 2017 (arXiv:1606.00915), sec. 4.1, in what it leaves open as in
kazuto1011/deeplab-pytorch; the batches are Balance-batch. FILE is that repository's
`deeplabv1_resnet101-coco.pth`: without it, frozen norms have nothing to normalise by.
"""

from ml_collections import ConfigDict, config_dict

from configs import voc2012


def get_config(size: str = "full") -> ConfigDict:
    config = voc2012.get_config(size).unlock()
    smoke = size == "smoke"
    config.total_steps = 2 if smoke else 20_000
    config.model = dict(
        name="multi_scale",
        scales=(0.5, 0.75, 1.0),
        network=dict(
            name="deeplab_v2",
            stage_sizes=(1, 1, 1, 1) if smoke else (3, 4, 23, 3),  # ResNet-101
            width=4 if smoke else 64,
            # Statistics of few images are poor, those of the file good. Smoke has none.
            norm="batch" if smoke else "frozen",
            remat=False,  # True takes longer, and less memory
        ),
        # deeplabv1_resnet101-coco.pth, as above, or made from it by
        # `python -m segloss.models.pretrained`; the pyramid begins afresh.
        pretrained=config_dict.placeholder(str),
    )
    # Summed over the logits of each scale and the fused ones.
    config.loss = [dict(name="softmax_cross_entropy", weight=1.0)]
    config.optimizer = dict(
        name="sgd",
        momentum=0.9,
        weight_decay=5e-4,
        decay="l2",
        groups=(
            # The pyramid is new; what is below it was trained before.
            dict(match="aspp/.*/kernel", learning_rate_factor=10.0),
            dict(match="aspp/.*/bias", learning_rate_factor=20.0, weight_decay=0.0),
            # Scales and offsets stay with the statistics that they were trained on.
            dict(match="norm", frozen=True),
        ),
    )
    config.schedule = dict(
        name="polynomial", learning_rate=2.5e-4, power=0.9, warmup_steps=0
    )
    return config.lock()
