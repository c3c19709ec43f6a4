"""Colour constants for data loading, augmentation and exported models."""

# ImageNet's mean and standard deviation per channel, for images in [0, 1].
MEAN_RGB = (0.485, 0.456, 0.406)
STDDEV_RGB = (0.229, 0.224, 0.225)
