"""The table of backbones: every row can be run and downloaded, and a fresh machine is told all it lacks at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import generate_latent
import inference
from pipeline import downloads
from pipeline.backbones import BACKBONES, METHODS, SAMPLES, all_files, arguments
from pipeline.config import load_config
from utils import paths
from utils.errors import UserError

ROOT = Path(__file__).parent.parent
CAUSAL_FORCING = [
    "wan_models/Wan2.1-T2V-1.3B/models_t5_umt5-xxl-enc-bf16.pth (11.4 GB)",
    "wan_models/Wan2.1-T2V-1.3B/Wan2.1_VAE.pth (507.6 MB)",
    "checkpoints/causal_forcing.pt",
    "checkpoints/ae_latent_mem.pt",
    "checkpoints/moviegenbench_128_refined.txt",
    "get them with 'bash download.sh causal_forcing': 11.9 GB, and 3 files",
]


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A machine with nothing downloaded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(downloads, "PROJECT", tmp_path)
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    return tmp_path


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")


def refusal(main, monkeypatch, config: str, *typed: str) -> str:
    monkeypatch.setattr(sys, "argv", ["x", str(ROOT / config), *typed])
    with pytest.raises(UserError) as error:
        main()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("method", METHODS)
def test_every_row_has_the_files_that_its_configs_name(backbone, method):
    path, *settings = arguments(backbone, method)
    config, row = load_config(path, settings), BACKBONES[backbone]
    assert f"{config.model_root}/{config.model_name}" == row.model.folder
    named = [Path(config.generator_ckpt), *(path for path, _ in config.loras())]
    assert named == [file.path for file in row.weights]
    assert list(config.descriptor_files().values()) in ([], [row.retrieval_encoder.path])
    assert config.data_path == str(row.prompts.path)


def test_the_files_of_this_project_are_in_it():
    assert all((ROOT / file.path).is_file() for file in all_files() if file.repo is None)


def test_every_file_to_download_is_in_the_document_of_weights():
    text = (ROOT / "docs" / "weights.md").read_text()
    for file in all_files():
        if file.repo is not None:
            assert file.path.name in text or f"{file.path.parent}/" in text, file
    assert SAMPLES in text


def test_a_fresh_machine_is_told_all_that_a_run_lacks(fresh, monkeypatch):
    said = refusal(inference.main, monkeypatch, "configs/causal_forcing_latentmem.yaml")
    assert [words for words in CAUSAL_FORCING if words not in said] == []
    native = refusal(inference.main, monkeypatch, "configs/longlive_native.yaml", "prompt=a hill")
    assert "ae_latent_mem" not in native and "moviegen" not in native
    assert "longlive_lora.pt" in native and "'bash download.sh longlive'" in native
    tiny = refusal(inference.main, monkeypatch, "configs/self_forcing_native.yaml", "vae=tiny", "tiny_vae_ckpt=x.pth")
    assert "VAE" not in tiny and "'bash download.sh self_forcing'" in tiny


def test_a_fresh_machine_is_told_what_the_corpus_lacks(fresh, monkeypatch):
    said = refusal(generate_latent.main, monkeypatch, "configs/generate_latent.yaml")
    assert "vidprom_filtered_extended.txt" in said and "'bash download.sh corpus'" in said


def test_the_launcher_says_it_too(tmp_path):
    environment = {"VIRTUAL_ENV": sys.prefix, "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}", "GPU": ""}
    typed = [
        "causal_forcing",
        "latentmem",
        "model_root=nowhere/wan_models",
        "generator_ckpt=nowhere/checkpoints/causal_forcing.pt",
    ]
    run = subprocess.run(
        ["bash", ROOT / "inference.sh", *typed], env=os.environ | environment, capture_output=True, text=True
    )
    assert run.returncode == 2 and len(run.stderr.splitlines()) == 1
    assert "Wan2.1_VAE.pth" in run.stderr and "causal_forcing.pt" in run.stderr and "download.sh" in run.stderr


def test_what_is_there_is_not_asked_for(fresh):
    folder = "wan_models/Wan2.1-T2V-1.3B"
    put(fresh, f"{folder}/text_encoder/config.json", f"{folder}/tokenizer/tokenizer.json", f"{folder}/Wan2.1_VAE.pth")
    put(fresh, "checkpoints/longlive_base.pt")
    files = ["checkpoints/longlive_base.pt", None, "my/checkpoint.pt", "my_prompts.txt"]
    downloads.require_downloaded(folder, files)
    lacking = downloads.missing(folder, [*files, "checkpoints/longlive_lora.pt"])
    assert [str(entry.path) for entry in lacking] == ["checkpoints/longlive_lora.pt"]


def test_a_folder_of_downloads_elsewhere_is_named(fresh, tmp_path):
    with pytest.raises(UserError, match=r"'bash download.sh causal_forcing --root '?/big disk'?'"):
        downloads.require_downloaded(
            "/big disk/wan_models/Wan2.1-T2V-1.3B", ["/big disk/checkpoints/causal_forcing.pt"]
        )


def test_a_lost_file_of_the_project_is_brought_back_by_git(fresh, monkeypatch):
    said = refusal(inference.main, monkeypatch, "configs/tinyworld_native.yaml")
    assert "git checkout -- " in said and "checkpoints/tinyworld.safetensors" in said and "download.sh" not in said


def answer(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pipeline.backbones", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_table_answers_the_launcher():
    run = answer("run", "longlive", "native")
    assert (run.returncode, run.stdout, run.stderr) == (0, f"{ROOT}/configs/longlive_native.yaml\n", "")
    run = answer("usage")
    assert run.returncode == 0 and all(name in run.stdout for name in (*BACKBONES, *METHODS))


@pytest.mark.parametrize(
    "words, said",
    [
        (["run", "longlife", "native"], "did you mean 'longlive'?"),
        (["run", "longlive", "latent"], "did you mean 'latentmem'?"),
        (["run", "longlive"], "name a backbone and a method"),
        (["run"], "name a backbone and a method"),
    ],
)
def test_a_wrong_name_is_answered_with_the_usage(words, said):
    run = answer(*words)
    assert run.returncode == 2 and run.stdout == "" and said in run.stderr and "usage: bash inference.sh" in run.stderr


def test_the_table_is_quick_to_import():
    slow = {"torch", "yaml", "omegaconf", "huggingface_hub"}
    script = f"import sys, pipeline.downloads; assert not {slow} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
