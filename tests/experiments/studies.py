"""Small studies made of drawn confusions, with nothing trained."""

import json

import numpy as np

from experiments.analysis.store import Run, Study

CLASSES = ("road", "car", "pole")
SHARE = (0.7, 0.25, 0.05)
VERSIONS = {"python": "3.11.7", "jax": "0.10.2"}


def make_confusions(*, seed, error, num_images=12, shares=SHARE, pixels=400):
    """The same labels for all runs; `error` is the share confused, by class.

    Some images have more errors than others, whoever predicts them.
    """
    labels = np.random.default_rng(0).multinomial(pixels, shares, num_images)
    hard = np.random.default_rng(1).uniform(0.5, 1.5, (num_images, 1))
    wrong = np.random.default_rng(seed).binomial(labels, np.clip(error * hard, 0, 1))
    per_image = np.zeros((num_images, len(shares), len(shares)), np.int32)
    for c in range(len(shares)):
        per_image[:, c, c] = labels[:, c] - wrong[:, c]
        per_image[:, c, (c + 1) % len(shares)] = wrong[:, c]
    return per_image


def make_run(arm="random4", seed=0, *, error=(0.1, 0.2, 0.6), **fields):
    classes = fields.pop("class_names", CLASSES)
    shares = fields.pop("pixel_share", list(SHARE))
    error = np.array(error[: len(classes)])
    number = sum(map(ord, arm)) * 100 + seed
    run = dict(
        arm=arm,
        seed=seed,
        loss={"name": "softmax_cross_entropy"},
        sampler={"name": "random", "batch_max": 4},
        total_steps=100,
        images_seen=400,
        summary={"mean_iou": 0.5},
        class_names=tuple(classes),
        per_image=make_confusions(seed=number, error=error, shares=shares),
        curve=[
            {"step": 50, "loss": 1.0, "val_mean_iou": 0.3 + 0.01 * seed},
            {"step": 100, "loss": 0.5, "val_mean_iou": 0.5 + 0.02 * seed},
        ],
        gradient_shares=dict(zip(classes, shares, strict=True)),
        seconds=60.0,
        commit="0123456789abcdef",
        devices="1 x cpu",
        versions=VERSIONS,
        code="c0de" * 16,
        split="test",
        data="da7a",
        pretrained=None,
        pixel_share=shares,
    )
    return Run(**run | fields)


def make_study(name="poles", **fields):
    """Balance-batch finds poles; with more steps it sees as many images as random."""
    runs = []
    for seed in range(3):
        runs.append(make_run("random4", seed))
    for arm, steps, images in (("cl3", 100, 300), ("cl3-images", 133, 399)):
        sampler = {"name": "balance_batch", "batch_max": 4, "batch_cl": 3}
        for seed in range(3):
            runs.append(
                make_run(
                    arm,
                    seed,
                    error=(0.1, 0.2, 0.2),
                    sampler=sampler,
                    total_steps=steps,
                    images_seen=images,
                )
            )
    study = dict(
        name=name,
        question="Does Balance-batch find poles?",
        comparisons=(("cl3", "random4"), ("cl3-images", "random4")),
        paper=None,
        runs=tuple(runs),
        setting={"model.name": "unet"},
    )
    return Study(**study | fields)


def write_run(workdir, run, *, config=None, **about):
    """A run's folder as training leaves it, as far as a study reads it."""
    folder = workdir / run.key
    folder.mkdir(parents=True)
    confusion = run.per_image.sum(axis=0, dtype=np.int64)
    files = {
        "results.json": {
            "summary": run.summary,
            "per_class": [
                {"name": name, "pixel_share": share}
                for name, share in zip(run.class_names, run.pixel_share, strict=True)
            ],
            "confusion": confusion.tolist(),
            "step": run.total_steps,
            "images_seen": run.images_seen,
            "seconds": run.seconds,
            "commit": run.commit,
            "devices": run.devices,
            "versions": run.versions,
            "split": run.split,
            "fingerprint": run.data,
        },
        "config.json": {
            "seed": run.seed,
            "total_steps": run.total_steps,
            "loss": run.loss,
            "sampler": run.sampler,
            "data": {"name": "folder", "root": "DATA"},
            "model": {"name": "unet", "pretrained": "DIR/weights.safetensors"},
            "evaluate": {"split": "val"},
            **(config or {}),
        },
        "run.json": {"arm": run.arm, "seed": run.seed, "code": run.code, **about},
    }
    for name, tree in files.items():
        (folder / name).write_text(json.dumps(tree))
    shares = {f"gradient_share/{n}": s for n, s in (run.gradient_shares or {}).items()}
    lines = []
    for point in run.curve:
        lines.append({"step": point["step"], "loss": point["loss"], **shares})
        lines.append({"step": point["step"], "val_mean_iou": point["val_mean_iou"]})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    np.savez_compressed(folder / "confusions.npz", per_image=run.per_image)
    return folder
