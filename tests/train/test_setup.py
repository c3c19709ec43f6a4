import re

import numpy as np
import pytest

from segloss.config import make_configured_model, parse_config
from segloss.train import introduction, make_setup
from segloss.train.setup import choose_terms, make_configured_loss


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("sead", 1, "config has no field 'sead'; known are seed, total_steps"),
        ("total_steps", 0, "config.total_steps must be >= 1, got 0"),
        ("total_steps", 2.5, "config.total_steps must be an integer, got 2.5"),
        ("seed", "x", "config.seed must be an integer, got 'x'"),
        ("model", "unet", "config.model must be a section with fields, got 'unet'"),
        ("augment", None, "config.augment must be a section with fields, got None"),
        ("sampler", "random", "config.sampler must have a field 'name'"),
        ("data.crop_hw", ("a", "b"), "data.crop_hw must be height and width .* got"),
        ("data.num_threads", "2", "config.data.num_threads must be an integer, got"),
        ("evaluate.batch_size", None, "evaluate.batch_size must be an integer, got"),
        ("loss", None, "config.loss must have a field 'name'"),
        ("loss.weight", "1", "weight of softmax_cross_entropy must be .*, got '1'"),
        ("loss.weight", (1, 2), r"weight of softmax_cross_entropy .*, got \(1, 2\)"),
        ("loss.gama", 2.0, "known are class_weights, label_smoothing, normalize_by\\."),
        ("data.name", "voc", "no dataset is named 'voc'; known are camvid, folder"),
        ("data.sise", 3, "longtail_scenes has no hyperparameter 'sise'; known are"),
        ("data.crop_hw", (32,), "data.crop_hw must be height and width .* got"),
        ("data.num_workers", -1, "config.data.num_workers must be >= 0, got -1"),
        ("data.on_bad_sample", "drop", "must be 'raise' or 'skip', got 'drop'"),
        ("data.shared_files", 1, "data.shared_files must be True or False, got 1"),
        ("augment.zoom", 2, "augment has no hyperparameter 'zoom'; known are scale"),
        ("sampler.batch_size", 2, "balance_batch has no .* 'batch_size'; known are"),
        ("sampler.batch_cl", 200, "the largest batch_cl reachable"),
        ("sampler.min_pixels", 0, "config.sampler.min_pixels must be >= 1, got 0"),
        ("model.name", "u-net", "no model is named 'u-net'; known are .*unet"),
        ("model.deep", 2, "unet has no hyperparameter 'deep'; known are"),
        ("loss.name", "dice", "no loss is named 'dice'; known are"),
        ("loss.gamma", 2.0, "softmax_cross_entropy has no hyperparameter 'gamma'"),
        ("loss.class_weights", {"name": "uniform"}, "no class_weights is named 'unifo"),
        (
            "loss.class_weights",
            {"name": "effective_number", "beta": 2},
            r"effective_number: beta must be in \[0, 1\), got 2",
        ),
        ("optimizer.name", "lion", "no optimizer is named 'lion'; known are adamw"),
        ("optimizer.groups", [{"mach": "a"}], "groups has no hyperparameter 'mach'"),
        ("model.network", {"name": "u-net"}, "no model is named 'u-net'"),
        ("schedule.power", 2.0, "cosine has no hyperparameter 'power'; known are"),
        ("evaluate.split", "dev", "has no split 'dev'; it has train, val"),
        ("evaluate.checkpoint", "besst", "must be 'newest' or 'best', got 'besst'"),
        ("evaluate.batch_size", 0, "config.evaluate.batch_size must be >= 1, got 0"),
        ("augment.flip_probability", 2.0, r"flip_probability must be in \[0, 1\]"),
        ("loss.label_smoothing", 2.0, r"label_smoothing must be in \[0, 1\]"),
        ("evaluate.scales", (), "config.evaluate.scales must be numbers > 0"),
        ("evaluate.every", 5, "config.evaluate has no field 'every'; known are split"),
    ],
)
def test_wrong_field_is_named_with_what_is_known(tiny_config, path, value, message):
    *parents, field = path.split(".")
    section = tiny_config
    for parent in parents:
        section = section[parent]
    with tiny_config.ignore_type():
        section[field] = value
    with pytest.raises(ValueError, match=message):
        make_setup(tiny_config)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("seed", "config.seed is missing"),
        ("data.crop_hw", "config.data.crop_hw is missing"),
        ("loss.name", "config.loss must have a field 'name'"),
        ("sampler.batch_cl", "balance_batch needs the hyperparameter 'batch_cl'"),
        ("evaluate.checkpoint", "config.evaluate.checkpoint is missing"),
    ],
)
def test_missing_field_is_named(tiny_config, path, message):
    *parents, field = path.split(".")
    section = tiny_config
    for parent in parents:
        section = section[parent]
    del section[field]
    with pytest.raises(ValueError, match=message):
        make_setup(tiny_config)


