"""Whether a training fits the memory and the disk, before any work."""

import psutil
import torch

from ae.model import LatentAE
from ae.settings import TrainSettings
from utils.errors import UserError
from utils.files import require_writable


def require_room(settings: TrainSettings) -> None:
    """Refuse a model whose training fits neither the memory nor the disk."""
    with torch.device("meta"):
        model = LatentAE(settings.params)
    model_bytes = sum(parameter.nbytes for parameter in model.parameters())
    state_bytes = 3 * model_bytes  # the optimizer keeps two numbers a weight
    available = psutil.virtual_memory().available
    if state_bytes + model_bytes > available:  # and a gradient a weight
        raise UserError(
            f"training a model of latent_dim {settings.latent_dim} and hidden_dims {list(settings.hidden_dims)} needs "
            f"{4 * model_bytes / 1e9:.1f} GB and {available / 1e9:.1f} GB of memory are free; choose smaller sizes"
        )
    kept = settings.epochs // settings.save_every if settings.save_every else 0
    written = 3 + kept  # best, last, and the one being written
    require_writable(settings.folder, need_bytes=written * state_bytes)
