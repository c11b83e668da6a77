"""What devices compute in, and how exactly."""

from dataclasses import dataclass

import torch

from training.config import allow_deterministic_cublas


@dataclass(frozen=True)
class Precision:
    """The type that convolutions compute in during training; weights, transforms and losses stay float32."""

    dtype: torch.dtype

    @classmethod
    def of(cls, device: torch.device, wanted: str | None) -> "Precision":
        """The wanted one of PRECISIONS, else bfloat16 where the device has it natively, float16 on older GPUs, float32."""
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
        """Without a cache of cast weights: each is used once in a pass, and a recorded pass may not share them."""
        return torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32, cache_enabled=False)

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """Keeps float16 gradients from underflow; does nothing in the other types."""
        return torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)


def prepare(deterministic: bool) -> None:
    """Let GPUs choose their fastest kernels, or those that give the same numbers on every run."""
    if deterministic:
        allow_deterministic_cublas()
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    torch.set_float32_matmul_precision("highest" if deterministic else "high")
