"""Models of any size with random weights: enough to measure time and memory."""

SIZES = {  # sizes of the transformer that differ from those of Wan2.1-T2V-1.3B
    "tinyworld": {
        "dim": 128,
        "ffn_dim": 512,
        "num_heads": 4,
        "num_layers": 6,
        "freq_dim": 64,
        "text_dim": 64,
        "text_len": 32,
    },
    "small": {"dim": 384, "ffn_dim": 1536, "num_heads": 6, "num_layers": 6},
    "1.3b": {},
    "14b": {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40},
}
MINIATURE_VAE = {  # of tinyworld and small; the others have Wan's
    "base_dim": 24,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
}

PROMPT = 128  # tokens of a prompt, a long one


def make_text(params, batch: int = 1, device="cpu", dtype=None):
    """Embeddings of prompts [batch, text_len, text_dim], with zeros after each as a text encoder gives them."""
    import torch

    text = torch.randn(batch, params.text_len, params.text_dim, device=device, dtype=dtype)
    text[:, PROMPT:] = 0
    return text


def make_model(size: str, device, dtype):
    """A frozen transformer, as runs have it."""
    import torch  # late, as below: names of sizes are needed before

    from wan.model import CausalWanModel

    with torch.device(device):
        model = CausalWanModel(**SIZES[size]).to(dtype).eval().requires_grad_(False)
    model.fuse_projections()
    return model


def format_of(size: str):
    """The latents that go with a transformer of that size."""
    from wan.params import LatentFormat, latent_format

    return latent_format(_vae_sizes(size)) if _vae_sizes(size) else LatentFormat()


def _vae_sizes(size: str) -> dict:
    return MINIATURE_VAE if size in ("tinyworld", "small") else {}


def make_vae(kind: str, size: str, device, dtype):
    """The frozen video autoencoder, full or tiny, that goes with a transformer of that size."""
    import torch
    from diffusers import AutoencoderKLWan

    from wan.taehv import TAEHV
    from wan.vae_decoder import lay_out

    with torch.device(device):
        vae = TAEHV() if kind == "tiny" else AutoencoderKLWan(**_vae_sizes(size))
    if kind == "full":
        lay_out(vae)
    return vae.to(dtype).eval().requires_grad_(False)