def test_field_with_a_default_may_be_left_out(tiny_config):
    config = parse_config(tiny_config)
    for section, fields in {
        "data": ["num_workers", "on_bad_sample"],
        "evaluate": ["scales", "max_pixels", "window_hw"],
    }.items():
        for field in fields:
            del tiny_config[section][field]
    shorter = parse_config(tiny_config)
    assert shorter.evaluate == config.evaluate
    assert shorter.data == config.data


def test_classes_that_no_crop_keeps_are_told_and_may_be_why_a_sampler_is_refused(
    tiny_config,
):
    tiny_config.data.crop_hw = (4, 4)
    tiny_config.model.norm = "group"
    tiny_config.augment.scale_range = (1.0, 1.5)
    tiny_config.sampler.batch_cl = 3
    line = introduction.describe_uncounted(make_setup(tiny_config))
    assert "of 99 do not count, since none of the crops of 4x4" in line
    assert re.search(r"; .* counts in \d+ of the \d+ images that have it$", line)
    tiny_config.sampler.batch_cl = 20
    with pytest.raises(ValueError, match=r"augment\.keep_classes=False counts all"):
        make_setup(tiny_config)
    tiny_config.sampler.batch_cl = 3
    tiny_config.augment.keep_classes = False
    assert introduction.describe_uncounted(make_setup(tiny_config)) == ""


def test_sampler_counts_a_class_from_min_pixels_on(tiny_config):
    tiny_config.sampler.min_pixels = 100
    tiny_config.augment.keep_classes = False
    setup = make_setup(tiny_config)
    counts = setup.dataset.class_index("train").pixel_counts
    assert ((counts > 0) != (counts >= 100)).any()
    np.testing.assert_array_equal(setup.sampler.class_sets.presence(), counts >= 100)


def test_rare_class_gets_the_pixels_of_the_index(tiny_config):
    tiny_config.sampler = dict(name="rare_class", batch_max=4, temperature=0.1)
    setup = make_setup(tiny_config)
    pixels = setup.dataset.class_index("train").pixel_counts.sum(axis=0)
    first, second, *_ = (int(c) for c in np.argsort(-pixels) if pixels[c])
    # The ratio of two probabilities of a softmax: exp of the difference of the scores.
    more = (pixels[first] - pixels[second]) / pixels.sum()
    probs = setup.sampler.class_probs
    np.testing.assert_allclose(probs[second] / probs[first], np.exp(more / 0.1))
    tiny_config.sampler = dict(name="rare_class", batch_max=4, class_pixels=[1])
    with pytest.raises(ValueError, match="no hyperparameter 'class_pixels'"):
        make_setup(tiny_config)


def test_root_that_is_not_set_says_how():
    from configs import folder

    with pytest.raises(ValueError, match=r"data.root is not set; add --config.data"):
        make_setup(folder.get_config("smoke"))


def test_losses_add_up_by_weight(tiny_config):
    import jax.numpy as jnp

    from segloss.losses import soft_dice, softmax_cross_entropy

    with tiny_config.ignore_type():
        tiny_config.loss = [
            dict(name="softmax_cross_entropy", weight=0.5),
            dict(name="soft_dice", smooth=1.0),
        ]
    loss = make_setup(tiny_config).loss
    logits = jnp.linspace(-1, 1, 2 * 4 * 4 * 3).reshape(2, 4, 4, 3)
    labels = jnp.arange(32).reshape(2, 4, 4) % 3
    expected = 0.5 * softmax_cross_entropy(logits, labels) + soft_dice(
        logits, labels, smooth=1.0
    )
    np.testing.assert_allclose(loss(logits, labels), expected, rtol=1e-6)


