"""The number formats that devices compute in, and how exactly they do."""

from dataclasses import dataclass

import torch

from training.config import allow_deterministic_cublas


@dataclass(frozen=True)
class Precision:
    """The type of convolutions during training. Weights, transforms and losses stay float32."""

    dtype: torch.dtype

    @classmethod
    def of(cls, device: torch.device, wanted: str | None) -> "Precision":
        """The wanted one of PRECISIONS, else bfloat16 if the device has it natively, float16 on older GPUs, float32."""
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
        """The context of a forward pass. It caches no cast weights: each is used once, and recorded passes share none."""
        return torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32, cache_enabled=False)

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """The scaler that skips steps with gradients that are not finite and, in float16, keeps gradients from underflow."""
        return torch.amp.GradScaler(device.type) if self.scales else torch.amp.GradScaler(device.type, init_scale=1.0)

    @property
    def scales(self) -> bool:
        """True if gradients need a scale, which the scaler finds."""
        return self.dtype == torch.float16

    def update(self, scaler: torch.amp.GradScaler) -> None:
        """Prepare a scaler for the next step: another scale in float16, 1 in the other types."""
        scaler.update(None if self.scales else 1.0)


def prepare(deterministic: bool) -> None:
    """Let GPUs choose their fastest kernels, or those that give the same numbers on every run."""
    if deterministic:
        allow_deterministic_cublas()
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    torch.set_float32_matmul_precision("highest" if deterministic else "high")
