"""Decodes the files of users: images, and label images of many kinds."""
