"""Prompt files as people have them: which lines are prompts, under which numbers, and what is refused."""

import json
import sys
from pathlib import Path

import pytest

import generate_latent
import inference
from pipeline.prompts import NAME_BYTES, Prompt, file_names, load_prompts, read_prompts, sample_prompts
from pipeline.text import note_of_cuts
from utils.errors import UserError


def texts(path) -> list[tuple[int, str]]:
    return [(prompt.index, prompt.text) for prompt in read_prompts(path)]


def test_blank_prompt_lines_are_skipped_with_their_numbers_kept(tmp_path):
    (tmp_path / "p.txt").write_text("\na\n\n b \nc\n")
    prompts = read_prompts(tmp_path / "p.txt")
    assert prompts == [Prompt(1, "a"), Prompt(3, "b"), Prompt(4, "c")]
    assert read_prompts(tmp_path / "p.txt", 2) == prompts[:2]


def test_a_share_of_the_prompts_is_drawn_by_seed_in_order():
    prompts = [Prompt(i, str(i)) for i in range(50)]
    drawn = sample_prompts(prompts, 0.2, seed=1)
    assert len(drawn) == 10 and drawn == sorted(drawn, key=lambda prompt: prompt.index)
    assert drawn == sample_prompts(prompts, 0.2, seed=1) != sample_prompts(prompts, 0.2, seed=2)
    assert sample_prompts(prompts, 1.0, seed=1) == prompts


def test_a_byte_order_mark_is_not_part_of_a_prompt(tmp_path):
    (tmp_path / "p.txt").write_bytes(b"\xef\xbb\xbfa hill\r\n\xef\xbb\xbfa lake\r\n")
    assert texts(tmp_path / "p.txt") == [(0, "a hill"), (1, "a lake")]


@pytest.mark.parametrize("letter", ["\u2028", "\u2029", "\x85", "\f", "\v", "\x1c", "\r"])
def test_only_a_newline_ends_a_line(tmp_path, letter):
    (tmp_path / "p.txt").write_bytes(f"a hill{letter}at dawn\r\n\na lake".encode())
    assert texts(tmp_path / "p.txt") == [(0, f"a hill{letter}at dawn"), (2, "a lake")]


@pytest.mark.parametrize("name", ["p.jsonl", "p.txt"])
def test_jsonl_gives_its_prompt_field_and_keeps_the_others(tmp_path, name):
    lines = ['{"prompt": " a hill\\u2028at dawn ", "seed": 3}', "", '{"prompt": "a lake"}']
    (tmp_path / name).write_text("\n".join(lines))
    first, second = read_prompts(tmp_path / name)
    assert (first.index, first.text, first.fields) == (0, "a hill\u2028at dawn", {"seed": 3})
    assert (second.index, second.text, second.fields) == (2, "a lake", {})
    assert len({first, second}) == 2


@pytest.mark.parametrize(
    "line, words",
    [
        ('{"text": "a lake"}', "line 3 has no prompt"),
        ('{"prompt": ""}', "line 3 has no prompt"),
        ('{"prompt": 5}', "line 3 has no prompt"),
        ('["a lake"]', "line 3 has no prompt"),
        ('{"prompt": "a lake"', "line 3 is not valid JSON"),
        ("[" * 100_000, "line 3 is not valid JSON"),
        ('{"prompt": "\\ud83d"}', "line 3: the prompt holds half of a character"),
    ],
)
def test_a_line_of_jsonl_without_a_prompt_is_refused_with_its_number(tmp_path, line, words):
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "a hill"}) + "\n\n" + line)
    with pytest.raises(UserError, match=words) as error:
        read_prompts(tmp_path / "p.jsonl")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("p.csv", b"a hill\n", "no plain text"),
        ("p.TSV", b"prompt\na hill\n", "no plain text"),
        ("p.json", b'["a hill"]', "no plain text"),
        ("p.txt", b"id,prompt\n1,a hill\n", "a table with the columns 'id,prompt'"),
        ("p.txt", b'"prompt"\t"seed"\na hill\t3\n', "a table"),
        ("p.txt", "a hill\n".encode("utf-16"), "UTF-8"),
        ("p.txt", "a hill\n".encode("utf-16-le"), "UTF-8"),
        ("p.txt", b"\xef\xbb\xbf\r\n \r\n", "holds no prompts"),
    ],
)
def test_what_holds_no_prompts_is_refused_in_one_line_with_the_way_out(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words) as error:
        read_prompts(tmp_path / name)
    assert "\n" not in str(error.value) and str(tmp_path / name) in str(error.value)