@pytest.mark.parametrize("listed", [False, True])
def test_class_weights_by_name_come_from_the_training_split(tiny_config, listed):
    import jax.numpy as jnp

    weights = dict(name="effective_number", beta=0.9)
    loss = dict(name="softmax_cross_entropy", class_weights=weights)
    with tiny_config.ignore_type():
        tiny_config.loss = [loss] if listed else loss
    setup = make_setup(tiny_config)
    images = setup.dataset.class_index("train").presence().sum(axis=0)
    assert min(images) < max(images) == 40, "background is in each of the 40 images"
    # One pixel of each class in turn, and a prediction that costs log 21 for each.
    costs = np.array(
        [
            setup.loss(jnp.zeros((1, 1, 1, 21)), jnp.full((1, 1, 1), c))
            for c in range(21)
        ]
    )
    np.testing.assert_allclose(costs.mean(), np.log(21), rtol=1e-5)
    ratios = (1 - 0.9**40) / (1 - 0.9**images)
    np.testing.assert_allclose(costs / costs[0], ratios, rtol=1e-5)


@pytest.mark.parametrize(
    ("num_classes", "num_outputs", "loss"),
    [
        (2, 1, dict(name="sigmoid_cross_entropy")),
        (2, 1, dict(name="soft_dice", multi_label=True)),
        (3, 3, dict(name="lovasz_hinge")),
        (2, 2, dict(name="soft_dice")),
    ],
)
def test_two_classes_under_a_sigmoid_share_one_logit(
    tiny_config, num_classes, num_outputs, loss
):
    with tiny_config.ignore_type():
        del tiny_config.loss
        tiny_config.loss = loss
    assert parse_config(tiny_config).count_outputs(num_classes) == num_outputs
    model = make_configured_model(parse_config(tiny_config), num_classes)
    assert model.num_classes == num_outputs


def test_a_dataset_of_one_class_is_refused(tiny_config):
    with pytest.raises(ValueError, match="must have at least 2 classes, got 1; name"):
        parse_config(tiny_config).count_outputs(1)


def test_losses_of_sigmoids_and_of_a_softmax_do_not_mix(tiny_config):
    with tiny_config.ignore_type():
        tiny_config.loss = [dict(name="sigmoid_cross_entropy"), dict(name="soft_dice")]
    message = "got sigmoid_cross_entropy and soft_dice; an overlap loss uses sigmoids"
    with pytest.raises(ValueError, match=message):
        make_setup(tiny_config)


# Of four pixels the second is class 1 and the last is void. With the logits log 3, 0
# and -log 3, class 1 has p = 3/4, 1/2 and 1/4.
BINARY_LOGITS = np.log([3.0, 1.0, 1 / 3, 5.0]).reshape(1, 2, 2, 1)
BINARY_LABELS = np.array([0, 1, 0, 255], np.uint8).reshape(1, 2, 2)
LOG = np.log


def value_of(config, loss, logits, labels, *, pixel_counts):
    """The loss as a config chooses it."""
    import jax.numpy as jnp

    with config.ignore_type():
        del config.loss
        config.loss = loss
    run = parse_config(config)
    made = make_configured_loss(run, choose_terms(run), np.array(pixel_counts))
    valid = jnp.array(labels != 255)
    return made(jnp.array(logits, jnp.float32), jnp.array(labels), valid)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (dict(name="sigmoid_cross_entropy"), LOG(4 * 2 * 4 / 3) / 3),
        (dict(name="sigmoid_cross_entropy", pos_weight=60), LOG(16 / 3 * 2**60) / 3),
        # Two thirds are negatives, so positives count 2/3 and negatives 1/3.
        (
            dict(name="normalized_sigmoid_cross_entropy"),
            (2 / 3 * LOG(2) + 1 / 3 * LOG(16 / 3)) / 3,
        ),
        # p < 1/2 in the third pixel alone.
        (dict(name="gated_sigmoid_cross_entropy"), LOG(4 * 2 * (4 / 3) ** 5) / 3),
        # 2 * 1/2 over 1 + 3/4 + 1/2 + 1/4, each class 1's own.
        (
            dict(name="soft_dice", multi_label=True, denominator="linear"),
            1 - 2 * 0.5 / (0.75 + 0.5 + 0.25 + 1),
        ),
        (
            dict(name="soft_iou", multi_label=True, class_weights=(3.0,)),
            1 - 0.5 / (0.75 + 0.5 + 0.25 + 1 - 0.5),
        ),
        # Hinge errors 1 + log 3, 1 and nothing of 1 - log 3 < 0; the order gives the
        # first 1/2 (1 of 2 pixels wrong) and the second the rest of the way to 1.
        (dict(name="lovasz_hinge"), (1 + LOG(3)) / 2 + 1 / 2),
        (
            [
                dict(name="sigmoid_cross_entropy", weight=0.5),
                dict(name="soft_dice", multi_label=True, denominator="linear"),
            ],
            LOG(32 / 3) / 6 + 0.6,
        ),
    ],
)
def test_losses_of_sigmoids_take_class_ids(tiny_config, loss, expected):
    arrays = BINARY_LOGITS, BINARY_LABELS
    value = value_of(tiny_config, loss, *arrays, pixel_counts=[[2, 1]])
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_more_classes_are_each_against_the_rest(tiny_config):
    # One pixel of class 2 with p = 1/4, 1/2 and 3/4: -log of 3/4, 1/2 and 3/4.
    logits = np.log([1 / 3, 1.0, 3.0]).reshape(1, 1, 1, 3)
    arrays = logits, np.full((1, 1, 1), 2)
    loss = dict(name="sigmoid_cross_entropy")
    value = value_of(tiny_config, loss, *arrays, pixel_counts=[[1, 1, 1]])
    np.testing.assert_allclose(value, LOG(4 / 3 * 2 * 4 / 3) / 3, rtol=1e-6)


