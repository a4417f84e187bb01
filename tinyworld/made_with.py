"""What a measurement makes its videos with, where that is not what their configs say."""

from dataclasses import dataclass
from typing import Any

from utils.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class MadeWith(Settings):
    """Noise, weights and steps of a measurement's videos"""

    seed: int = setting(0, "seed of the noise", at_least=0, at_most=2**63 - 1)
    model_root: str | None = setting(None, "folder of the model's parts, instead of the configs' own")
    generator_ckpt: str | None = setting(None, "the transformer's weights, instead of the configs' own")
    steps: list[int] | None = setting(None, "denoising steps, instead of the configs' own", at_least=1, at_most=1000)

    def overrides(self) -> dict[str, Any]:
        """The same as settings of a run."""
        found: dict[str, Any] = {"seed": self.seed}
        if self.model_root is not None:
            found["model_root"] = self.model_root
        if self.generator_ckpt is not None:
            found["generator_ckpt"] = self.generator_ckpt
        if self.steps is not None:
            found["denoising_step_list"] = self.steps
        return found
