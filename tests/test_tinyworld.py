"""tinyworld's world is as its caption says, and what is encoded is what is said."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch.nn.functional import adaptive_avg_pool3d

from tinyworld.judging.detect import detect_subjects
from tinyworld.training.corpus import Corpus, encode_corpus, normalised
from tinyworld.training.gallery import load_gallery, paint_galleries
from tinyworld.training.settings import LatentSettings, VaeSettings, WorldSettings
from tinyworld.training.text_encoder import build_tokenizer
from tinyworld.training.vae import build as build_vae
from tinyworld.training.vae import to_video
from tinyworld.world.captions import COLOURS, DIRECTIONS, GROUNDS, KINDS, SUBJECTS, TIMES, Meaning, caption, parse
from tinyworld.world.change import HALF_WIDTH, move_an_object
from tinyworld.world.film import Clip, _subject, held_out
from tinyworld.world.render import paint
from tinyworld.world.scene import (
    LANE,
    ONE_LATENT,
    PACES,
    TRAVEL,
    VIEW,
    ahead,
    draw_scene,
    draw_shot,
    meaning,
    visible,
)
from utils.errors import UserError


@given(
    st.builds(
        Meaning,
        st.sampled_from(GROUNDS),
        st.sampled_from(TIMES),
        st.sampled_from(SUBJECTS),
        st.sampled_from(DIRECTIONS),
        st.lists(st.tuples(st.sampled_from(COLOURS), st.sampled_from(KINDS)), min_size=1, max_size=4).map(tuple),
    )
)
def test_a_caption_is_read_back_as_what_it_says_and_the_tokenizer_knows_its_words(what):
    text = caption(what)
    assert parse(text) == what
    tokenizer = build_tokenizer(32)
    ids = tokenizer(text).input_ids
    assert tokenizer.unk_token_id not in ids
    assert len(ids) <= 32


def test_text_that_is_no_caption_is_refused_with_an_example():
    with pytest.raises(UserError, match="an example"):
        parse("A cat at noon.")


@given(st.integers(0, 10**6))
@hypothesis_settings(max_examples=50)
def test_the_camera_turns_at_both_ends_and_the_first_object_shows_within_3_seconds(seed):
    scene, shot = draw_scene(seed), draw_shot(seed)
    camera = shot.camera(400)
    assert camera.min() in (0, 1)
    assert camera.max() in (TRAVEL - 1, TRAVEL)
    assert set(np.abs(np.diff(camera))) <= {0, *PACES}
    assert np.array_equal(shot.camera(50), camera[:50])
    first = meaning(scene, shot).objects[0]
    early = [sprite for position in camera[:48] for sprite in visible(scene, position)]
    assert first in {(sprite.colour, sprite.kind) for sprite in early}


@given(st.integers(0, 10**6))
@hypothesis_settings(max_examples=50)
def test_the_pace_changes_between_latent_frames_and_the_way_back_is_not_the_way_there(seed):
    shot = draw_shot(seed)
    camera, heading = shot.camera(1201), shot.heading(1201)
    steps = np.diff(camera)
    straight = steps[:1200].reshape(-1, ONE_LATENT)
    straight = straight[(heading[:-1] == heading[1:]).reshape(-1, ONE_LATENT).all(1)]
    assert (np.ptp(straight, 1) == 0).all()
    assert set(np.abs(straight[:, 0])) == set(PACES)
    there = int(np.argmax(np.diff(heading) != 0)) + 1
    assert not np.array_equal(np.abs(steps[:there]), np.abs(steps[there : 2 * there]))


def test_the_subject_runs_in_its_lane_ahead_of_the_camera_and_behind_it():
    clip = held_out(0, 320)
    bare = paint(clip.scene)[:, clip.camera[:, None] + np.arange(VIEW)].transpose(1, 0, 2, 3)
    changed = (clip.video != bare).any(-1)
    assert not changed[:, :LANE].any()
    columns = [np.flatnonzero(frame.any(0)) for frame in changed]
    assert all(10 <= len(found) <= 32 for found in columns)
    middles = np.array([(found[0] + found[-1]) / 2 for found in columns])
    assert np.abs(middles - clip.shot.subject(320)).max() < 4
    assert np.ptp(middles) > 24
    right, left = (_subject("fox", "noon", facing, 0, 0)[1] for facing in (1, -1))
    assert np.abs(right[:, ::-1] - left).mean() < 0.05 < np.abs(right - left).mean()
    assert set(detect_subjects(bare, clip.scene.time)) == {None}


def test_a_seed_gives_the_same_video_and_another_seed_another():
    assert np.array_equal(held_out(5, 9).video, held_out(5, 9).video)
    assert not np.array_equal(held_out(5, 9).video, held_out(6, 9).video)


@pytest.mark.parametrize("index", [0, 5])
def test_an_object_moves_while_nobody_looks_and_the_caption_remains_true(index):
    clip = held_out(index, 300)
    changed = move_an_object(clip)
    differ = (changed.video != clip.video).any((1, 2, 3))
    assert not differ[: changed.since + 1].any() and differ.any()
    assert abs(changed.place - changed.moved.x) >= 24
    shown = int(np.flatnonzero(differ)[0])
    columns = clip.camera[shown] + np.flatnonzero((changed.video[shown] != clip.video[shown]).any((0, 2)))
    assert np.abs(columns[:, None] - [changed.moved.x, changed.place]).min(1).max() <= HALF_WIDTH + 1
    assert caption(meaning(changed.later, changed.shot)) == clip.caption


def test_a_stretch_later_than_a_clip_is_one_that_it_holds():
    corpus = Corpus(torch.zeros(1, 60, 1, 1, 1), np.zeros((1, 60)), np.zeros((1, 60, 3)), ["a caption"])
    starts = set()
    for start in range(3, 120, 3):
        inside = corpus.inside(np.concatenate([np.arange(3), start + np.arange(45)]))
        assert np.array_equal(inside[:3], np.arange(3)) and (np.diff(inside[3:]) == 1).all()
        starts.add(int(inside[3]))
    assert starts == set(range(3, 16))


def test_what_is_encoded_is_what_the_caption_says(tmp_path, monkeypatch):
    def pooled(videos: np.ndarray) -> torch.Tensor:
        frames = to_video(videos)[:, ::4]  # [B, F, 3, H, W]
        return adaptive_avg_pool3d(frames, (None, 8, 12))

    monkeypatch.setattr("tinyworld.training.corpus.encode", lambda vae, videos: normalised(vae, pooled(videos)))
    paint_galleries(WorldSettings(scenes=5, held_out=1), tmp_path)
    vae = build_vae(VaeSettings(base_dim=8, z_dim=3))
    latent_settings = LatentSettings(clips=4, frames=6, starts=3, start_frames=3, batch=2)
    scenes = load_gallery(tmp_path, "panoramas", 0)
    corpora = encode_corpus(vae, scenes, latent_settings, tmp_path)
    for corpus, first in zip(corpora, (0, 4), strict=True):
        for i, (latents, text) in enumerate(zip(corpus.latents, corpus.captions, strict=True)):
            clip = Clip(draw_scene(i), draw_shot(first + i), 9)
            assert text == clip.caption
            due = normalised(vae, pooled(clip.video[None]))[0]
            # rounded to bfloat16 before and after normalising, each time by up to 2^-8 of a number
            torch.testing.assert_close(latents[:3].float(), due, atol=2**-7 * due.abs().max().item(), rtol=0)
            assert np.array_equal(corpus.camera[i, :3], clip.camera[::4])
    (tmp_path / "goes on").mkdir()
    again = encode_corpus(vae, scenes, latent_settings, tmp_path / "goes on", normalise=False)
    for corpus, before in zip(again, corpora, strict=True):  # a training that goes on sees what the first one saw
        largest = before.latents.abs().max().item()
        torch.testing.assert_close(corpus.latents, before.latents, atol=2**-7 * largest, rtol=0)


def test_what_the_camera_comes_to_next_is_what_enters_the_view():
    for number in range(6):
        clip = held_out(number, 400)
        next_up = ahead(clip.scene, clip.shot, 400)
        assert (next_up[0, 0] == COLOURS.index(clip.meaning.objects[0][0])) or visible(clip.scene, clip.camera[0])
        for now in range(399):
            before, after = (visible(clip.scene, clip.camera[frame], margin=0) for frame in (now, now + 1))
            turned = clip.shot.heading(400)[now] != clip.shot.heading(400)[now + 1]
            for sprite in after:
                if sprite not in before and not turned:
                    assert next_up[now, :2].tolist() == [COLOURS.index(sprite.colour), KINDS.index(sprite.kind)]
        none = next_up[:, 0] == len(COLOURS)
        assert none.any() and (next_up[none, 1] == len(KINDS)).all() and (next_up[none, 2] < 1).all()
