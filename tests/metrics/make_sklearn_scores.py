"""Scores by scikit-learn (1.9.1), which `test_scores.py` reads from beside this file.

python tests/metrics/make_sklearn_scores.py
"""

import json
import warnings
from pathlib import Path

import numpy as np
from sklearn import metrics

SCORES_JSON = Path(__file__).with_name("sklearn_scores.json")


def make_case(pixels, hit_share, guessed):
    """So many pixels of each class, of which `hit_share` are not left to a guess."""
    rng = np.random.default_rng(0)
    labels = np.repeat(range(len(pixels)), pixels)
    guesses = rng.choice(guessed, labels.size)
    predicted = np.where(rng.random(labels.size) < hit_share, labels, guesses)
    pair, present = (labels, predicted), sorted({*labels, *predicted})
    per_class = dict(labels=range(len(pixels)), average=None)
    kept = dict(labels=present, zero_division=0)
    return {
        "num_classes": len(pixels),
        "labels": labels.tolist(),
        "predicted": predicted.tolist(),
        "scores": {
            "dice_per_class": metrics.f1_score(
                *pair, **per_class, zero_division=np.nan
            ).tolist(),
            "precision_per_class": metrics.precision_score(
                *pair, **per_class, zero_division=np.nan
            ).tolist(),
            "recall_per_class": metrics.recall_score(
                *pair, **per_class, zero_division=np.nan
            ).tolist(),
            "mean_iou": metrics.jaccard_score(*pair, **kept, average="macro"),
            "frequency_weighted_iou": metrics.jaccard_score(
                *pair, **kept, average="weighted"
            ),
            "mean_accuracy": metrics.balanced_accuracy_score(*pair),
            "pixel_accuracy": metrics.accuracy_score(*pair),
            "mean_f1": metrics.f1_score(*pair, **kept, average="macro"),
            "cohen_kappa": metrics.cohen_kappa_score(*pair),
            "matthews_corrcoef": metrics.matthews_corrcoef(*pair),
        },
    }


if __name__ == "__main__":
    # "y_pred contains classes not in y_true": so it should, in two of the cases.
    warnings.simplefilter("ignore")
    cases = {
        "all_classes": make_case([48, 36, 24, 12], 0.7, range(4)),
        "one_in_sixty": make_case([118, 2], 0.9, range(2)),
        "one_absent_one_only_guessed": make_case([72, 36, 0, 12, 0], 0.8, [0, 1, 3, 4]),
        "one_never_predicted": make_case([72, 24, 24], 0, [1, 2]),
    }
    SCORES_JSON.write_text(json.dumps(cases) + "\n")
