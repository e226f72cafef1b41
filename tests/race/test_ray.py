"""The Ray engine, on a local Ray of two workers."""

from __future__ import annotations

import pytest
from small import MINE, small_race

from formwright.race import store
from formwright.race.contenders import RaceProblem

pytest.importorskip("ray", reason="Ray is not installed: pip install 'formwright[ray]'")


def test_ray_runs_the_same_trials_with_the_same_results(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    texts = ["attention", f"{tmp_path}/mine.py:Exploding", "pooling"]
    options = {"budget": "10steps", "workers": 2, "threads": 1}
    events = []
    small_race(tmp_path, texts, engine="ray", name="on-ray", events=events, **options)
    small_race(tmp_path, texts, engine="local", name="local", **options)
    conn = store.open_store(tmp_path / "runs" / "races.sqlite")
    on_ray, local = (store.load_race(conn, name) for name in ("on-ray", "local"))
    assert on_ray.status == "done"
    for mine, other in zip(on_ray.contenders, local.contenders, strict=True):
        (a,), (b,) = mine.trials, other.trials
        assert a.status == b.status == ("diverged" if mine.name == "exploding" else "done")
        assert a.scores == b.scores and len(a.points) == len(b.points)
    assert {e["contender"] for e in events if e["event"] == "step"} >= {"attention", "pooling"}


def test_an_address_without_a_cluster_is_answered(tmp_path):
    with pytest.raises(RaceProblem, match=r"no Ray at 127\.0\.0\.1:1"):
        small_race(tmp_path, ["pooling"], budget="2steps", engine="ray", address="127.0.0.1:1")
