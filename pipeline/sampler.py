"""The few-step sampler: flow-matching noise levels and one block's denoising."""

from collections.abc import Callable, Sequence

import torch

from utils.errors import UserError

TRAIN_STEPS = 1000  # timesteps of the schedule that the backbones were trained on


class FlowSchedule:
    """Noise levels sigma(s) = shift * s / (1 + (shift - 1) * s) at timestep 1000 * sigma (arXiv 2403.03206)."""

    def __init__(self, shift: float = 5.0) -> None:
        s = torch.linspace(1.0, 0.0, TRAIN_STEPS + 1)[:-1]
        self.sigmas = shift * s / (1 + (shift - 1) * s)
        self.timesteps = self.sigmas * TRAIN_STEPS

    def steps(self, step_list: Sequence[int], warp: bool) -> list[float]:
        """Timesteps of the sampler's steps; `warp` reads the list as unshifted times and shifts them."""
        if not step_list or not all(0 < step <= TRAIN_STEPS for step in step_list):
            raise UserError(f"denoising_step_list {list(step_list)} must name steps from 1 to {TRAIN_STEPS}")
        if list(step_list) != sorted(set(step_list), reverse=True):
            raise UserError(f"denoising_step_list {list(step_list)} must fall from step to step")
        return [self.timesteps[TRAIN_STEPS - step].item() if warp else float(step) for step in step_list]

    def sigma(self, timestep: float) -> float:
        """Noise level of the table's nearest timestep."""
        return self.sigmas[(self.timesteps - timestep).abs().argmin()].item()

    def to_clean(self, flow: torch.Tensor, noisy: torch.Tensor, timestep: float) -> torch.Tensor:
        """x0 = x_t - sigma_t * v, in float64."""
        return (noisy.double() - self.sigma(timestep) * flow.double()).to(flow.dtype)

    def add_noise(self, clean: torch.Tensor, noise: torch.Tensor, timestep: float) -> torch.Tensor:
        """x_t = (1 - sigma_t) * x0 + sigma_t * noise."""
        sigma = self.sigma(timestep)
        return ((1 - sigma) * clean.float() + sigma * noise.float()).to(noise.dtype)


class Sampler:
    """Denoises a block in a few steps with fresh noise between them."""

    def __init__(self, schedule: FlowSchedule, timesteps: Sequence[float]) -> None:
        self.schedule, self.timesteps = schedule, list(timesteps)

    def __call__(
        self,
        flow: Callable[[torch.Tensor, float], torch.Tensor],
        noise: torch.Tensor,
        renoise: Callable[[int], torch.Tensor],
    ) -> torch.Tensor:
        """Denoise `noise` [B, F, C, H, W].

        Args:
            flow: (noisy latents, timestep) -> predicted flow of the same shape.
            renoise: step index -> fresh noise for the step after it.

        Returns:
            The last step's clean prediction x0, [B, F, C, H, W].
        """
        x = noise
        for step, timestep in enumerate(self.timesteps):
            clean = self.schedule.to_clean(flow(x, timestep), x, timestep)
            if step + 1 < len(self.timesteps):
                x = self.schedule.add_noise(clean, renoise(step), self.timesteps[step + 1])
        return clean
