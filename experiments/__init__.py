"""Commands that run and report studies, and a folder per study with its results."""

# The scores that a study compares, by their name in `results.json`.
SCORES = {
    "mean_iou": "mean IoU",
    "frequency_weighted_iou": "FWIoU",
    "mean_accuracy": "MA",
    "pixel_accuracy": "PA",
}
