"""VBench-Long on a CPU, with random weights: does every option, name and file of it fit?

    vbench_env/bin/python tests/vbench_cpu.py weights         # random weights of the published layouts in its caches
    vbench_env/bin/python tests/vbench_cpu.py VBench/vbench2_beta_long/eval_long.py --videos_path ...

The second is a command that `evaluate.sh vbench export` prints, with this file after `python`. It runs in VBench's
own environment, with HOME set to a folder of its own. The scores say nothing: only their form does. What VBench
needs to be told on a CPU is in `on_a_cpu`, all of it.
"""

import os
import runpy
import sys
from functools import partial
from pathlib import Path

import torch

HUB_DINO = """
import torch
from dreamsim.feature_extraction.vision_transformer import vit_base

def dino_vitb16(pretrained=True, **kwargs):
    model = vit_base(patch_size=16, num_classes=0, **kwargs)
    url = "https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth"
    model.load_state_dict(torch.hub.load_state_dict_from_url(url=url))
    return model
"""
HUB_DINOV2 = """
import timm, torch

def dinov2_vitb14(pretrained=True, **kwargs):
    model = timm.create_model("vit_base_patch14_dinov2", num_classes=0, dynamic_img_size=True)
    url = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth"
    model.load_state_dict(torch.hub.load_state_dict_from_url(url=url))
    return model
"""


def main() -> None:
    if sys.argv[1:] == ["weights"]:
        torch.manual_seed(0)
        write_weights(Path.home() / ".cache")
        return
    on_a_cpu()
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)  # as where Python itself starts the script
    runpy.run_path(sys.argv[0], run_name="__main__")


def on_a_cpu() -> None:
    """Three changes: the device, DreamSim's default device, and CLIP's checksum, which random weights fail."""
    import clip.clip
    import dreamsim
    from vbench import VBench

    begin = VBench.__init__

    def begin_on_the_cpu(self, device, *rest):
        begin(self, torch.device("cpu"), *rest)

    VBench.__init__ = begin_on_the_cpu
    dreamsim.dreamsim = partial(dreamsim.dreamsim, device="cpu")
    clip.clip._download = lambda url, root: os.path.join(root, os.path.basename(url))


def write_weights(cache: Path) -> None:
    """What the six dimensions would download, under `cache`."""
    from dreamsim.feature_extraction.vision_transformer import vit_base

    vbench = Path(os.environ.get("VBENCH_CACHE_DIR", cache / "vbench"))
    checkpoints = cache / "torch" / "hub" / "checkpoints"
    save(vit_base(patch_size=16).state_dict(), checkpoints / "dino_vitbase16_pretrain.pth")
    for hub in (cache / "torch" / "hub", cache):  # DreamSim's is another one
        write(HUB_DINO, hub / "facebookresearch_dino_main" / "hubconf.py")
        write(HUB_DINOV2, hub / "facebookresearch_dinov2_main" / "hubconf.py")
    save(torch.load(checkpoints / "dino_vitbase16_pretrain.pth"), cache / "checkpoints" / "dino_vitbase16_pretrain.pth")
    write_dinov2(checkpoints)
    write_clip(cache / "clip")
    write_dreamsim(cache)
    write_motion(vbench)
    write_quality(vbench)


def write_dinov2(folder: Path) -> None:
    import timm

    # Its layers start out scaled by 1e-5, which would make all pictures alike.
    model = timm.create_model("vit_base_patch14_dinov2", num_classes=0, dynamic_img_size=True, init_values=1.0)
    save(model.state_dict(), folder / "dinov2_vitb14_pretrain.pth")


def write_clip(folder: Path) -> None:
    """Both CLIPs, as archives of TorchScript like the published ones."""
    from clip.model import CLIP

    folder.mkdir(parents=True, exist_ok=True)
    text = torch.zeros(1, 77, dtype=torch.long)
    image = torch.zeros(1, 3, 224, 224)
    for name, embed, layers, width, patch, heads in (
        ("ViT-B-32", 512, 12, 768, 32, 8),
        ("ViT-L-14", 768, 24, 1024, 14, 12),
    ):
        model = CLIP(embed, 224, layers, width, patch, 77, 49408, embed, heads, 12).eval()
        with torch.no_grad():
            torch.jit.trace(model, (image, text), check_trace=False).save(folder / f"{name}.pt")


def write_dreamsim(cache: Path) -> None:
    """DreamSim's ensemble: three backbones, and LoRA matrices over them."""
    from dreamsim.feature_extraction.vision_transformer import DINOHead, vit_base
    from dreamsim.model import PerceptualModel, dreamsim_args
    from peft import LoraConfig, get_peft_model

    head = {f"module.head.{name}": tensor for name, tensor in DINOHead(768, 2048).state_dict().items()}
    head["module.head.last_layer.weight"] = torch.randn(2048, 256)
    save({"student": head}, cache / "dino_vitb16_pretrain.pth")
    for name in ("clip", "open_clip"):
        model = vit_base(patch_size=16)
        model.pos_drop = torch.nn.LayerNorm(768)
        state = {**model.state_dict(), "proj": 0.02 * torch.randn(768, 512)}
        save({"state_dict": state}, cache / f"{name}_vitb16_pretrain.pth.tar")
    model = PerceptualModel(**dreamsim_args["model_config"]["ensemble"], load_dir=str(cache), device="cpu")
    config = LoraConfig(r=16, lora_alpha=0.5, lora_dropout=0.3, bias="none", target_modules=["qkv"])
    get_peft_model(model, config).save_pretrained(cache / "ensemble_lora")


def write_motion(folder: Path) -> None:
    """AMT for smoothness, RAFT for the dynamic degree."""
    from easydict import EasyDict
    from omegaconf import OmegaConf
    from vbench import __file__ as package
    from vbench.third_party.amt.utils.build_utils import build_from_cfg
    from vbench.third_party.RAFT.core.raft import RAFT

    settings = Path(package).parent / "third_party" / "amt" / "cfgs" / "AMT-S.yaml"
    save({"state_dict": build_from_cfg(OmegaConf.load(settings).network).state_dict()}, folder / "amt_model/amt-s.pth")
    raft = RAFT(EasyDict(small=False, mixed_precision=False, alternate_corr=False))
    state = {f"module.{name}": tensor for name, tensor in raft.state_dict().items()}
    save(state, folder / "raft_model/models/raft-things.pth")


def write_quality(folder: Path) -> None:
    """The aesthetic predictor and MUSIQ, with biases that put their scores between 0 and 1."""
    from pyiqa.archs.musiq_arch import MUSIQ

    aesthetic = torch.nn.Linear(768, 1)
    torch.nn.init.constant_(aesthetic.bias, 5.0)
    save(aesthetic.state_dict(), folder / "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth")
    imaging = MUSIQ(pretrained=False)
    torch.nn.init.constant_(imaging.head.bias, 60.0)
    save(imaging.state_dict(), folder / "pyiqa_model/musiq_spaq_ckpt-358bb6af.pth")


def save(content: dict, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


def write(text: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


if __name__ == "__main__":
    main()
