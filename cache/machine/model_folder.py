"""Tell model folders apart, and what is in them, without reading the weights."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple


class Contents(NamedTuple):
    """Hold what a model has besides the components that every pipeline loads; the defaults are those of the Hub's."""

    unet_channels: int = 4
    controlnets: int = 0
    has_image_encoder: bool = False


def contents_of(model_dir: str) -> Contents:
    """Read which components a folder has, as ``save_pretrained`` wrote them.

    A UNet's configuration that cannot be read is taken for the usual one; loading it says what is wrong with it.
    """
    root = Path(model_dir)
    try:
        channels = json.loads((root / "unet" / "config.json").read_text()).get("in_channels", 4)
    except (OSError, ValueError, AttributeError):
        channels = 4
    controlnets = 0
    while (root / f"controlnet{f'_{controlnets}' if controlnets else ''}" / "config.json").is_file():
        controlnets += 1
    return Contents(channels, controlnets, (root / "image_encoder" / "config.json").is_file())


def fingerprint(model_dir: str) -> str:
    """Hash the names, sizes and times of a folder's files: another model has another hash."""
    root = Path(model_dir)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    lines = [f"{path.relative_to(root)} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
