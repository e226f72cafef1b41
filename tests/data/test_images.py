import numpy as np
import pytest
import torch
from PIL import Image

from formwright import data
from formwright.data import DataError
from formwright.data.images import square

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}


def paint(folder, classes=("red", "green"), number=20, size=(12, 12), mode="RGB", extension="png", seed=0):
    rng = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(number):
            pixels = np.clip(np.array(COLOURS[name]) + rng.integers(-25, 26, (size[1], size[0], 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(folder / name / f"{i:03d}.{extension}")
    return folder


def test_class_folders(tmp_path):
    folder = paint(tmp_path / "p", ("red", "green", "blue"))
    source = data.open(folder)
    assert (source.kind, source.embed, source.head, source.metric) == ("images", "patches", "classify", "accuracy")
    assert source.facts == {"channels": 3, "image": (12, 12), "classes": 3} and source.shape == (12, 12, 3)
    assert source.names == ["blue", "green", "red"] and not source.notes
    assert source.counts == {"train": 48, "validation": 6, "test": 6}
    seen = []
    for split in source.counts:
        for batch in source.evaluation(split, 7):
            assert batch.inputs.dtype == torch.float32 and batch.targets.dtype == torch.int64
            for x, y in zip(batch.inputs, batch.targets, strict=True):
                picture = source.picture(x)
                assert picture.shape == (12, 12, 3) and picture.dtype == np.uint8
                assert picture.mean((0, 1)).argmax() == {"red": 0, "green": 1, "blue": 2}[source.names[y]]
                seen.append(picture.tobytes())
    files = {np.asarray(Image.open(p)).tobytes() for p in folder.rglob("*.png")}
    assert len(seen) == 60 and set(seen) == files
    train = next(source.evaluation("train", 100)).inputs
    assert train.mean((0, 1, 2)).abs().max() < 1e-4 and (train.std((0, 1, 2)) - 1).abs().max() < 1e-2
    again = data.open(**source.options)
    assert again.fingerprint == source.fingerprint
    assert (again.batch("train", 3, 8).inputs == source.batch("train", 3, 8).inputs).all()
    assert data.open(folder, seed=1).fingerprint != source.fingerprint


@pytest.mark.parametrize(("extension", "channels"), [("jpg", 1), ("bmp", 1), ("gif", 1), ("tiff", 1), ("webp", 3)])
def test_formats_and_grey(tmp_path, extension, channels):
    source = data.open(paint(tmp_path / "g", mode="L", extension=extension))
    assert source.facts["channels"] == channels
    picture = source.picture(source.batch("train", 0, 1).inputs[0])
    assert picture.shape == ((12, 12) if channels == 1 else (12, 12, 3))


def test_sizes(tmp_path):
    folder = paint(tmp_path / "p", ("red",), size=(40, 20))
    paint(folder, ("green",), size=(9, 30))
    source = data.open(folder)
    assert source.shape == (32, 32, 3) and any("32 x 32 (image_size sets this)" in n for n in source.notes)
    assert data.open(folder, image_size=8).shape == (8, 8, 3)
    big = paint(tmp_path / "big", size=(80, 80), number=6)
    assert data.open(big).shape == (32, 32, 3)
    assert data.open(big, image_size=80).shape == (80, 80, 3)


def test_square_keeps_the_centre_and_the_proportions():
    pixels = np.zeros((20, 60, 3), dtype=np.uint8)
    pixels[:, 20:40] = 255
    out = square(Image.fromarray(pixels), 10)
    assert out.shape == (10, 10, 3) and out[:, 2:8].min() > 240
    out = square(Image.fromarray(pixels), 20)
    assert (out == 255).all()


def test_transparent_palette_and_turned_pictures(tmp_path):
    folder = paint(tmp_path / "p")
    clear = np.zeros((12, 12, 4), dtype=np.uint8)
    Image.fromarray(clear).save(folder / "red" / "clear.png")
    half = np.zeros((12, 12, 3), dtype=np.uint8)
    half[:6] = 255
    turned = Image.fromarray(half)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(folder / "green" / "turned.png", exif=exif)
    source = data.open(folder)
    pictures = [source.picture(x) for s in source.counts for b in source.evaluation(s, 50) for x in b.inputs]
    assert any((p == 255).all() for p in pictures)
    assert any((p[:, 6:] == 255).all() and (p[:, :6] == 0).all() for p in pictures)


def test_named_splits_are_kept(tmp_path):
    folder = tmp_path / "p"
    paint(folder / "train", number=20)
    paint(folder / "test", number=3, seed=1)
    source = data.open(folder)
    assert source.counts == {"train": 36, "validation": 4, "test": 6}
    assert any("splits that the folders name" in n for n in source.notes)
    assert any("validation part" in n for n in source.notes)
    test = {source.picture(x).tobytes() for b in source.evaluation("test", 9) for x in b.inputs}
    assert test == {np.asarray(Image.open(p)).tobytes() for p in (folder / "test").rglob("*.png")}


def test_a_few_broken_pictures_are_left_out_with_a_note(tmp_path):
    folder = paint(tmp_path / "p")
    (folder / "red" / "000.png").write_bytes(b"no picture")
    whole = (folder / "green" / "003.png").read_bytes()
    (folder / "green" / "003.png").write_bytes(whole[: len(whole) // 2])
    source = data.open(folder)
    assert sum(source.counts.values()) == 38
    note = next(n for n in source.notes if "can't be read" in n)
    assert "2 pictures" in note and "green/003.png" in note and "red/000.png" in note
    rows = torch.cat([b.inputs for s in source.counts for b in source.evaluation(s, 50)])
    labels = torch.cat([b.targets for s in source.counts for b in source.evaluation(s, 50)])
    for x, y in zip(rows, labels, strict=True):
        assert source.picture(x).mean((0, 1)).argmax() == {"red": 0, "green": 1}[source.names[y]]


def test_a_new_picture_is_prepared_as_in_training(tmp_path):
    folder = paint(tmp_path / "p")
    source = data.open(folder)
    inputs, labels = source.read(str(folder / "red" / "004.png"))
    assert labels == ["004.png"] and inputs.shape == (1, 12, 12, 3)
    assert (source.picture(inputs[0]) == np.asarray(Image.open(folder / "red" / "004.png"))).all()
    assert len(source.read(str(folder / "red"))[0]) == 20
    for path, says in (("nowhere.png", "is not there"), (__file__, "can't be read as a picture")):
        with pytest.raises(DataError, match=says):
            source.read(path)


def test_mistakes_are_named(tmp_path):
    def says(folder, part, **options):
        with pytest.raises(DataError) as caught:
            data.open(folder, **options)
        assert part in str(caught.value) and "\n" not in str(caught.value)

    one = paint(tmp_path / "one", ("red",))
    says(one, "one class only, 'red'")
    says(one / "red", "outside class folders (the first is 000.png)")
    says(one / "red" / "000.png", "is a single picture")
    broken = paint(tmp_path / "broken")
    for i in range(5):
        (broken / "red" / f"{i:03d}.png").write_bytes(b"")
    says(broken, "5 of 40 pictures can't be read; the first: ")
    says(broken, "000.png can't be read as a picture")
    two = paint(tmp_path / "two")
    says(two, "length=64 does not apply", length=64)
    says(two, "at least 4", image_size=2)
    says(paint(tmp_path / "few", number=4), "at least 10")
    loose = tmp_path / "loose"
    paint(tmp_path / "x", ("red", "green"))
    (tmp_path / "x" / "red").rename((loose.mkdir(), loose / "train")[1])
    (tmp_path / "x" / "green").rename(loose / "test")
    says(loose, "outside class folders (the first is test/000.png)")
    source = data.open(two)
    with pytest.raises(DataError, match="no scaled values"):
        source.unscale(np.zeros(3))
    with pytest.raises(DataError, match="has no text"):
        source.encode("x")


def test_digits():
    source = data.open("digits")
    assert source.facts == {"channels": 1, "image": (8, 8), "classes": 10}
    assert sum(source.counts.values()) == 1797
    for split in source.counts:
        number = torch.bincount(torch.cat([b.targets for b in source.evaluation(split, 500)]), minlength=10)
        assert number.min() > 0.8 * number.max()
    assert data.open("digits").fingerprint == source.fingerprint
