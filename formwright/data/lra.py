"""The public files of Long Range Arena as sources: ListOps, IMDB reviews, AAN pairs, grey CIFAR-10, pathfinder.

Nothing is downloaded: `folder` holds what the benchmark's release, or the data sets' own sites, unpack. Splits are the
files' own where there are any. Else they are drawn once, the same for every seed, from the training part: a tenth of it
is for validation (IMDB, CIFAR-10), so that the test part never serves to choose a model, as it does in the original for
IMDB; pathfinder is split 80/10/10. Tay et al., "Long Range Arena: A Benchmark for Efficient Transformers", arXiv
2011.04006, 2020.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from formwright.data import cache as caching
from formwright.data import sequences
from formwright.data.source import DataError, Source, shuffled
from formwright.data.tasks.listops import CLOSE

RELEASE = "it comes with lra_release.gz of github.com/google-research/long-range-arena"
LISTOPS = {str(d): d + 1 for d in range(10)} | {"[MIN": 11, "[MAX": 12, "[MED": 13, "[SM": 14, "]": CLOSE, "X": CLOSE}
LEVELS = {"easy": "curv_baseline", "intermediate": "curv_contour_length_9", "hard": "curv_contour_length_14"}
CIFAR = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def find(task: str, folder: str | None, wanted: str, below: tuple[str, ...], source: str) -> Path:
    """The folder that holds `wanted`: the one given, or one of the usual ones below it. Raises DataError."""
    if not isinstance(folder, str) or not folder:
        raise DataError(f"{task} reads public files: write {task}(folder='...'), a folder with {wanted}; {source}")
    top = Path(folder).expanduser()
    if not top.is_dir():
        raise DataError(f"{task}: there is no folder {folder}; it is to hold {wanted}; {source}")
    for place in (top, *(top / b for b in below)):
        if (place / wanted).exists():
            return place
    raise DataError(f"{task}: {folder} does not hold {wanted} (nor does {', '.join(below)} below it); {source}")


def listops(name: str, folder: str | None, length: int, cache: str | None) -> Source:
    """basic_train.tsv, basic_val.tsv, basic_test.tsv: an expression and its value a line, under a line of titles."""
    place = find("lra_listops", folder, "basic_train.tsv", ("listops-1000", "lra_release/listops-1000"), RELEASE)
    files = [place / f"basic_{part}.tsv" for part in ("train", "val", "test")]
    _there("lra_listops", files, RELEASE)
    key = caching.listing(files)

    def build(work: Path) -> None:
        answers, sizes, rows = [], [], []
        for file in files:
            before = len(answers)
            for number, line in enumerate(_lines(file), 1):
                source, _, value = line.rpartition("\t")
                if number == 1 and value == "Target":
                    continue
                try:
                    tokens = [LISTOPS[t] for t in source.strip('"').replace("(", " ").replace(")", " ").split()]
                    answers.append(range(10)[int(value)])
                except (KeyError, ValueError, IndexError) as error:
                    raise DataError(f"{file}, line {number}: this is no expression and its value ({error})") from error
                rows.append(bytes(tokens))
            sizes.append(len(answers) - before)
        sequences.write(work, rows)
        np.savez(work / "answers.npz", answers=answers, sizes=sizes)

    made = caching.entry(cache, f"lra-listops-{key}", build)
    kept = np.load(made / "answers.npz")
    documents = sequences.read(made, length)
    sizes = np.diff(documents.ends, prepend=0)
    notes = _cut(sizes, length, "expressions")

    def rows(which: np.ndarray) -> np.ndarray:
        found = documents.rows(which)
        return np.where(found > 0, found - 1, 0)  # here bytes are tokens already

    def root(which: np.ndarray) -> np.ndarray:
        return np.eye(CLOSE + 1)[rows(which)[:, 0]]

    parts = sequences.consecutive(kept["sizes"])
    return sequences.classified(name, "arrays", rows, length, CLOSE + 1, kept["answers"], parts, list("0123456789"),
                                notes, caching.digest("lra_listops", key, length), features=root, padding=0,
                                cache=cache)  # fmt: skip


def text(name: str, folder: str | None, length: int, cache: str | None) -> Source:
    """aclImdb: train/pos, train/neg, test/pos, test/neg, a review a file."""
    known = "it is aclImdb_v1.tar.gz of ai.stanford.edu/~amaas/data/sentiment, unpacked"
    place = find("lra_text", folder, "train/pos", ("aclImdb",), known)
    kinds = [(split, label) for split in ("train", "test") for label in ("neg", "pos")]
    found = {kind: sorted((place / kind[0] / kind[1]).glob("*.txt")) for kind in kinds}
    for (split, label), files in found.items():
        if len(files) < 2:
            raise DataError(f"lra_text: {place / split / label} holds {len(files)} reviews (*.txt); {known}")
    files = [file for kind in kinds for file in found[kind]]
    key = caching.listing(files)
    made = caching.entry(cache, f"lra-text-{key}", lambda work: sequences.write(work, (f.read_bytes() for f in files)))
    documents = sequences.read(made, length)
    answers = np.concatenate([np.full(len(found[kind]), kind[1] == "pos", dtype=np.int64) for kind in kinds])
    trained = sum(len(found["train", label]) for label in ("neg", "pos"))
    parts = _held_out(answers, trained)
    notes = [
        "A tenth of the training part serves as validation.",
        *_cut(np.diff(documents.ends, prepend=0), length, "reviews"),
    ]
    return sequences.classified(name, "arrays", documents.rows, length, sequences.BYTES, answers, parts,
                                ["negative", "positive"], notes, caching.digest("lra_text", key, length),
                                features=documents.counts, padding=0, cache=cache)  # fmt: skip


def retrieval(name: str, folder: str | None, length: int, cache: str | None) -> Source:
    """new_aan_pairs.{train,eval,test}.tsv: label, two names, two papers a line."""
    place = find("lra_retrieval", folder, "new_aan_pairs.train.tsv", ("tsv_data", "lra_release/tsv_data"), RELEASE)
    files = [place / f"new_aan_pairs.{part}.tsv" for part in ("train", "eval", "test")]
    _there("lra_retrieval", files, RELEASE)
    key = caching.listing(files)

    def build(work: Path) -> None:
        answers, sizes = [], []

        def papers() -> Iterator[bytes]:
            for file in files:
                before = len(answers)
                for number, line in enumerate(_lines(file), 1):
                    columns = line.split("\t")
                    if len(columns) != 5 or columns[0] not in ("0", "1", "0.0", "1.0"):
                        raise DataError(f"{file}, line {number}: this is not label, two names and two papers, by tabs")
                    answers.append(int(float(columns[0])))
                    yield from (paper.encode() for paper in columns[3:])
                sizes.append(len(answers) - before)

        sequences.write(work, papers())
        np.savez(work / "answers.npz", answers=answers, sizes=sizes)

    made = caching.entry(cache, f"lra-retrieval-{key}", build)
    kept, documents = np.load(made / "answers.npz"), sequences.read(made, length, 2)
    notes = ["Both papers stand in one sequence, a mark between them; the original reads them by two towers."]
    notes += _cut(np.diff(documents.ends, prepend=0), length, "papers")
    return sequences.classified(name, "arrays", documents.rows, documents.length, sequences.PAIRS, kept["answers"],
                                sequences.consecutive(kept["sizes"]), ["unrelated", "related"], notes,
                                caching.digest("lra_retrieval", key, length), features=documents.counts, padding=0,
                                cache=cache)  # fmt: skip


def image(name: str, folder: str | None, cache: str | None) -> Source:
    """CIFAR-10, binary or Python version, grey: 1024 values of 0 to 255."""
    known = "it is CIFAR-10, binary or Python version, of www.cs.toronto.edu/~kriz/cifar.html, unpacked"
    binary = "data_batch_1.bin"
    try:
        place = find("lra_image", folder, binary, ("cifar-10-batches-bin",), known)
        files = [place / f"data_batch_{k}.bin" for k in range(1, 6)] + [place / "test_batch.bin"]
    except DataError:
        either = f"or {binary} to data_batch_5.bin and test_batch.bin; {known}"
        place = find("lra_image", folder, "data_batch_1", ("cifar-10-batches-py",), either)
        files = [place / f"data_batch_{k}" for k in range(1, 6)] + [place / "test_batch"]
    _there("lra_image", files, known)
    read = _binary if files[0].suffix else _pickled
    batches = [read(file) for file in files]
    pixels = np.concatenate([x for x, _ in batches])
    answers = np.concatenate([y for _, y in batches]).astype(np.int64)
    grey = np.floor(pixels.reshape(-1, 3, 1024).transpose(0, 2, 1) @ np.array([0.2989, 0.5870, 0.1140]))
    grey = grey.astype(np.uint8)
    parts = _held_out(answers, sum(len(y) for _, y in batches[:-1]))
    return sequences.classified(name, "arrays", lambda which: grey[which].astype(np.int64), 1024, 256, answers, parts,
                                CIFAR, ["A tenth of the training part serves as validation."],
                                caching.digest("lra_image", caching.array_hash(grey)), cache=cache)  # fmt: skip


def pathfinder(name: str, folder: str | None, size: int, level: str, cache: str | None) -> Source:
    """pathfinder32/curv_contour_length_14/metadata/*.npy, a line or row for each picture, and imgs/*/sample_*.png."""
    from formwright.data.images import open_picture

    if level not in LEVELS:
        raise DataError(f"lra_pathfinder: level is {level!r}, but the levels are {', '.join(LEVELS)}")
    below = LEVELS[level]
    tops = (f"pathfinder{size}", f"lra_release/pathfinder{size}")
    place = find("lra_pathfinder", folder, f"{below}/metadata", tops, RELEASE) / below
    tables = sorted((place / "metadata").glob("*.npy"), key=lambda p: (len(p.stem), p.stem))
    if not tables:
        raise DataError(f"lra_pathfinder: {place / 'metadata'} holds no *.npy; {RELEASE}")
    key = caching.listing(tables)

    def build(work: Path) -> None:
        pixels, answers, broken = [], [], 0
        for table in tables:
            for number, row in enumerate(_metadata(table), 1):
                if len(row) < 4 or row[3] not in ("0", "1"):
                    raise DataError(f"{table}, row {number}: this is not folder, file, number and label of a picture")
                file = place / row[0] / row[1]
                if not file.is_file() or not file.stat().st_size:  # the release has an empty one
                    broken += 1
                    continue
                picture = np.asarray(open_picture(file).convert("L"))
                if picture.shape != (size, size):
                    raise DataError(f"{file} is {picture.shape[1]} x {picture.shape[0]}, not {size} x {size}; set size")
                pixels.append(picture.reshape(-1))
                answers.append(int(row[3]))
        if len(answers) < 10 or broken > 0.1 * len(answers):
            raise DataError(
                f"lra_pathfinder: {broken} pictures are missing or empty, {len(answers)} are there; {RELEASE}"
            )
        np.save(work / "pixels.npy", np.stack(pixels))
        np.savez(work / "answers.npz", answers=answers, broken=broken)

    made = caching.entry(cache, f"lra-pathfinder-{caching.digest(key, size)}", build)
    kept, pixels = np.load(made / "answers.npz"), np.load(made / "pixels.npy", mmap_mode="r")
    answers, broken = kept["answers"], int(kept["broken"])
    notes = [f"Left out {broken} picture{'s' * (broken > 1)} missing or empty."] if broken else []
    return sequences.classified(name, "arrays", lambda which: pixels[which].astype(np.int64), size * size, 256, answers,
                                shuffled(len(answers), 0, answers), ["apart", "connected"], notes,
                                caching.digest("lra_pathfinder", key, size), cache=cache)  # fmt: skip


def _lines(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8", errors="replace", newline="\n") as lines:
        for line in lines:
            yield line.rstrip("\r\n")


def _there(task: str, files: list[Path], source: str) -> None:
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise DataError(f"{task}: {files[0].parent} lacks {', '.join(missing)}; {source}")


def _held_out(answers: np.ndarray, trained: int) -> dict[str, np.ndarray]:
    """The first `trained` rows, a tenth of each class of them for validation; the rest for the test."""
    drawn = shuffled(trained, 0, answers[:trained])
    train = np.sort(np.concatenate([drawn["train"], drawn["test"]]))
    return {"train": train, "validation": drawn["validation"], "test": np.arange(trained, len(answers))}


def _cut(sizes: np.ndarray, length: int, what: str) -> list[str]:
    longer = int((sizes > length).sum())
    return [f"{longer} of {len(sizes)} {what} are longer than {length} tokens and are cut there."] if longer else []


def _binary(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """A label and 3072 pixels a picture."""
    rows = np.fromfile(file, dtype=np.uint8)
    if not len(rows) or len(rows) % 3073:
        raise DataError(f"{file} is no CIFAR-10 batch: its {len(rows)} bytes are not pictures of 3073 each")
    rows = rows.reshape(-1, 3073)
    return _checked(file, rows[:, 1:], rows[:, 0])


class _Arrays(pickle.Unpickler):
    """Reads pickles of arrays, lists and text; whatever would run other code is refused."""

    _ALLOWED = {"_reconstruct", "ndarray", "dtype", "encode"}

    def find_class(self, module: str, name: str):
        if name in self._ALLOWED and module.split(".")[0] in ("numpy", "_codecs"):
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _pickled(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """A pickled dict of data (n, 3072) and labels, keys in bytes or text."""
    try:
        held = _Arrays(io.BytesIO(file.read_bytes()), encoding="bytes").load()
        held = {k.decode() if isinstance(k, bytes) else k: v for k, v in held.items()}
        pixels, labels = np.asarray(held["data"]), np.asarray(held["labels"])
    except (pickle.UnpicklingError, KeyError, ValueError, EOFError, AttributeError, TypeError, IndexError) as error:
        raise DataError(f"{file} is no CIFAR-10 batch ({error}); take it from the data set's own site") from error
    return _checked(file, pixels, labels)


def _checked(file: Path, pixels: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    good = pixels.dtype == np.uint8 and pixels.shape == (len(labels), 3072) and labels.dtype.kind in "iu"
    if not good or not len(labels) or labels.min() < 0 or labels.max() > 9:
        raise DataError(f"{file} is no CIFAR-10 batch: it has pixels {pixels.shape} and labels {labels.shape}")
    return pixels, labels


def _metadata(table: Path) -> list[list[str]]:
    """The release has lines of text under the name .npy, the generator writes arrays of text."""
    if table.read_bytes()[:6] != b"\x93NUMPY":
        return [line.split() for line in _lines(table) if line.strip()]
    try:
        return [[str(cell) for cell in row] for row in np.load(table, allow_pickle=False)]
    except (ValueError, TypeError) as error:
        raise DataError(f"{table} is no table of pictures ({error}); {RELEASE}") from error
