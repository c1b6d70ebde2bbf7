"""What is said of a finished epoch; the bar itself is `_progress.progress_bar`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tqdm import tqdm


def epoch_line(record: Mapping[str, Any], *, epochs: int, unit: str = "images") -> str:
    """What is said of a finished epoch.

    Example:
        >>> record = {"epoch": 2, "loss": 0.5, "accuracy": 0.75, "images_per_second": 1234.5, "seconds": 60.0}
        >>> epoch_line(record, epochs=4)
        'epoch 2/4  loss 0.5000  accuracy 0.750  1,234 images/s  02:00 left'
    """
    left = tqdm.format_interval(record["seconds"] * (epochs - record["epoch"]))
    return (
        f"epoch {record['epoch']}/{epochs}  loss {record['loss']:.4f}  accuracy {record['accuracy']:.3f}  "
        f"{record['images_per_second']:,.0f} {unit}/s  {left} left"
    )