def test_a_prompt_with_commas_is_no_table(tmp_path):
    (tmp_path / "p.txt").write_text("hill,lake,tree\nprompt, a hill\n")
    assert len(texts(tmp_path / "p.txt")) == 2


@pytest.mark.parametrize("main", [inference.main, generate_latent.main])
@pytest.mark.parametrize(
    "typed, words",
    [("prompt=", "prompt is empty"), ("prompt=  ", "prompt is empty"), ("prompt=[a, b]", "data_path=FILE")],
)
def test_a_prompt_setting_that_is_empty_or_a_list_is_refused(main, typed, words, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "configs/tinyworld_native.yaml", typed])
    with pytest.raises(UserError, match=words):
        main()


def test_a_prompt_that_is_cut_is_said_with_its_number_and_what_it_loses(tmp_path, monkeypatch, capsys):
    words = ["a hill at dawn"] * 12
    (tmp_path / "p.txt").write_text(f"a hill\n\n{' '.join(words)}\n")
    typed = [f"data_path={tmp_path}/p.txt", "inference_iter=-1", "num_output_frames=3", f"output_folder={tmp_path}/out"]
    monkeypatch.setattr(sys, "argv", ["x", "configs/tinyworld_native.yaml", *typed, f"text_cache={tmp_path}/cache"])
    inference.main()
    note = "note: the text encoder reads 32 tokens of a prompt: prompt 2 loses its last 17 tokens\n"
    assert capsys.readouterr().out.count(note) == 1


def test_few_of_many_cut_prompts_are_named():
    prompts = [Prompt(index, "a " * (32 + index)) for index in range(9)]
    note = note_of_cuts(prompts, Path("wan_models/tinyworld/tokenizer"), 32)
    assert "prompt 0 loses its last 1 token, prompt 1 loses its last 2 tokens" in note
    assert note.endswith("prompt 4 loses its last 5 tokens, and 4 more")
    assert note_of_cuts([Prompt(0, "a " * 31)], Path("wan_models/tinyworld/tokenizer"), 32) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}'])
def test_a_damaged_tokenizer_is_one_line(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"tokenizer .* cannot be read") as error:
        note_of_cuts([Prompt(0, "a")], tmp_path, 32)
    assert "\n" not in str(error.value)


def test_the_prompt_setting_is_the_only_prompt():
    assert load_prompts("a hill", "no such file") == [Prompt(0, "a hill")]


def test_names_of_files_fit_into_a_file_system_in_any_script():
    prompts = [Prompt(0, "山" * 300), Prompt(1, "🏔" * 300), Prompt(2, "é" * 300), Prompt(3, "a" * 300)]
    names = file_names(prompts, with_index=False)
    assert all(0 < len(name.encode()) <= NAME_BYTES for name in names.values())
    assert names[0] == "山" * 65 and names[2] == "é" * 97 and names[3] == "a" * 100


def test_two_prompts_never_share_a_file_name():
    texts = ["a hill", "a hill", "a hill-00000", "a hill.", "...", "山" * 70, "山" * 80]
    names = file_names([Prompt(index, text) for index, text in enumerate(texts)], with_index=False)
    assert len(set(names.values())) == len(texts)
    assert all(not name.startswith(".") for name in names.values())
    assert file_names([Prompt(7, "a")], with_index=True) == {7: "00007"}
