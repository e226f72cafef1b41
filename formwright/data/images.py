"""Pictures in class folders: classify each.

`folder/cat/*.jpg, folder/dog/*.jpg`; folders named train, validation (or val, valid) and test above the class folders
are kept as the splits (a missing one is taken from train); else 80/10/10 at random by seed, classes in equal shares.
 Pictures are turned upright, laid on white where transparent, scaled so that the shorter side fits, cut to a
centred square of `image_size` (default: their own size if all are equal and at most 64, else 32), and kept as bytes in
the cache; grey only if all are. Inputs are z-scored by the training mean and deviation of each channel. Pictures that
can't be read are left out with a note; over 10% of them is an error.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from formwright.data import cache as caching
from formwright.data.source import DataError, Scale, Source, shuffled

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".tga"})
_SPLIT_NAMES = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "test": "test", "testing": "test",
}  # fmt: skip


def pictures_below(folder: Path) -> list[Path]:
    """The picture files below a folder, hidden ones left out, in order of their paths."""
    found = [
        p
        for p in folder.rglob("*")
        if p.suffix.lower() in EXTENSIONS and not any(n.startswith(".") for n in p.relative_to(folder).parts)
    ]
    return sorted((p for p in found if p.is_file()), key=lambda p: p.relative_to(folder).as_posix())


def open_picture(path: Path):
    """A picture, upright, as a Pillow image in mode L or RGB. Raises DataError where it can't be read."""
    import struct
    import warnings

    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as file:
                image = ImageOps.exif_transpose(file)
                image.load()
        if image.mode.startswith("I") or image.mode == "F":
            values = np.asarray(image, dtype=np.float64)
            top = 65535.0 if image.mode.startswith("I") else max(values.max(), 1e-12)
            return Image.fromarray(np.clip(values / top * 255, 0, 255).astype(np.uint8))
        if "A" in image.mode or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
            return image
        return image.convert("L" if image.mode in ("L", "1") else "RGB")
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} can't be read as a picture ({reason}); mend or remove it") from error


def square(image, size: int) -> np.ndarray:
    """Scale the shorter side to `size` and cut the centre -> uint8 (size, size, C)."""
    from PIL import Image

    width, height = image.size
    if (width, height) != (size, size):
        ratio = size / min(width, height)
        wide, high = max(size, round(width * ratio)), max(size, round(height * ratio))
        image = image.resize((wide, high), Image.Resampling.LANCZOS if ratio < 1 else Image.Resampling.BICUBIC)
        left, top = (wide - size) // 2, (high - size) // 2
        image = image.crop((left, top, left + size, top + size))
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _layout(folder: Path, files: list[Path]) -> tuple[list[str], list[str | None], list[str]]:
    """Each file's class and split (None: to be drawn), and notes. Raises DataError without at least two classes."""
    parts = [p.relative_to(folder).parts for p in files]
    notes = []
    given = all(len(p) >= 3 and p[0].lower() in _SPLIT_NAMES for p in parts)
    if given:
        labels, splits = [p[1] for p in parts], [_SPLIT_NAMES[p[0].lower()] for p in parts]
        notes.append("Kept the splits that the folders name.")
    else:
        loose = [p for p in parts if len(p) == 1 or (len(p) == 2 and p[0].lower() in ("train", "test"))]
        if loose:
            raise DataError(
                f"{folder} holds {len(loose)} pictures outside class folders (the first is {'/'.join(loose[0])}); "
                "put the pictures of each class into a folder of its own"
            )
        labels, splits = [p[0] for p in parts], [None] * len(parts)
    if len(set(labels)) < 2:
        raise DataError(
            f"{folder} has one class only, {labels[0]!r}; put the pictures of at least two classes into a folder each"
        )
    return labels, splits, notes


def _header(path: Path) -> tuple[tuple[int, int], bool]:
    """A picture's size and whether it is grey, without decoding it."""
    from PIL import Image

    with Image.open(path) as file:
        grey = file.mode in ("L", "1", "F") or file.mode.startswith("I")
        if file.mode == "P":
            palette = np.array(file.getpalette()).reshape(-1, 3)
            grey = bool((palette == palette[:, :1]).all())
        return file.size, grey and "transparency" not in file.info


def _decode(files: list[Path], image_size: int | None, work: Path) -> None:
    """Write pixels.npy (n, S, S, C) and meta.json: which files were kept, which are broken."""
    from PIL import Image

    kept, broken, sizes, grey = [], [], Counter(), True
    for path in files:
        try:
            size, plain = _header(path)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            continue  # decoding it below says why
        sizes[size] += 1
        grey = grey and plain
    same = next(iter(sizes)) if len(sizes) == 1 else (0, 0)
    chosen = image_size or (same[0] if same[0] == same[1] and 0 < same[0] <= 64 else 32)
    pixels = np.lib.format.open_memmap(
        work / "pixels.npy", mode="w+", dtype=np.uint8, shape=(len(files), chosen, chosen, 1 if grey else 3)
    )
    for number, path in enumerate(files):
        try:
            pixels[number] = square(open_picture(path).convert("L" if grey else "RGB"), chosen)
        except DataError as error:
            broken.append([number, str(error)])
        else:
            kept.append(number)
    if len(broken) > 0.1 * len(files):
        raise DataError(f"{len(broken)} of {len(files)} pictures can't be read; the first: {broken[0][1]}")
    pixels.flush()
    caching.save_json(
        work / "meta.json", {"kept": kept, "broken": broken, "hash": caching.array_hash(pixels), "size": list(same)}
    )


