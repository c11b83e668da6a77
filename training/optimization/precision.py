"""Number formats of training, and how exactly devices compute in them."""

from dataclasses import dataclass

import torch

from training.config import allow_deterministic_cublas


@dataclass(frozen=True)
class Precision:
    """The type of convolutions in training. Weights, transforms and losses stay float32."""

    dtype: torch.dtype

    @classmethod
    def of(cls, device: torch.device, wanted: str | None) -> "Precision":
        """The `wanted` one of PRECISIONS; else bfloat16 where it is native, float16 on older GPUs, float32 on other CPUs."""
        if wanted is not None:
            return cls(getattr(torch, wanted))
        if device.type == "cuda":
            return cls(torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16)
        native = torch.cpu.get_capabilities()
        return cls(torch.bfloat16 if native.get("avx512_bf16") or native.get("amx_bf16") else torch.float32)

    @property
    def name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context of a forward pass. It caches no cast weights: each is used once, and CUDA graphs cannot share them."""
        return torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32, cache_enabled=False)

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """The gradient scaler: skips steps whose gradients are not finite and, in float16, prevents underflow."""
        return torch.amp.GradScaler(device.type) if self.scales else torch.amp.GradScaler(device.type, init_scale=1.0)

    @property
    def scales(self) -> bool:
        """True if gradients are scaled, by a factor that the scaler finds."""
        return self.dtype == torch.float16

    def update(self, scaler: torch.amp.GradScaler) -> None:
        """Set the scale for the next step: the scaler's choice in float16, 1 otherwise."""
        scaler.update(None if self.scales else 1.0)


def prepare(deterministic: bool) -> None:
    """Let GPUs use their fastest kernels or, if `deterministic`, those that always give the same numbers."""
    if deterministic:
        allow_deterministic_cublas()
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    torch.set_float32_matmul_precision("highest" if deterministic else "high")
