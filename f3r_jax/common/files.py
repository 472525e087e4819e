"""Files that are written whole or not at all, and JSON values."""

import math
import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Writes beside and renames: a killed run leaves the old file or the new one."""
    beside = path.with_name(f"{path.name}.tmp")
    beside.write_text(text)
    os.replace(beside, path)


def json_safe(value: object) -> object:
    """JSON has no NaN or infinity: a mean over no case, or over one that lost an organ, becomes null."""
    if isinstance(value, dict):
        return {key: json_safe(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [json_safe(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
