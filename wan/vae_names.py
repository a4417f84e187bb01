"""Wan's own names and sizes of its two video autoencoders, for files that come without diffusers' configuration."""

import re
from collections.abc import Mapping

import torch
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

from utils.errors import UserError

# Configurations of diffusers' AutoencoderKLWan by channels of the latents; its defaults are those of Wan2.1.
# Widths are left out: they are read off the file. Wan2.2's are those of Wan-AI/Wan2.2-TI2V-5B-Diffusers.
PUBLISHED: dict[int, dict] = {
    16: {},
    48: {
        "z_dim": 48,
        "dim_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "temperal_downsample": [False, True, True],
        "is_residual": True,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_spatial": 16,
        "scale_factor_temporal": 4,
        "latents_mean": [
            -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
            0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
            -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
            -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
        ],
        "latents_std": [
            0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
            0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
            0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
            0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
        ],
    },
}  # fmt: skip

# Wan2.2's names -> diffusers', in this order. Wan2.1 has one list of layers where Wan2.2 has lists in lists.
RESIDUAL_NAMES = {
    r"^conv1\.": "quant_conv.",
    r"^conv2\.": "post_quant_conv.",
    r"^(encoder|decoder)\.conv1\.": r"\1.conv_in.",
    r"\.head\.0\.": ".norm_out.",
    r"\.head\.2\.": ".conv_out.",
    r"\.middle\.0\.": ".mid_block.resnets.0.",
    r"\.middle\.1\.": ".mid_block.attentions.0.",
    r"\.middle\.2\.": ".mid_block.resnets.1.",
    r"\.downsamples\.(\d+)\.downsamples\.\d+\.(resample|time_conv)\.": r".down_blocks.\1.downsampler.\2.",
    r"\.upsamples\.(\d+)\.upsamples\.\d+\.(resample|time_conv)\.": r".up_blocks.\1.upsampler.\2.",
    r"\.downsamples\.(\d+)\.downsamples\.(\d+)\.": r".down_blocks.\1.resnets.\2.",
    r"\.upsamples\.(\d+)\.upsamples\.(\d+)\.": r".up_blocks.\1.resnets.\2.",
    r"\.residual\.0\.": ".norm1.",
    r"\.residual\.2\.": ".conv1.",
    r"\.residual\.3\.": ".norm2.",
    r"\.residual\.6\.": ".conv2.",
    r"\.shortcut\.": ".conv_shortcut.",
}


def to_diffusers(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An autoencoder's tensors under diffusers' names, from Wan's own; those that have them already keep them."""
    if "encoder.conv1.weight" not in tensors:
        return dict(tensors)
    if not any(".upsamples.0.upsamples." in key for key in tensors):
        return convert_wan_vae_to_diffusers(dict(tensors))
    renamed = {}
    for key, tensor in tensors.items():
        for theirs, ours in RESIDUAL_NAMES.items():
            key = re.sub(theirs, ours, key)
        renamed[key] = tensor
    return renamed


def config_from_shapes(tensors: Mapping[str, torch.Tensor], source: str) -> dict:
    """diffusers' configuration for tensors under its names: a published one, of the widths that the tensors have.

    Raises:
        UserError: they are no Wan autoencoder's, or of neither of the two.
    """
    try:
        channels = tensors["post_quant_conv.weight"].shape[0]
        widths = {
            "base_dim": tensors["encoder.conv_in.weight"].shape[0],
            "decoder_base_dim": tensors["decoder.norm_out.gamma"].shape[0],
        }
    except (KeyError, AttributeError, IndexError) as error:
        raise UserError(f"{source} holds no Wan VAE; delete it and get it again") from error
    if channels not in PUBLISHED:
        raise UserError(
            f"{source} makes latents of {channels} channels, and without diffusers' config.json only VAEs of "
            f"{' and '.join(map(str, PUBLISHED))} are known; use the model's vae/ folder in diffusers' form"
        )
    return PUBLISHED[channels] | widths
