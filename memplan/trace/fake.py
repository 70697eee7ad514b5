"""A model whose tensors have shapes and no memory: built on meta, then fake CPU tensors.

Building inside the fake mode itself fails for adapters (`Module.to` swaps tensors that are
watched), and meta tensors fail where a cache makes a tensor of its own. Fake CUDA tensors need a
CUDA build and fail in the backward pass on a machine without a GPU.
"""

from __future__ import annotations

from typing import Any

__all__ = ["fake_mode", "materialise"]


def fake_mode() -> Any:
    """Return a mode in which tensors have no memory."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


def materialise(model: Any, mode: Any) -> None:
    """Replace every parameter and buffer on meta by a fake CPU tensor; ties stay ties."""
    import torch

    made: dict[int, Any] = {}

    def fake(tensor: Any) -> Any:
        if id(tensor) not in made:
            with mode:
                plain = torch.empty_strided(
                    tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu"
                )
            if isinstance(tensor, torch.nn.Parameter):
                plain = torch.nn.Parameter(plain, requires_grad=tensor.requires_grad)
            made[id(tensor)] = plain
        return made[id(tensor)]

    for module in model.modules():
        for group in (module._parameters, module._buffers):  # noqa: SLF001 - what is replaced
            for name, tensor in group.items():
                if tensor is not None:
                    group[name] = fake(tensor)
