"""Unit truth: what is done to a synthetic video, its measurement finds, in size, and in its clean twin nothing."""

import numpy as np
import pytest

from evaluation.compare.evaluate import notes_of_stillness
from evaluation.video.binned_mean import BinnedMean
from evaluation.video.features import describe, thumbprint, to_lab
from evaluation.video.measure import METRICS, Measurement, Meter
from evaluation.video.progression import Progression, progression

FPS, SECONDS, HEIGHT, WIDTH = 16, 9, 48, 80
FRAMES = FPS * SECONDS


def texture(width: int, seed: int = 0, scale: int = 1) -> np.ndarray:
    """Cloudy colours with fine grain [scale * HEIGHT, scale * width, 3], around middle grey."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 25, (HEIGHT // 4, width // 4, 3)).repeat(4, 0).repeat(4, 1)
    for axis in (0, 1):
        x = sum(np.roll(x, shift, axis) for shift in (-1, 0, 1)) / 3
    x = x + rng.normal(0, 6, (HEIGHT, width, 1)) + 120
    return x.repeat(scale, 0).repeat(scale, 1)


def scene(frames: int = FRAMES, speed: float = 1.0, seed: int = 0, scale: int = 1) -> np.ndarray:
    """A camera that pans over a texture, with an object that swings [frames, H, W, 3], floats in 0..255."""
    world = texture(WIDTH + 8 * (int(frames * speed) // 8 + 1), seed, scale)
    shots = np.stack([world[:, scale * int(t * speed) :][:, : scale * WIDTH] for t in range(frames)])
    for t, shot in enumerate(shots):
        x, y = scale * int(30 + 20 * np.sin(t / 7)), scale * int(18 + 10 * np.cos(t / 9.3))
        shot[y : y + 8 * scale, x : x + 8 * scale] = (200, 90, 60)
    return shots


def measured(video: np.ndarray, fps: float = FPS) -> Measurement:
    meter = Meter(fps)
    for frame in np.clip(video, 0, 255).round().astype(np.uint8):
        meter.add(frame)
    return meter.finish((video.shape[2], video.shape[1]))


def ramp(frames: int = FRAMES) -> np.ndarray:
    """0 during the first third, then up to 1 at the end [frames, 1, 1, 1]."""
    return np.clip(np.linspace(-0.5, 1, frames), 0, 1)[:, None, None, None]


def blurred(video: np.ndarray, weight: np.ndarray) -> np.ndarray:
    smooth = sum(np.roll(video, (i, j), (1, 2)) for i in (-1, 0, 1) for j in (-1, 0, 1)) / 9
    return video + weight * (smooth - video)


def jittered(video: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return video + weight * np.random.default_rng(1).normal(0, 12, video.shape)


DRIFTS = {  # what goes wrong -> (it, done to a video with weights 0..1; the metric that is named after it)
    "brighter": (lambda x, w: x + 60 * w, "colour"),
    "greener": (lambda x, w: x + np.array([-30, 30, -30]) * w, "colour"),
    "greyer": (lambda x, w: x + (x.mean(-1, keepdims=True) - x) * 0.9 * w, "saturation"),
    "harder": (lambda x, w: 120 + (x - 120) * (1 + w), "contrast"),
    "burnt out": (lambda x, w: 120 + (x - 120) * (1 + 5 * w), "clipping"),
    "softer": (lambda x, w: blurred(x, w), "detail"),
    "noisier": (lambda x, w: jittered(x, w), "detail"),
}


@pytest.fixture(scope="module")
def clean():
    return scene()


@pytest.fixture(scope="module")
def baseline(clean):
    return measured(clean)


def test_a_clean_video_shows_nothing(baseline):
    assert baseline.scores["drift"] < 0.25 and baseline.onset is None
    assert baseline.seams == [] and baseline.cuts == 0
    assert [baseline.scores[name] for name in ("seams", "frozen")] == [0, 0]
    assert baseline.scores["clipping"] < 0.5 and set(baseline.scores) == set(METRICS)


@pytest.mark.parametrize("name", DRIFTS)
def test_a_drift_is_found_and_grows_with_its_size(clean, baseline, name):
    drifting, metric = DRIFTS[name]
    found = [measured(drifting(clean, size * ramp())) for size in (0.25, 0.5, 1.0)]
    for score in ("drift", metric):
        scores = [baseline.scores[score], *(one.scores[score] for one in found)]
        assert scores == sorted(scores) and scores[-1] > scores[0] + 0.15, (score, scores)
    assert found[-1].seams == []


def test_colour_drift_has_the_size_it_was_given():
    levels = np.linspace(80, 200, FRAMES).round()
    found = measured(np.broadcast_to(levels[:, None, None, None], (FRAMES, HEIGHT, WIDTH, 3)))
    lightness = np.array([to_lab(np.full((1, 1, 3), level, np.uint8))[0, 0, 0] for level in levels.astype(np.uint8)])
    start = lightness[::4][:4].mean()  # the first second, four pictures of it
    end = lightness[-4 * FPS // 4 * 3 :: 4].mean()
    # Lightness rises by 0.26 a picture: a bound of a fifth of it tells which pictures a second is made of.
    assert found.curves["colour"][-1] == pytest.approx(lightness[-FPS::4].mean() - start, abs=0.05)
    assert found.scores["colour"] == pytest.approx(end - start, abs=0.05)


def test_detail_drift_is_counted_in_octaves():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, (FRAMES, HEIGHT, WIDTH, 1))
    amplitude = np.where(np.arange(FRAMES) < FRAMES // 2, 8, 16)[:, None, None, None]
    grey = np.broadcast_to(120 + noise * amplitude, (FRAMES, HEIGHT, WIDTH, 3))
    # One octave; rounding to 8 bits, downscaling and the draw of the noise are worth some hundredths.
    assert measured(grey).scores["detail"] == pytest.approx(1, abs=0.1)


def test_lab_is_that_of_the_standard():
    colours = {(255, 255, 255): (100, 0, 0), (255, 0, 0): (53.24, 80.09, 67.20), (0, 0, 255): (32.30, 79.19, -107.86)}
    for rgb, lab in colours.items():
        # Published values differ by some hundredths, as matrix and white point are rounded to more or fewer digits.
        assert to_lab(np.array([[rgb]], np.uint8))[0, 0] == pytest.approx(lab, abs=0.1)


def test_the_drift_of_a_video_does_not_depend_on_its_size_or_frame_rate():
    """Twice the pixels, downscaled alike; half of the frames."""
    drifting = DRIFTS["greener"][0]
    small, large = (measured(drifting(scene(scale=scale, frames=32), ramp(32)), fps=4) for scale in (5, 10))
    # The same pictures once downscaled, four a second: float32 means of other numbers of pixels.
    assert large.scores["drift"] == pytest.approx(small.scores["drift"], rel=1e-5)
    slow = drifting(scene(), ramp())
    whole, half = measured(slow), measured(slow[::2], FPS / 2)
    assert half.scores["drift"] == pytest.approx(whole.scores["drift"], rel=1e-5)


def test_an_early_change_of_scene_is_not_drift(clean):
    other = 255 - scene(seed=3)
    drifting = DRIFTS["greener"][0](clean, 1.2 * ramp())
    changed = np.concatenate([other[: 2 * FPS], clean[2 * FPS :]])
    found = measured(changed)
    assert found.cuts == 1 and found.scores["seams"] == 0
    assert found.scores["drift"] < measured(drifting).scores["drift"] / 2


def test_what_comes_back_to_its_start_has_not_drifted(clean):
    away = clean + 60 * np.clip(np.sin(np.linspace(-0.5, np.pi + 2, FRAMES)), 0, 1)[:, None, None, None]
    found = measured(away)
    assert max(found.curves["drift"]) > 0.8 > 3 * found.scores["drift"]


def test_what_sways_about_its_start_cancels_out():
    """Thirty seconds, of which five are the first ones, and a sway of five."""
    swaying = scene(120, speed=0.2) + 40 * np.sin(np.arange(120) * 2 * np.pi / 20)[:, None, None, None]
    found = measured(swaying, fps=4)
    assert np.mean(found.curves["drift"]) > 0.4 > 3 * found.scores["drift"]


@pytest.mark.parametrize("height", [1, 3, 7])
def test_flicker_is_the_mean_absolute_difference(height):
    video = np.full((FRAMES, HEIGHT, WIDTH, 3), 100.0)
    video[1::2] += height
    found = measured(video)
    # whole numbers, summed in float32 or better: right to approx's 1e-6
    assert found.scores["flickering"] == pytest.approx(100 * (255 - height) / 255)
    assert found.seams == [] and found.scores["drift"] < 0.1


@pytest.mark.parametrize("frame", [40, 77, FRAMES - 9])
def test_a_seam_is_found_at_its_frame_and_stands_out_by_its_size(clean, frame):
    ratios = []
    for shift in (25, 50, 75):
        jumped = clean.copy()
        jumped[frame + 1 :] += np.array([shift, -shift, shift])
        found = measured(jumped)
        assert [(seam.frame, seam.kind) for seam in found.seams] == [(frame, "seam")], shift
        ratios.append(found.seams[0].ratio)
    assert ratios == sorted(ratios)


def test_repeated_seams_are_all_found(clean):
    blocks = np.arange(FRAMES) // 24
    jumped = clean + 25 * (blocks % 2)[:, None, None, None]
    assert [seam.frame for seam in measured(jumped).seams] == [23, 47, 71, 95, 119]


def test_fast_objects_and_bursts_of_motion_are_no_seams():
    video = np.repeat(texture(WIDTH)[None], FRAMES, 0)
    for t in range(FRAMES):
        x = int(36 + 30 * np.sin(t / 2)) if t % 40 > 20 else 36
        video[t, 10:40, x : x + 12] = (220, 40, 40)
    assert measured(video).seams == []


@pytest.mark.parametrize("held", [0, 16, 48])
def test_frozen_frames_are_counted(clean, held):
    frozen = np.concatenate([clean[:60], np.repeat(clean[59:60], held, 0), clean[60:]])[:FRAMES]

    assert measured(frozen).scores["frozen"] == pytest.approx(100 * held / (FRAMES - 1))


def test_an_hour_is_measured_in_constant_memory():
    meter = Meter(fps=1)  # so that every frame is measured in full
    rng = np.random.default_rng(0)
    frames = rng.integers(120, 130, (31, 16, 16, 3), np.uint8)  # too flat to be recognised, so quickly measured
    sizes = {}
    for number in range(3600):
        meter.add(frames[number % 31])
        if number in (60, 3599):
            sizes[number] = meter.nbytes
    first, last = sizes.values()
    assert first == last < 4e6
    found = meter.finish((16, 16))
    assert found.seconds == 3600 and len(found.times) <= 1024
    assert found.times[-1] == pytest.approx(3598)  # a mean of whole numbers, right to 1e-6


def test_a_folded_curve_keeps_its_means():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 2))
    curve = BinnedMean(2, bins=16)
    for number, row in enumerate(x):
        curve.add(number / 10, row)
    times, means = curve.read()
    assert curve.width == 8 and list(times[:2]) == [4, 12] and len(times) == 13
    # float32 means of 80 numbers near 1: some ten roundings of 6e-8
    assert means[0] == pytest.approx(x[:80].mean(0), abs=1e-6) and means[-1] == pytest.approx(x[960:].mean(0), abs=1e-6)


def test_a_flat_picture_has_finite_features():
    assert np.isfinite(describe(np.zeros((16, 16, 3), np.uint8))).all()


def test_what_goes_on_shows_new_content_a_loop_shows_it_once_and_what_stands_still_none():
    video = np.clip(scene(FRAMES, speed=2), 0, 255).round().astype(np.uint8)
    half, sixth = FRAMES // 2, FRAMES // 6
    onward = progression(video, FPS)
    loop = progression(np.concatenate([video[:sixth]] * 6), FPS)
    there_and_back = progression(np.concatenate([video[:half], video[half - 1 :: -1]]), FPS)
    still = progression(np.repeat(video[:1], FRAMES, 0), FPS)
    assert still == {"new content": 0, "motion": 0, "net motion": 0}
    widths_a_minute = 2 * FPS * 60 / WIDTH
    # A shift is a whole pixel of 64, at half a second each; the object that swings counts among the cells.
    assert onward["motion"] == pytest.approx(widths_a_minute, rel=0.1)
    assert onward["net motion"] == pytest.approx(widths_a_minute, rel=0.1)
    assert there_and_back["net motion"] < 0.1 * onward["net motion"] < 0.5 * there_and_back["motion"]
    assert onward["new content"] > 1.5 * there_and_back["new content"] > 1.5 * loop["new content"]


def test_noise_and_a_slow_fade_on_a_still_picture_are_nothing_new():
    rng = np.random.default_rng(0)
    still = np.repeat(scene(1), 64, 0)
    changed = still * np.linspace(1, 0.7, 64)[:, None, None, None] + rng.normal(0, 2, still.shape)
    found = progression(np.clip(changed, 0, 255).round().astype(np.uint8), FPS)
    assert found["new content"] == 0 and found["net motion"] == 0


def test_so_many_views_are_remembered_and_the_first_and_the_latest_among_them(monkeypatch):
    monkeypatch.setattr("evaluation.video.progression.MOST_VIEWS", 4)
    followed = Progression(fps=1)
    pictures = np.random.default_rng(0).integers(0, 255, (7, 40, 64, 3), np.uint8)
    for picture in pictures:
        followed.add(picture)
    kept = [view.x.mean() for view in followed.views]
    means = [thumbprint(picture, (64, 40)).mean() for picture in pictures]
    assert len(kept) == 4 and kept[0] == means[0] and kept[-1] == means[-1]


def test_a_method_that_stands_still_is_named_beside_its_small_drift():
    rows = {"lively": {"motion": 20.0, "new content": 6.0}, "still": {"motion": 0.5, "new content": 5.0}}
    (note,) = notes_of_stillness(rows)
    assert note.startswith("still has 0.5 widths a minute of motion and lively 20.0")
