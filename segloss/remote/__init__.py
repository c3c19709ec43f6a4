"""Run folders on other file systems, such as a bucket, through fsspec.

A command works in a temporary local copy of such a folder and uploads what it writes.
"""

from segloss.remote.mirror import check_absent, opened, shown, upload
from segloss.remote.urls import check_local, check_url, is_remote

__all__ = [
    "check_absent",
    "check_local",
    "check_url",
    "is_remote",
    "opened",
    "shown",
    "upload",
]
