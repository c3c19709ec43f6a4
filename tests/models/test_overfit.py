"""Every network learns four images by heart."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segloss.config import Inference
from segloss.data import open_dataset
from segloss.data.augment import augment
from segloss.devices import AXIS, map_over_devices, replicate, shard
from segloss.losses import soft_dice, softmax_cross_entropy
from segloss.metrics import confusion_matrix, dice_per_class, mean_iou
from segloss.models import MODELS, make_model
from segloss.train.optimizers import adamw, cosine
from segloss.train.step import make_state, train_step
from segloss.trained import evaluation

pytestmark = pytest.mark.shared_out(by="module")

VGG = dict(stage_sizes=(1,) * 5, width=8)
FC = dict(norm="batch", fc_width=64, dropout=0.0, **VGG)
FCN = dict(name="fcn", fc_window=3, **FC)
RESNET = dict(stage_sizes=(1,) * 4, width=8)
# Hyperparameters; the factor by which images of 32 x 32 pixels are enlarged, so that
# the coarsest features can distinguish the objects; and the number of training steps.
RUNS = {
    "backbone_unet": (
        dict(name="backbone_unet", stage_sizes=(1,) * 7, width=8),
        2,
        150,
    ),
    "unet": (dict(name="unet", depth=2, width=8), 1, 100),
    "segnet": (dict(name="segnet", stage_sizes=(1,) * 5, width=16), 2, 200),
    "fcn-8s": (dict(stride=8, **FCN), 4, 150),
    "fcn-16s": (dict(stride=16, **FCN), 4, 150),
    "fcn-32s": (dict(stride=32, **FCN), 8, 150),
    "deeplab_v1": (dict(name="deeplab_v1", fc_rate=2, **FC), 2, 150),
    "deeplab_v2": (
        dict(name="deeplab_v2", rates=(1, 2, 3, 4), norm_momentum=0.9, **RESNET),
        2,
        150,
    ),
    "deeplab_v3": (dict(name="deeplab_v3", dropout=0.0, **RESNET), 2, 150),
    "deeplab_v3_plus": (dict(name="deeplab_v3_plus", dropout=0.0, **RESNET), 2, 150),
}


@pytest.fixture(scope="module")
def four_images(datasets_dir):
    """The first ones of the embedded set that the smoke run of the demo uses."""
    sizes = dict(train=40, val=8, image_hw=(32, 32))
    dataset = open_dataset("longtail_scenes", **sizes, data_dir=str(datasets_dir))
    source = dataset.source("train")
    samples = [source[i] for i in range(4)]
    images, labels = (np.stack([s[k] for s in samples]) for k in ("image", "labels"))
    return images, labels, labels != dataset.ignore_label


def make_batch(four_images, times):
    def enlarge(x):
        return np.repeat(np.repeat(x, times, axis=1), times, axis=2)

    images, labels, valid = map(enlarge, four_images)
    everyone = np.ones(len(images), bool)
    hw = np.full((len(images), 2), labels.shape[1:])
    return dict(images=images, labels=labels, valid=valid, sample_valid=everyone, hw=hw)


def make_optimizer(steps, learning_rate):
    schedule = cosine(steps + 1, learning_rate=learning_rate, warmup_steps=10)
    return adamw(schedule, weight_decay=0.0, clip_norm=5.0)


def test_every_network_learns():
    learners = {hyperparameters["name"] for hyperparameters, _, _ in RUNS.values()}
    # The wrapper learns what its network does, V-Net volumes.
    assert learners == MODELS.keys() - {"multi_scale", "vnet"}


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_network_learns_four_images_by_heart(run, four_images):
    hyperparameters, times, steps = RUNS[run]
    batch = make_batch(four_images, times)
    hw = batch["labels"].shape[1:]
    model = make_model(**hyperparameters, num_classes=21, axis_name=AXIS)
    optimizer = make_optimizer(steps, 1e-2)
    as_they_are = functools.partial(
        augment,
        flip_probability=0.0,
        brightness=0.0,
        contrast=0.0,
        saturation=0.0,
    )
    device = jax.devices()[:1]
    step = map_over_devices(
        train_step,
        donate_first=True,
        devices=device,
        model=model,
        loss=softmax_cross_entropy,
        optimizer=optimizer,
        augment=as_they_are,
        num_classes=21,
    )
    state = replicate(make_state(model, optimizer, seed=0, image_hw=hw), device)
    batch = shard(batch, 1)
    for _ in range(steps):
        state, scalars = step(state, batch)
        jax.block_until_ready(scalars)
    evaluate = map_over_devices(
        evaluation.evaluation_step, model=model, num_classes=21, inference=Inference()
    )
    counts = evaluate(state.variables, batch)
    confusion = np.asarray(counts, np.int64).sum(axis=(0, 1))
    assert np.count_nonzero(confusion.sum(axis=1)) >= 5  # classes in the images
    assert mean_iou(confusion) > 0.9


def draw_volumes(rng, count, side=10):
    """Bright balls (1) and dark ones (2), side by side in noise (0), with labels."""
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), axis=-1)
    volumes = rng.normal(0, 0.3, (count, side, side, side, 1))
    labels = np.zeros((count, side, side, side), np.int32)
    for volume, classes in zip(volumes, labels, strict=True):
        for class_id, brightness, column in ((1, 1, side / 4), (2, -1, 3 * side / 4)):
            center = [*rng.uniform(3, side - 3, 2), column]
            inside = np.linalg.norm(grid - center, axis=-1) < rng.uniform(2, 2.5)
            classes[inside] = class_id
            volume[inside] += brightness
    return jnp.array(volumes, jnp.float32), jnp.array(labels)


def test_vnet_learns_volumes_with_dice():
    steps = 40
    model = make_model("vnet", num_classes=3, width=2, convs=(1, 2))
    optimizer = make_optimizer(steps, 3e-2)
    volumes, labels = draw_volumes(np.random.default_rng(0), 4)

    def global_loss(params, batch_stats):
        logits, updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            volumes,
            train=True,
            mutable=["batch_stats"],
        )
        return soft_dice(logits, labels), updated["batch_stats"]

    @jax.jit
    def step(variables, opt_state):
        grads, batch_stats = jax.grad(global_loss, has_aux=True)(
            variables["params"], variables["batch_stats"]
        )
        updates, opt_state = optimizer.update(grads, opt_state, variables["params"])
        params = optax.apply_updates(variables["params"], updates)
        return {"params": params, "batch_stats": batch_stats}, opt_state

    variables = jax.jit(functools.partial(model.init, train=False))(
        jax.random.key(0), volumes
    )
    opt_state = optimizer.init(variables["params"])
    for _ in range(steps):
        variables, opt_state = step(variables, opt_state)
    logits = jax.jit(functools.partial(model.apply, train=False))(variables, volumes)
    confusion = confusion_matrix(logits.argmax(axis=-1), labels, num_classes=3)
    confusion = np.asarray(confusion, np.int64)
    assert dice_per_class(confusion).min() > 0.9
    assert mean_iou(confusion) > 0.9
