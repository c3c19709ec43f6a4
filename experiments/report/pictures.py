"""Predicts, with an arm and its baseline, the images whose scores differ most."""

import base64
import dataclasses
import io
import pathlib

import numpy as np
from PIL import Image

from experiments.analysis.run_folder import Run
from experiments.analysis.store import Study
from segloss import metrics
from segloss.errors import SeglossError
from segloss.report import voc_palette
from segloss.report.palette import VOID_COLOR, to_colors

# At most this many comparisons are shown: the first of each baseline.
_COMPARISONS = 3
_LONGEST_SIDE = 560


@dataclasses.dataclass(frozen=True)
class Picture:
    """One image, its labels and the predictions of two arms, as data: URIs.

    Attributes:
        title: why the image is shown.
        words: its name and scores.
        truth: its labels in colours.
        before: prediction of the baseline.
        after: prediction of the arm that is compared with it.
    """

    title: str
    words: str
    image: str
    truth: str
    before: str
    after: str


@dataclasses.dataclass(frozen=True)
class PictureSet:
    """Pictures of an arm and its baseline, for one seed.

    `legend` maps the name of each class in the pictures to its CSS colour.
    """

    arm: str
    baseline: str
    seed: int
    pictures: list[Picture]
    legend: dict[str, str]


def make_pictures(study: Study, workdir: str | pathlib.Path) -> list[PictureSet]:
    """Predicts example images with the checkpoints of the runs in `workdir`.

    There is a set for the first comparison of each baseline, at most three. It uses the
    checkpoints that the runs' scores are from.

    Raises:
        FileNotFoundError: if a run has no checkpoint.
        ValueError: if the images differ from those that the runs were scored on.
    """
    first_of = {}
    for arm, baseline in study.comparisons:
        first_of.setdefault(baseline, arm)
    return [
        _make_set(study, arm, baseline, pathlib.Path(workdir))
        for baseline, arm in list(first_of.items())[:_COMPARISONS]
    ]


def choose_images(treatment: Run, baseline: Run) -> dict[str, tuple[int, float, float]]:
    """Chooses the images with the largest gain, the median change and the largest loss.

    The change is the mean IoU by `treatment` minus that by `baseline`.

    Returns:
        Maps "largest gain", "median change" and "largest loss" to the image's position
        in the split, its mean IoU by `baseline` and that by `treatment`. An image that
        is chosen twice has one entry. Empty if no image has labelled pixels.
    """
    before, after = (
        np.array([metrics.mean_iou(c) for c in run.per_image.astype(np.int64)])
        for run in (baseline, treatment)
    )
    change = after - before
    order = np.argsort(-change, kind="stable")
    # An image without a labelled pixel has no score.
    order = order[~np.isnan(change[order])]
    if not len(order):
        return {}
    places = {"largest loss": -1, "median change": len(order) // 2, "largest gain": 0}
    by_image = {int(order[place]): why for why, place in places.items()}
    return {
        why: (i, float(before[i]), float(after[i]))
        for i, why in reversed(by_image.items())
    }


def _make_set(
    study: Study, arm: str, baseline: str, workdir: pathlib.Path
) -> PictureSet:
    from segloss.config import open_configured_dataset, parse_config, read_config
    from segloss.trained import load_trained

    treatment, before = (runs[0] for runs in study.pairs(arm, baseline))
    chosen = choose_images(treatment, before)
    source, ignore_label, trained = None, 255, []
    for run in (before, treatment):
        config = read_config(workdir / run.key)
        trained.append(load_trained(config, workdir / run.key))
        if source is None:
            dataset = open_configured_dataset(parse_config(config))
            source, ignore_label = dataset.source(run.split), dataset.ignore_label
    pictures, found = [], set()
    for why, (i, score_before, score_after) in chosen.items():
        sample = source[i]
        labels = sample["labels"]
        _check_is_that_image(labels, before.per_image[i], ignore_label, i)
        maps = [labels, *(model.predict(sample["image"]) for model in trained)]
        found.update(np.unique(np.stack(maps)).tolist())
        truth, *predicted = (_map_uri(x, ignore_label) for x in maps)
        pictures.append(
            Picture(
                title=why,
                words=f"{sample['stem']}: mean IoU {100 * score_before:.1f} before, "
                f"{100 * score_after:.1f} after, in percent",
                image=_photo_uri(sample["image"]),
                truth=truth,
                before=predicted[0],
                after=predicted[1],
            )
        )
    colors = {c: tuple(voc_palette()[c].tolist()) for c in found - {ignore_label}}
    names = {c: study.runs[0].class_names[c] for c in colors}
    legend = {names[c]: f"rgb{colors[c]}" for c in sorted(colors)}
    if ignore_label in found:
        legend["void"] = f"rgb{VOID_COLOR}"
    return PictureSet(arm, baseline, treatment.seed, pictures, legend)


def _check_is_that_image(
    labels: np.ndarray, confusion: np.ndarray, ignore_label: int, place: int
) -> None:
    counts = np.bincount(labels[labels != ignore_label], minlength=len(confusion))
    if not np.array_equal(counts, confusion.sum(axis=1)):
        raise SeglossError(
            f"image {place} of the split has other labels than it was scored on; the "
            "data set changed since. Report without --workdir, or run the study anew."
        )


def _photo_uri(pixels: np.ndarray) -> str:
    return _uri(_shrink(Image.fromarray(pixels), Image.Resampling.LANCZOS), "JPEG")


def _map_uri(labels: np.ndarray, ignore_label: int) -> str:
    image = Image.fromarray(to_colors(labels, ignore_label=ignore_label))
    # With its few colours, a palette image takes a fifth of the size.
    image = _shrink(image, Image.Resampling.NEAREST).quantize(256, dither=0)
    return _uri(image, "PNG")


def _shrink(image: Image.Image, how: Image.Resampling) -> Image.Image:
    scale = min(1, _LONGEST_SIDE / max(image.size))
    return image.resize([max(1, round(n * scale)) for n in image.size], how)


def _uri(image: Image.Image, kind: str) -> str:
    data = io.BytesIO()
    image.save(data, kind)
    text = base64.b64encode(data.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{text}"
