"""The judge of a changed caption is right on true videos that are cut together."""

from dataclasses import replace

import numpy as np
import pytest

from tinyworld import switches
from tinyworld.judging.switched import Course, likeness, measure_switch, seam
from tinyworld.switch_tables import gather, report
from tinyworld.switches import CHANGES, changed
from tinyworld.world.film import Clip, held_out
from tinyworld.world.scene import draw_scene, draw_shot, pixel_frames

COURSE = Course(switch=24, back=36, frames=45, block=3)


@pytest.fixture(scope="module")
def clips() -> tuple[Clip, Clip]:
    """A held-out clip, and the same shot of a scene of another ground, time and animal."""
    a = held_out(0, pixel_frames(COURSE.frames))
    for seed in range(2_000_000, 2_000_200):
        scene = draw_scene(seed)
        differs = scene.ground != a.scene.ground and scene.time != a.scene.time and scene.subject != a.scene.subject
        looks = {(sprite.colour, sprite.kind) for sprite in scene.sprites}
        if differs and not looks & set(a.meaning.objects):
            return a, replace(a, scene=scene, shot=draw_shot(seed))
    raise AssertionError("no other scene")


def cut(a: np.ndarray, b: np.ndarray, first: int, back: int) -> np.ndarray:
    """A, B from one pixel frame on, and A again from another."""
    return np.concatenate([a[:first], b[first:back], a[back:]])


def test_a_true_change_is_seen_at_once_and_a_late_one_later(clips):
    a, b = clips
    first, late, back = (pixel_frames(frame) for frame in (24, 27, 36))
    found = measure_switch(cut(a.video, b.video, first, back), COURSE, a.meaning, b.meaning)
    for name in ("ground", "time", "animal"):
        assert (found[f"blocks until {name}"], found[f"{name} shows"]) == (1, 1)
    assert (found["new objects"], found["old objects"]) in ((1, 0), (None, None))
    assert found["seam"] > 5
    assert (found["ground and time are back"], found["animal is back"]) == (1, 1)
    found = measure_switch(cut(a.video, b.video, late, back), COURSE, a.meaning, b.meaning)
    assert found["blocks until ground"] == found["blocks until time"] == 2 and found["seam"] < 2


def test_a_video_that_never_changes_shows_nothing_of_the_other_caption(clips):
    a, b = clips
    found = measure_switch(a.video, COURSE, a.meaning, b.meaning)
    assert found["blocks until ground"] == found["blocks until animal"] == 5
    assert found["ground shows"] == found["animal shows"] == 0
    assert found["seam"] == pytest.approx(seam(a.video, pixel_frames(24))) and found["seam"] < 2


def test_a_place_is_like_itself_alone(clips):
    a, b = clips
    first = a.video[: pixel_frames(24)]
    assert likeness(first[40:64], first) == 1
    assert likeness(b.video[40:64], first) < 0.5


@pytest.mark.parametrize("change", CHANGES)
def test_another_caption_differs_in_what_changes_alone(change):
    for number in range(40):
        meaning = held_out(number).meaning
        other = changed(meaning, change)
        names = {"ground": "ground", "time": "time", "subject": "animal", "objects": "objects"}
        for field, name in names.items():
            assert (getattr(other, field) != getattr(meaning, field)) == (change in (name, "scene"))
        assert other.direction == meaning.direction
        if change in ("objects", "scene"):
            assert not set(other.objects) & set(meaning.objects)


def test_values_go_to_tables_with_intervals(tmp_path):
    units = {(n, 0): {"scene/cut/seam": float(n), "given 11/objects kept": None, "made anew/x": 1.0} for n in range(4)}
    tables = gather({"native": units})
    found = tables["scene"]["native, cut"]["seam"]
    assert found.mean == 1.5 and found.low < 1.5 < found.high and found.n == 4
    assert "given" not in tables and tables["made anew"]["native"]["x"].mean == 1
    report({"native": units}, tmp_path)
    assert "| native, cut | 1.50 [" in (tmp_path / "switches.md").read_text()


def test_what_was_measured_is_not_measured_again(tmp_path, monkeypatch):
    made, reports = [], []

    def measure(settings: switches.SwitchSettings, pipeline: None, units: list) -> dict:
        made.extend(units)
        return {unit: {"scene/text/blocks until ground": 1.0} for unit in units}

    monkeypatch.setattr(switches, "measure_batch", measure)
    monkeypatch.setattr(switches, "load", lambda config: None)
    monkeypatch.setattr(switches, "report", lambda found, folder: reports.append(found))
    monkeypatch.setattr("sys.argv", ["switches", "short=true", f"folder={tmp_path / 'switches'}"])
    switches.main()
    count = len(made)
    (next((tmp_path / "switches").glob("*/00002-0.json"))).unlink()
    switches.main()
    assert count == sum(len(found) for found in reports[0].values()) and reports[0] == reports[1]
    assert count < len(made) < 2 * count