def test_class_weights_by_name_of_one_logit_are_refused(tiny_config):
    """A mean over one class is the same whatever its weight."""
    weights = dict(name="inverse_frequency")
    loss = dict(name="soft_dice", multi_label=True, class_weights=weights)
    with pytest.raises(
        ValueError, match="class_weights by name need one logit per class"
    ):
        value_of(tiny_config, loss, BINARY_LOGITS, BINARY_LABELS, pixel_counts=[[2, 1]])


DEEPLAB = dict(stage_sizes=(1, 1, 1, 1), width=4)
ALONE = dict(name="balance_batch", batch_max=9, batch_cl=1)


def set_up(config, model, sampler, crop_hw=(32, 32)):
    with config.ignore_type():
        config.model, config.sampler = model, sampler
    config.data.crop_hw = crop_hw
    return make_setup(config)


@pytest.mark.parametrize("name", ["deeplab_v3", "deeplab_v3_plus"])
@pytest.mark.parametrize(
    "sampler", [ALONE, dict(name="random", batch_max=1)], ids=lambda x: x["name"]
)
def test_image_pooling_of_a_single_image_with_batch_norm_is_refused(
    tiny_config, name, sampler
):
    message = (
        "config.model: config.sampler can make a batch of one image.*. BatchNorm "
        ".*pool_norm: a batch of one value per channel, 1x1x1x16, has no variance; "
        "use norm='group', norm='frozen' or larger batches"
    )
    with pytest.raises(ValueError, match=message):
        set_up(tiny_config, dict(name=name, **DEEPLAB), sampler)


@pytest.mark.parametrize(
    ("model", "sampler"),
    [
        (dict(norm="group"), ALONE),
        (dict(norm="frozen"), ALONE),
        (dict(norm="batch"), dict(name="random", batch_max=2)),
        # No image of the demo holds 12 classes alone.
        (dict(norm="batch"), dict(name="balance_batch", batch_max=9, batch_cl=12)),
    ],
    ids=str,
)
def test_each_cure_of_a_single_image_is_accepted(tiny_config, model, sampler):
    set_up(tiny_config, dict(name="deeplab_v3", **DEEPLAB, **model), sampler)


def test_wrapped_network_is_traced_at_each_scale(tiny_config):
    network = dict(name="deeplab_v3", **DEEPLAB)
    model = dict(name="multi_scale", scales=(0.5, 1.0), network=network)
    with pytest.raises(
        ValueError, match=r"alone has batch_cl=1 classes\. BatchNorm .*pool_norm"
    ):
        set_up(tiny_config, model, ALONE)
    network = dict(name="unet", depth=4, width=4)
    model = dict(name="multi_scale", scales=(0.5, 1.0), network=network)
    with pytest.raises(
        ValueError, match=r"alone has batch_cl=1 classes\. BatchNorm .*bottom"
    ):
        set_up(tiny_config, model, ALONE)  # 16x16 at scale 0.5, halved 4 times


@pytest.mark.parametrize(("side", "refused"), [(16, True), (17, False), (32, False)])
def test_unet_is_refused_only_if_its_bottom_is_one_pixel(tiny_config, side, refused):
    model = dict(name="unet", depth=4, width=4, norm="batch")
    if refused:
        with pytest.raises(ValueError, match=r"BatchNorm bottom/.*1x1x1x64"):
            set_up(tiny_config, model, ALONE, (side, side))
    else:
        set_up(tiny_config, model, ALONE, (side, side))
