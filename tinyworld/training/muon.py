"""The optimizer of the training."""

from typing import Any

import torch
from torch import nn

QUINTIC = (3.4445, -4.7750, 2.0315)  # coefficients of a Newton-Schulz step (Jordan et al., 2024)


class MuonAdamW:
    """Muon for weights that map features to features, kernels flattened to matrices, and AdamW for all else.

    Muon (Jordan et al., 2024) takes steps of AdamW's size here, as in arXiv 2502.16982.
    """

    def __init__(self, matrices: list[nn.Parameter], others: list[nn.Parameter], weight_decay: float = 0.0) -> None:
        self.matrices = matrices
        self.flat = [nn.Parameter(p.data.view(len(p), -1)) for p in matrices]  # share the weights' memory
        self.muon = Muon(self.flat, lr=1e-3, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
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


class Muon(torch.optim.Muon):
    """PyTorch's, with float32 products and matrices of one shape together.

    PyTorch's are bfloat16 on any machine, which on a CPU without such products takes four fifths of a step's time.
    """

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for shape, parameters in by_shape.items():
                ways = torch.stack([self._way(p, group["momentum"]) for p in parameters])
                size = 0.2 * max(shape) ** 0.5  # of AdamW's steps, arXiv 2502.16982
                for p, way in zip(parameters, orthogonal(ways), strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(way, alpha=-group["lr"] * size)

    def _way(self, p: nn.Parameter, momentum: float) -> torch.Tensor:
        """Nesterov's momentum of the gradient."""
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p.grad)
        average = state["momentum_buffer"].lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(average, momentum)


def orthogonal(x: torch.Tensor) -> torch.Tensor:
    """Matrices [..., rows, columns] with their singular values brought near 1, in five Newton-Schulz steps."""
    if x.shape[-2] > x.shape[-1]:
        return orthogonal(x.mT).mT
    a, b, c = QUINTIC
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x