def open_images(
    name: str, folder: Path, *, image_size: int | None = None, seed: int = 0, cache: str | None = None
) -> Source:
    """A folder of class folders -> a Source. Raises DataError as this module says."""
    files = pictures_below(folder)
    labels, splits, notes = _layout(folder, files)
    key = "images-" + caching.digest(caching.listing(files), image_size)
    made = caching.entry(cache, key, lambda work: _decode(files, image_size, work))
    meta = caching.load_json(made / "meta.json")
    pixels = np.load(made / "pixels.npy", mmap_mode="r")
    if meta["broken"]:
        first = "; ".join(f"{files[n].relative_to(folder)}" for n, _ in meta["broken"][:3])
        notes.append(f"Left out {len(meta['broken'])} pictures that can't be read: {first}.")
    if meta["size"] != [pixels.shape[2], pixels.shape[1]]:
        notes.append(f"Pictures are scaled and cut to {pixels.shape[1]} x {pixels.shape[2]} (image_size sets this).")
    rows = np.array(meta["kept"], dtype=np.int64)
    labels, splits = [labels[n] for n in rows], [splits[n] for n in rows]
    names = sorted(set(labels))
    if len(names) < 2:
        raise DataError(f"{folder}: only the class {names[0]!r} has readable pictures; at least two are needed")
    codes = {label: i for i, label in enumerate(names)}
    answers = np.array([codes[label] for label in labels], dtype=np.int64)
    if len(answers) < 10:
        raise DataError(f"{folder} has {len(answers)} pictures; at least 10 are needed")
    if splits[0] is None:
        parts = shuffled(len(answers), seed, answers)
    else:
        parts = {s: np.flatnonzero([x == s for x in splits]) for s in ("train", "validation", "test")}
        parts = complete(parts, answers, seed, name, notes)
    parts = {split: rows[index] for split, index in parts.items()}
    answers = np.full(len(files), -1, dtype=np.int64)
    answers[rows] = [codes[label] for label in labels]
    fingerprint = caching.digest("images", meta["hash"], names, answers.tolist(), seed)
    return of_pixels(name, "images", pixels, answers, parts, names, notes, fingerprint, cache=cache)


def complete(
    parts: dict[str, np.ndarray], answers: np.ndarray, seed: int, name: str, notes: list[str]
) -> dict[str, np.ndarray]:
    """Given splits, some perhaps empty: those missing are taken from train, a tenth each. Raises DataError without
    train."""
    if not len(parts["train"]):
        raise DataError(f"{name} has no training part; name one train")
    for split in ("validation", "test"):
        if not len(parts[split]):
            rows = parts["train"]
            drawn = shuffled(
                len(rows), seed, answers[rows] if answers.ndim == 1 and answers.dtype.kind == "i" else None
            )
            parts[split] = rows[drawn[split]]
            parts["train"] = np.setdiff1d(rows, parts[split])
            notes.append(f"A tenth of the training part serves as the {split} part.")
    return parts


def of_pixels(
    name: str,
    kind: str,
    pixels: np.ndarray,
    answers: np.ndarray,
    parts: dict[str, np.ndarray],
    names: list[str],
    notes: list[str],
    fingerprint: str,
    *,
    cache: str | None = None,
) -> Source:
    """Pictures uint8 (n, H, W, C), perhaps memory-mapped, with answers (n,) -> a Source."""
    from formwright.data.table import of_arrays

    scale = _pixel_scale(pixels, parts["train"])
    mean = torch.tensor(scale.mean, dtype=torch.float32)
    deviation = torch.tensor(scale.deviation, dtype=torch.float32)
    height, width, channels = pixels.shape[1:]

    def normalise(rows: np.ndarray) -> Tensor:
        return (torch.from_numpy(np.array(rows)).float() - mean) / deviation

    def take(split: str, index: np.ndarray, epoch: np.ndarray) -> tuple[Tensor, Tensor]:
        rows = parts[split][index]
        return normalise(pixels[rows]), targets[torch.from_numpy(rows)]

    def prepare(path: str) -> tuple[Tensor, list[str]]:
        place = Path(path)
        files = pictures_below(place) if place.is_dir() else [place]
        if not place.exists():
            raise DataError(f"{path} is not there; give a picture or a folder of pictures")
        if not files:
            raise DataError(f"{path} holds no pictures")
        if height != width:
            raise DataError(f"{name} has pictures of {height} x {width}, not square: files can't be read for it")
        mode = "L" if channels == 1 else "RGB"
        rows = np.stack([square(open_picture(f).convert(mode), height) for f in files])
        return normalise(rows), [f.name for f in files]

    def features(rows: np.ndarray) -> np.ndarray:
        return normalise(pixels[rows]).flatten(1).numpy()

    targets = torch.from_numpy(answers)
    facts = {"channels": channels, "image": (height, width), "classes": len(names)}
    source = of_arrays(name, kind, "patches", torch.zeros(0, height, width, channels), targets, parts, facts, notes,
                       names, fingerprint, scale=scale, prepare=prepare, features=features, cache=cache)  # fmt: skip
    source.take, source.tokens_per_item = take, height * width
    source.unit = ""
    return source


def _pixel_scale(pixels: np.ndarray, rows: np.ndarray) -> Scale:
    """Mean and deviation of each channel over these pictures, read a thousand at a time."""
    total, squares, number = 0.0, 0.0, 0
    for start in range(0, len(rows), 1000):
        part = pixels[rows[start : start + 1000]].astype(np.float64)
        total, squares = total + part.sum((0, 1, 2)), squares + (part**2).sum((0, 1, 2))
        number += part.shape[0] * part.shape[1] * part.shape[2]
    mean = total / number
    deviation = np.sqrt(np.maximum(squares / number - mean**2, 0.0))
    return Scale(mean, np.where(deviation > 1e-6, deviation, 1.0))
