"""Arrow pointing: labels by following the ray, and again from the pictures alone."""

import numpy as np
import pytest
import torch

from formwright import build, data
from formwright.data import DataError
from formwright.data.tasks import TASKS
from formwright.data.tasks.arrow_pointing import WIDE, draw, paint


@pytest.mark.parametrize(("wide", "scale"), [(WIDE, 1.0), (2 * WIDE, 1.0), (48, 0.25), (96, 0.25)])
def test_labels_by_following_the_ray(wide, scale):
    scene, labels = draw(np.random.default_rng(0), 400, wide, scale)
    assert 0.4 < labels.mean() < 0.6
    for i in range(400):
        steps = np.arange(0, 2 * wide, 0.05 * scale)[:, None]
        ray = scene.arrow[i] + steps * [np.cos(scene.angle[i]), np.sin(scene.angle[i])]
        nearest = np.hypot(*(ray - scene.disc[i]).T).min()
        assert nearest < scene.radius[i] / 1.19 if labels[i] else nearest > scene.radius[i] * 1.19
    for what, low, high in ((scene.radius, 15, 30), (scene.length, 15, 30)):
        assert (low * scale <= what).all() and (what <= high * scale).all()
    assert (np.abs(scene.arrow - scene.disc) >= 2 * scene.radius[:, None] - 1e-9).all()
    for place in (scene.arrow, scene.disc):
        assert (place >= 30 * scale).all() and (place <= wide - 30 * scale).all()


def pieces(dark):
    """The two connected parts of a picture's dark pixels, the larger one first."""
    left, out = set(map(tuple, np.argwhere(dark).tolist())), []
    while left:
        waiting = [left.pop()]
        piece = list(waiting)
        while waiting:
            y, x = waiting.pop()
            for near in [(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]:
                if near in left:
                    left.remove(near)
                    waiting.append(near)
                    piece.append(near)
        out.append(np.array(piece, float))
    return sorted(out, key=len, reverse=True)


@pytest.mark.parametrize("wide", [WIDE, 2 * WIDE])
def test_labels_from_the_pictures_alone(wide):
    scene, labels = draw(np.random.default_rng(1), 100, wide, 1.0)
    right = 0
    for picture, label in zip(paint(scene, wide), labels, strict=True):
        disc, arrow = pieces(picture < 160)
        centre, radius = disc.mean(0), (len(disc) / np.pi) ** 0.5
        spread = arrow - arrow.mean(0)
        along = np.linalg.svd(spread, full_matrices=False)[2][0]
        places = spread @ along
        middle = (places.max() + places.min()) / 2
        along = along if middle < 0 else -along  # the head is heavier: the mean lies on its side
        tail = arrow.mean(0) + middle * np.abs(along @ along) * (along if middle < 0 else -along)
        towards = centre - tail
        nearest = abs(along[0] * towards[1] - along[1] * towards[0])
        right += bool(nearest < radius and towards @ along > 0) == bool(label)
    assert right >= 95


def test_pictures():
    scene, _ = draw(np.random.default_rng(2), 50, WIDE, 1.0)
    pictures = paint(scene, WIDE)
    assert pictures.shape == (50, WIDE, WIDE) and pictures.dtype == np.uint8
    ink = (255 - pictures.astype(float)).sum((1, 2)) / 255
    area = np.pi * scene.radius**2 + scene.width * scene.length * (1 + 2 * 0.4)
    assert np.abs(ink / area - 1).max() < 0.05
    for picture, (x, y), (u, v) in zip(pictures, scene.disc, scene.arrow, strict=True):
        assert picture[int(y), int(x)] == 0 and picture[round(v), round(u)] < 128
    other = paint(draw(np.random.default_rng(2), 50, WIDE, 1.0)[0], WIDE)
    assert (pictures == other).all()


def test_larger_pictures_keep_the_pixels_of_disc_and_arrow():
    make, larger = TASKS["arrow_pointing"]().make, TASKS["arrow_pointing"]().make_test
    small, large = make(np.random.default_rng(3), 200)[0], larger(np.random.default_rng(3), 200)[0]
    assert large.shape == (200, 384, 384, 1)
    ink = [(255.0 - x).sum() for x in (small, large)]
    assert abs(ink[0] / ink[1] - 1) < 0.02
    assert TASKS["arrow_pointing"](tested_size=192).make_test is None


def test_it_trains_and_is_asked_at_twice_the_size(monkeypatch):
    monkeypatch.setattr("formwright.data.synthetic.BLOCK", 200)
    source = data.open("arrow_pointing(size=48, examples=200, tests=40)")
    assert source.facts["image"] == (48, 48) and source.baselines["guessing"] == 0.5
    many = source.batch("train", 0, 200).inputs
    assert abs(many.mean()) < 0.2 and 0.8 < many.std() < 1.2
    model = build("2*(attention(position=rope) + swiglu)", data=source, dim=32)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for step in range(3):
        loss = model.loss(source.batch("train", step, 8))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for split, wide in (("validation", 48), ("test", 96)):
        batch = next(source.evaluation(split, 8))
        assert batch.inputs.shape == (8, wide, wide, 1)
        assert torch.isfinite(model.loss(batch))


@pytest.mark.parametrize(
    ("options", "says"),
    [({"size": 8}, "at least 24"), ({"size": 96, "tested_size": 48}, "at least 96"),
     ({"tested_size": 193}, "a multiple of size")],
)  # fmt: skip
def test_refusals(options, says):
    with pytest.raises(DataError, match=says):
        TASKS["arrow_pointing"](**options)
