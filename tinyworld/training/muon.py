"""The optimizer of the training."""

from typing import Any

import torch
from torch import nn


class MuonAdamW:
    """Muon for weights that map features to features, kernels flattened to matrices, and AdamW for all else.

    Muon (Jordan et al., 2024) takes steps of AdamW's size here, as in arXiv 2502.16982.
    """

    def __init__(self, matrices: list[nn.Parameter], others: list[nn.Parameter], weight_decay: float = 0.0) -> None:
        self.matrices = matrices
        self.flat = [nn.Parameter(p.data.view(len(p), -1)) for p in matrices]  # share the weights' memory
        self.muon = torch.optim.Muon(self.flat, lr=1e-3, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self.adam = torch.optim.AdamW(others, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)

    def step(self, muon_lr: float, adam_lr: float) -> None:
        """One step with these learning rates; gradients are cleared."""
        for flat, p in zip(self.flat, self.matrices, strict=True):
            flat.grad = None if p.grad is None else p.grad.reshape(len(p), -1)
            p.grad = None
        for optimizer, lr in ((self.muon, muon_lr), (self.adam, adam_lr)):
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
