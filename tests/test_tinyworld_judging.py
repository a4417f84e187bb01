"""tinyworld's judge is right on true videos and wrong on spoilt ones."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pipeline.config import load_config
from tests.spoilt import blur, joined, partner, recolour, spoilt
from tinyworld.judging.detect import locate
from tinyworld.judging.measure import caption_shown, captioned_share, measure, subject_kept
from tinyworld.judging.objects import (
    HALF_WIDTH,
    Count,
    detect_all,
    objects_in_first_pass,
    objects_kept,
    objects_kept_in_view,
)
from tinyworld.judging.revisits import Return, find_returns, revisit_scores
from tinyworld.judging.track import CameraTrack
from tinyworld.report import PASS, early, whole
from tinyworld.world.film import held_out
from tinyworld.world.render import paint
from tinyworld.world.scene import FIRST_PASS, ONE_LATENT, TRAVEL, VIEW, draw_scene, draw_shot, meaning, pixel_frames

BLUE_AT_DUSK = (2, 13, 18)  # paint and sky are nearly alike
WINDOW = load_config("configs/tinyworld_latentmem.yaml").policy().local_attn_size


@pytest.fixture(scope="module")
def clips():
    return [held_out(i, 477) for i in range(3)]


def track_of(video: np.ndarray) -> CameraTrack:
    return CameraTrack.of(video[::ONE_LATENT])


def kept(video: np.ndarray) -> Count:
    return objects_kept(detect_all(video), track_of(video).positions, WINDOW)


def consistency(video: np.ndarray) -> float:
    return revisit_scores(video[::ONE_LATENT], track_of(video).positions, WINDOW)["revisit consistency"]


@given(st.integers(0, 10**6))
@hypothesis_settings(max_examples=50)
def test_every_object_is_due_in_the_first_pass_and_the_first_one_within_3_seconds(seed):
    scene, shot = draw_scene(seed), draw_shot(seed)
    camera = shot.camera(pixel_frames(FIRST_PASS))

    def frames_whole(sprite, at) -> int:
        return np.sum((at + HALF_WIDTH <= sprite.x) & (sprite.x <= at + VIEW - HALF_WIDTH))

    assert all(frames_whole(sprite, camera[::ONE_LATENT]) >= 2 for sprite in scene.sprites)
    first = meaning(scene, shot).objects[0]
    assert frames_whole(next(s for s in scene.sprites if (s.colour, s.kind) == first), camera[:48:2]) >= 3


@pytest.mark.parametrize("index", [*BLUE_AT_DUSK, 0, 5])
def test_every_captioned_object_is_found_in_a_true_video_and_none_of_another_colour(index):
    clip = held_out(index, PASS)
    assert objects_in_first_pass(detect_all(clip.video), clip.scene, clip.shot) == (1.0, 1.0)
    assert all(caption_shown(clip.video, clip.meaning).values())
    assert captioned_share(clip.video, clip.meaning) == 1
    assert objects_in_first_pass(detect_all(recolour(clip.video)), clip.scene, clip.shot)[0] <= 0.34


def test_the_judge_is_right_on_true_videos_and_wrong_on_other_captions():
    right, wrong = [], []
    clips = [held_out(i, 48) for i in range(12)]
    for i, clip in enumerate(clips):
        other = clips[(i + 1) % len(clips)].meaning
        right.append(list(caption_shown(clip.video, clip.meaning).values()))
        wrong.append(list(caption_shown(clip.video, other).values()))
    assert np.all(right)
    assert (np.mean(wrong, 0) <= (0.7, 0.7, 0.7, 0.3, 0.6)).all()


def test_the_judge_sees_how_the_camera_moves_and_that_objects_and_the_subject_stay():
    clip = held_out(0, 240)
    track = track_of(clip.video)
    assert track.as_trained(clip.shot).all()
    other_way = dataclasses.replace(clip.shot, start=TRAVEL - clip.shot.start, direction="left")
    assert track.as_trained(other_way).mean() < 0.3
    assert track.turns() == 2
    in_view = objects_kept_in_view(detect_all(clip.video), track.positions)
    assert in_view.found == in_view.due > 0
    assert [subject_kept(clip.video, name) for name in ("wolf", "fox")] == [1, 0]


def test_the_track_is_the_true_way_and_a_frame_is_located_in_its_scene(clips):
    for clip in clips:
        camera = clip.shot.camera(477)
        assert (track_of(clip.video).positions == camera[::4] - camera[0]).all()
    panorama = paint(clips[0].scene)
    assert [locate(clips[0].video[i], panorama) for i in (0, 50)] == list(clips[0].shot.camera(477)[[0, 50]])


def test_what_returns_in_a_true_video_has_been_away_for_a_window_and_is_the_same(clips):
    for clip in clips:
        track = track_of(clip.video)
        camera = clip.shot.camera(477)[::4]
        returns = find_returns(track.positions, WINDOW)
        assert len(returns) > 60
        for found in returns:
            assert abs(camera[found.first] - camera[found.later]) <= 4
            assert found.later - found.first > WINDOW
        scores = revisit_scores(clip.video[::ONE_LATENT], track.positions, WINDOW)
        assert (scores["revisit consistency"], scores["came back"]) == (1, 1)
        objects = kept(clip.video)
        assert objects.found == objects.due >= 3
        assert track.plausible().all()


def test_what_counts_as_a_return_follows_from_the_window():
    there = np.arange(0, 120, 8)  # 15 latent frames to the right, and back
    positions = np.concatenate([there, there[::-1]])
    long_away = Return(0, len(positions) - 1)  # out of view by half for 2 x 9 latent frames
    assert long_away in find_returns(positions, 16)
    assert find_returns(positions, 17) == []


def test_a_second_half_of_another_scene_is_no_return(clips):
    others = [held_out(i, 477) for i in range(3, 9)]
    for clip in clips:
        video = joined(clip.video, partner([clip, *others], 0).video)
        assert consistency(video) < 0.25
        objects = kept(video)
        assert objects.found <= 0.34 * objects.due


def test_changed_colours_are_no_return_and_blur_is_less_than_one(clips):
    video = clips[0].video
    recoloured = joined(video, recolour(video))
    assert consistency(recoloured) < 0.3
    assert kept(recoloured).found == 0
    assert consistency(joined(video, blur(video))) < 0.8


def test_a_camera_that_stands_still_or_goes_the_other_way_is_no_trained_motion(clips):
    clip = clips[0]
    still = np.repeat(clip.video[:1], 477, axis=0)
    assert revisit_scores(still[::ONE_LATENT], track_of(still).positions, WINDOW) == {
        "revisit error": None, "revisit PSNR": None, "revisit consistency": 0.0, "came back": 0.0,
    }  # fmt: skip
    assert kept(still) == Count(0, 0)
    assert not track_of(still).plausible().any()
    mirrored = track_of(clip.video[:, :, ::-1])
    assert mirrored.as_trained(clip.shot).mean() < 0.15
    assert mirrored.plausible().all()
    early_turn = track_of(np.concatenate([clip.video[:61], clip.video[60::-1]]))  # in the middle of the scene
    assert not early_turn.as_trained(clip.shot)[16:].any()
    beyond = track_of(np.concatenate([clip.video[:41], clip.video[20:125]]))  # goes on when the scene should end
    found = beyond.as_trained(clip.shot)
    assert found[11:28].all() and not found[-6:].any()


def test_a_cut_or_a_halt_at_the_scenes_end_is_no_trained_motion(clips):
    def judged(*steps: int) -> list[bool]:
        return CameraTrack(np.array(steps)).as_trained(clips[0].shot).tolist()

    there, back = [8] * 22, [-8] * 8
    assert all(judged(*there, 2, *back))
    assert judged(*there, -14, *back) == [True] * 22 + [False] + [True] * 8
    assert judged(*there, 0, 0, 0, *back) == [True] * 22 + [False] * 3 + [True] * 8


def test_a_short_and_an_empty_looking_video_are_judged_without_a_division_by_zero():
    clip = held_out(0, 477)
    for video in (clip.video[:9], np.full_like(clip.video, 128)):
        found = measure(video, clip, WINDOW)
        assert all(value is None or np.isfinite(value) for value in found.values())


def test_every_spoilt_video_has_a_measure_that_refuses_it(clips):
    short = [held_out(i, PASS) for i in range(2)]
    direction = clips[0].shot.direction
    long = [clip for clip in (held_out(i, 477) for i in range(8)) if clip.shot.direction == direction][:2]
    true = {**early([clip.video for clip in short], short), **whole([clip.video for clip in long], long, WINDOW)}
    found = spoilt(short, long, WINDOW)
    for kind, name, most in (
        ("other caption", "objects in the first pass", 0.5),
        ("recoloured", "subject, first 3 s", 0.5),
        ("recoloured", "objects kept, whole video", 0.0),
        ("blurred", "revisit consistency, whole video", 0.8),
        ("shuffled halves", "revisit consistency, whole video", 0.2),
        ("standing still", "camera as trained, whole video", 0.0),
        ("standing still", "motion, whole video", 0.0),
        ("standing still", "new content, whole video", 0.0),
    ):
        assert np.mean(true[name]) >= 1
        assert np.mean(found[kind][name]) <= most, (kind, name)
