"""The few-step sampler: flow-matching noise levels and one block's denoising."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from utils.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

TRAIN_STEPS = 1000  # timesteps of the schedule that the backbones were trained on


class FlowSchedule:
    """Noise levels sigma(s) = shift * s / (1 + (shift - 1) * s) at timestep 1000 * sigma (arXiv 2403.03206)."""

    def __init__(self, shift: float = 5.0) -> None:
        import torch  # late: the names of the samplers are settings, which are read before torch is

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

    def to_clean(self, flow: "Tensor", noisy: "Tensor", timestep: float) -> "Tensor":
        """x0 = x_t - sigma_t * v, in float64."""
        return (noisy.double() - self.sigma(timestep) * flow.double()).to(flow.dtype)

    def add_noise(self, clean: "Tensor", noise: "Tensor", timestep: float) -> "Tensor":
        """x_t = (1 - sigma_t) * x0 + sigma_t * noise."""
        sigma = self.sigma(timestep)
        return ((1 - sigma) * clean.float() + sigma * noise.float()).to(noise.dtype)


Flow = Callable[["Tensor", float], "Tensor"]  # (noisy latents, timestep) -> predicted flow of the same shape


class Rule(Protocol):
    """One way to walk down the noise levels."""

    def __call__(
        self,
        schedule: FlowSchedule,
        timesteps: Sequence[float],
        flow: Flow,
        noise: "Tensor",
        renoise: Callable[[int], "Tensor"],
    ) -> "Tensor":
        """Denoise `noise` [B, F, C, H, W] to x0, [B, F, C, H, W].

        Args:
            timesteps: falling; `noise` is at the first.
            renoise: step index -> fresh noise for the step after it.
        """


def few_step(
    schedule: FlowSchedule,
    timesteps: Sequence[float],
    flow: Flow,
    noise: "Tensor",
    renoise: Callable[[int], "Tensor"],
) -> "Tensor":
    """Predict x0, add fresh noise of the next level, and so on: what the few-step backbones were distilled for."""
    x = noise
    for step, timestep in enumerate(timesteps):
        clean = schedule.to_clean(flow(x, timestep), x, timestep)
        if step + 1 < len(timesteps):
            x = schedule.add_noise(clean, renoise(step), timesteps[step + 1])
    return clean


def euler(
    schedule: FlowSchedule,
    timesteps: Sequence[float],
    flow: Flow,
    noise: "Tensor",
    renoise: Callable[[int], "Tensor"],
) -> "Tensor":
    """Follow the flow in straight pieces, without fresh noise: x_next = x + (sigma_next - sigma) * v."""
    x = noise
    sigmas = [schedule.sigma(timestep) for timestep in timesteps] + [0.0]
    for timestep, sigma, sigma_next in zip(timesteps, sigmas[:-1], sigmas[1:], strict=True):
        x = (x.double() + (sigma_next - sigma) * flow(x, timestep).double()).to(noise.dtype)
    return x


SAMPLERS: dict[str, Rule] = {"few_step": few_step, "euler": euler}


class Sampler:
    """Denoises blocks by a rule of `SAMPLERS` at the given timesteps."""

    def __init__(self, schedule: FlowSchedule, timesteps: Sequence[float], rule: Rule = few_step) -> None:
        self.schedule, self.timesteps, self.rule = schedule, list(timesteps), rule

    def draft(self, flow: "Tensor", noise: "Tensor") -> "Tensor":
        """The x0 that the first step's flow makes of `noise`; both [B, F, C, H, W]."""
        return self.schedule.to_clean(flow, noise, self.timesteps[0])

    def __call__(self, flow: Flow, noise: "Tensor", renoise: Callable[[int], "Tensor"]) -> "Tensor":
        """A block's clean latents x0 [B, F, C, H, W] from `noise` of that shape; see `Rule`."""
        return self.rule(self.schedule, self.timesteps, flow, noise, renoise)
