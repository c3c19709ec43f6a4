"""A wrong value in a config is one clear line, before anything is written."""

import pytest

from segloss.train import train

NAN, INF = float("nan"), float("inf")
SGD = dict(name="sgd")
COSINE = dict(name="cosine", learning_rate=0.1)

WRONG = [
    ("seed", 1e20, "config.seed must be an integer, got 1e+20."),
    ("seed", 10**20, "config.seed must be < 2**63, got 100000000000000000000."),
    ("seed", -1, "config.seed must be >= 0, got -1."),
    ("total_steps", "many", "config.total_steps must be an integer, got 'many'."),
    ("data.crop_hw", "32x32", "config.data.crop_hw must be height and width in pixels"),
    ("data.crop_hw", (32.5, 32), "config.data.crop_hw must be height and width in pix"),
    ("data.crop_hw", (10**10, 32), "config.data.crop_hw must be height and width in "),
    ("data.train", 40.5, "dataset: train of longtail_scenes must be an integer, got 4"),
    ("data.name", {}, "dataset: no dataset is named {}; known are camvid, "),
    ("data.num_threads", NAN, "config.data.num_threads must be an integer, got nan."),
    ("augment.scale_range", 0.5, "augment: scale_range must be 0 < low <= high, got 0"),
    ("augment.scale_range", (NAN, 1.0), "augment: scale_range must be 0 < low <= high"),
    ("augment.scales", 1.0, "augment: scales must be one or more numbers > 0, or None"),
    ("augment.brightness", NAN, "augment: brightness of augment must be a finite num"),
    ("augment.flip_probability", "often", "augment: flip_probability of augment must "),
    ("sampler.min_pixels", 1.5, "config.sampler.min_pixels must be an integer, got 1."),
    ("sampler.min_pixels", 0, "config.sampler.min_pixels must be >= 1, got 0."),
    ("sampler.batch_max", 9.5, "sampler: batch_max of balance_batch must be an intege"),
    (
        "sampler.batch_cl",
        "8",
        "sampler: batch_cl of balance_batch must be an integer, ",
    ),
    (
        "sampler.exact",
        1,
        "sampler: exact of balance_batch must be True or False, got 1",
    ),
    ("model.width", 4.5, "model: width of unet must be an integer, got 4.5."),
    ("model.width", True, "model: width of unet must be an integer, got True."),
    ("model.width", 10**12, "UNet: width must be <= 1048576, got 1000000000000."),
    (
        "model.depth",
        40,
        "UNet: width * 2**depth, the features at the bottom, must be <",
    ),
    ("model.norm", None, "model: norm of unet must be text, got None."),
    ("model.norm_momentum", NAN, "model: norm_momentum of unet must be a finite numbe"),
    ("model.pretrained", 3, "config.model.pretrained must be a path, got 3."),
    ("loss", dict(name=3), "loss: no loss is named 3; known are boundary_loss, "),
    (
        "loss",
        dict(name="focal_loss", gamma=NAN),
        "loss: gamma of focal_loss must be an array or a finite number, ",
    ),
    ("loss", dict(name="focal_loss", gamma="2"), "loss: gamma of focal_loss must be "),
    ("loss", dict(name="soft_dice", per_image=2), "loss: per_image of soft_dice must "),
    (
        "loss",
        dict(name="soft_dice", class_weights=[1.0] * 20 + [-1.0]),
        "soft_dice: class_weights must be finite and >= 0, got -1 for class 20.",
    ),
    (
        "loss",
        dict(name="focal_loss", class_weights=[0.0] * 21),
        "focal_loss: class_weights must not all be 0, got [0.0, 0.0, 0.0, ",
    ),
    ("optimizer.loss_scale", "auto", "config.optimizer.loss_scale must be 'dynamic', "),
    ("optimizer.loss_scale", NAN, "config.optimizer.loss_scale must be 'dynamic', a "),
    ("optimizer.loss_scale", 0, "config.optimizer.loss_scale must be 'dynamic', a num"),
    ("optimizer.loss_scale", True, "config.optimizer.loss_scale must be 'dynamic', a "),
    ("optimizer", SGD | dict(momentum=2), "sgd: momentum must be in [0, 1), got 2."),
    ("optimizer", SGD | dict(momentum=NAN), "optimizer: momentum of sgd must be a fi"),
    ("optimizer", SGD | dict(nesterov=3), "optimizer: nesterov of sgd must be True o"),
    ("optimizer", SGD | dict(groups=3), "optimizer: groups of sgd must be a tuple of"),
    ("optimizer.b1", 1.5, "adamw: b1 must be in [0, 1), got 1.5."),
    ("optimizer.b2", 1.0, "adamw: b2 must be in [0, 1), got 1.0."),
    ("optimizer.eps", -1, "adamw: eps must be > 0, got -1."),
    (
        "optimizer.weight_decay",
        INF,
        "optimizer: weight_decay of adamw must be a finite",
    ),
    ("optimizer.clip_norm", "5", "optimizer: clip_norm of adamw must be a finite numb"),
    ("optimizer.accumulate_steps", 1.5, "optimizer: accumulate_steps of adamw must be"),
    (
        "schedule",
        COSINE | dict(learning_rate="fast"),
        "schedule: learning_rate of cosi",
    ),
    (
        "schedule",
        COSINE | dict(end_learning_rate=-1),
        "cosine: end_learning_rate must ",
    ),
    (
        "schedule",
        dict(COSINE, name="polynomial", power=0),
        "polynomial: power must be ",
    ),
    ("schedule.learning_rate", NAN, "schedule: learning_rate of cosine must be a fini"),
    ("schedule.warmup_steps", 4, "cosine: warmup_steps must be in [0, total_steps=4)"),
    ("evaluate.scales", 1.0, "config.evaluate.scales must be numbers > 0 such as (0.7"),
    ("evaluate.split", 3, "config.evaluate: longtail_scenes has no split 3; it has tr"),
    ("evaluate", 3, "config.evaluate must be a section with fields, got 3."),
    ("sampler", 3, "config.sampler must have a field 'name'."),
]


@pytest.mark.parametrize(
    ("field", "value", "line"), WRONG, ids=[f"{f}={v}" for f, v, _ in WRONG]
)
def test_wrong_value_is_one_line(tiny_config, tmp_path, field, value, line):
    *path, name = field.split(".")
    section = tiny_config
    for part in path:
        section = section[part]
    if field.startswith("augment.scales"):
        del section.scale_range
    with tiny_config.ignore_type():
        if name in section:
            del section[name]
        section[name] = value
    if field != "evaluate.split":  # which needs the dataset
        tiny_config.data.data_dir = str(tmp_path / "datasets")
    with pytest.raises(ValueError) as refused:  # noqa: PT011, compared below
        train(tiny_config, tmp_path / "run")
    assert type(refused.value).__module__.startswith("segloss.")
    assert str(refused.value).startswith(line)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []
