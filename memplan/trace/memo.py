"""Operators on fake tensors, each worked out once for arguments of the same shapes.

torch's FakeTensorMode keeps results too, but spends most of a trace on looking them up (torch 2.13:
0.3 ms an operator, here 0.05). What it decides stays: each new combination is asked of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

__all__ = ["Memo"]


class _Unusual(Exception):  # noqa: N818 - says which way to go, not that something failed
    """Arguments or results that are not remembered."""


_PLAIN = (int, float, bool, str)


class Memo:
    """Runs operators under a FakeTensorMode and remembers the shapes of what they return.

    Not remembered: operators on real, complex or sparse tensors or on known constants, those whose
    result depends on values, and those that change the shape of an argument. Numbers that become
    constants, and rows that are filled with them, take a short way of their own: a mask that a
    loop fills row by row has hundreds of thousands.
    """

    def __init__(self, mode: Any) -> None:
        """Begin with nothing.

        Args:
            mode: the FakeTensorMode that is active while operators run.
        """
        import torch
        from torch._subclasses.fake_tensor import FakeTensor
        from torch.utils._mode_utils import no_dispatch

        self._torch = torch
        self._mode = mode
        self._fake = FakeTensor
        self._no_dispatch = no_dispatch
        self._device_of = torch.ops.prim.device.default
        self._lift = torch.ops.aten.lift_fresh.default
        self._fill = torch.ops.aten.fill_.Tensor
        self._values = (type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)
        tags = torch.Tag
        self._varying = {tags.data_dependent_output, tags.dynamic_output_shape, tags.inplace_view}
        self._known: dict[tuple[Any, ...], Callable[[list[Any]], Any] | None] = {}

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what an operator returns."""
        if func is self._device_of and type(args[0]) is self._fake:
            return args[0].fake_device
        if func is self._lift and self._is_number(args[0]):
            return self._constant(args[0])
        if func is self._fill and self._fills(*args):
            return args[0]
        tensors: list[Any] = []
        try:
            key = self._key(func, args, kwargs, tensors)
        except _Unusual:
            return func(*args, **kwargs)
        found = self._known.get(key)
        if found is not None:
            return found(tensors)
        if key in self._known:  # found to be unusual before
            return func(*args, **kwargs)
        before = [self._place(tensor) for tensor in tensors]
        result = func(*args, **kwargs)
        moved = before != [self._place(tensor) for tensor in tensors]
        varies = not self._varying.isdisjoint(getattr(func, "tags", ()))
        again = None
        if not moved and not varies:
            with contextlib.suppress(_Unusual):
                again = self._again(result, tensors, [place[0] for place in before])
        self._known[key] = again
        return result

    def _is_number(self, value: Any) -> bool:
        """Say whether a value is what torch makes of a number: real, without dimensions."""
        plain = type(value) is self._torch.Tensor and not value.dim()
        return plain and value.device.type == "cpu" and not value.requires_grad

    def _constant(self, number: Any) -> Any:
        """Return a number as a fake tensor whose value is known, as FakeTensorMode does."""
        with self._no_dispatch():
            plain = self._torch.empty((), dtype=number.dtype, device="meta")
            made = self._fake(self._mode, plain, number.device, constant=number.clone())
        self._mode.fake_tensor_converter.add_constant_storage_mapping(made)
        return made

    def _fills(self, filled: Any, value: Any) -> bool:
        """Say whether a tensor of unknown values is filled with a number, known or not."""
        fakes = type(filled) is self._fake and type(value) is self._fake
        return fakes and filled.constant is None and not value.dim()

    def _place(self, tensor: Any) -> tuple[Any, ...]:
        storage = tensor.untyped_storage()
        return storage._cdata, tensor.shape, tensor.stride(), tensor.storage_offset()  # noqa: SLF001 - as in tracker

    def _key(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Any]
    ) -> tuple[Any, ...]:
        """Return what decides the result, and put the tensors among the arguments in order."""
        torch = self._torch
        key = [func, torch.get_default_dtype(), torch.is_inference_mode_enabled()]
        self._describe(args, key, tensors)
        if kwargs:
            key.append(tuple(kwargs))
            self._describe(kwargs.values(), key, tensors)
        if len(tensors) > 1:
            storages = [tensor.untyped_storage()._cdata for tensor in tensors]  # noqa: SLF001
            if len(set(storages)) < len(storages):
                key.append(tuple(storages.index(storage) for storage in storages))
        return tuple(key)

    def _describe(self, values: Any, key: list[Any], tensors: list[Any]) -> None:
        """Add what is seen of each value to a key. Raises _Unusual."""
        for value in values:
            kind = type(value)
            if kind is self._fake:
                self._describe_tensor(value, key)
                tensors.append(value)
            elif kind in _PLAIN:
                key += (kind, value)
            elif kind in self._values:
                key.append(value)
            elif kind is list or kind is tuple:
                key += (kind, len(value))
                self._describe(value, key, tensors)
            else:
                raise _Unusual

    def _describe_tensor(self, tensor: Any, key: list[Any]) -> None:
        dtype = tensor.dtype
        if (
            tensor.constant is not None
            or tensor.layout is not self._torch.strided
            or dtype.is_complex
        ):
            raise _Unusual
        key += (
            tensor.shape,
            tensor.stride(),
            tensor.storage_offset(),
            dtype,
            tensor.fake_device,
            tensor.requires_grad,
        )

    def _again(
        self, result: Any, tensors: list[Any], storages: list[int]
    ) -> Callable[[list[Any]], Any]:
        """Return what makes a result like this one from other tensors. Raises _Unusual."""
        if isinstance(result, list | tuple):
            kind = type(result)
            if kind not in (list, tuple):
                raise _Unusual
            seen = set(storages)
            parts = []
            for item in result:
                parts.append(self._one(item, tensors, storages))
                if type(item) is self._fake:
                    own = item.untyped_storage()._cdata  # noqa: SLF001
                    if own in seen and own not in storages:
                        raise _Unusual  # two results share a new storage
                    seen.add(own)
            return lambda given: kind([part(given) for part in parts])
        return self._one(result, tensors, storages)

    def _one(
        self, result: Any, tensors: list[Any], storages: list[int]
    ) -> Callable[[list[Any]], Any]:
        if result is None or type(result) in _PLAIN:
            return lambda _: result
        for index, tensor in enumerate(tensors):
            if result is tensor:
                return lambda given: given[index]
        if type(result) is not self._fake:
            raise _Unusual
        self._describe_tensor(result, [])
        storage = result.untyped_storage()
        if storage._cdata in storages:  # noqa: SLF001
            return self._view(result, storages.index(storage._cdata))  # noqa: SLF001
        if result.storage_offset() or result.requires_grad:
            raise _Unusual
        return self._fresh(result)

    def _fresh(self, like: Any) -> Callable[[list[Any]], Any]:
        shape, stride, dtype = like.shape, like.stride(), like.dtype
        fake, mode, device = self._fake, self._mode, like.fake_device
        empty, no_dispatch = self._torch.empty_strided, self._no_dispatch
        if empty(shape, stride, dtype=dtype, device="meta").untyped_storage().nbytes() != (
            like.untyped_storage().nbytes()
        ):
            raise _Unusual

        def make(_: list[Any]) -> Any:
            with no_dispatch():
                plain = empty(shape, stride, dtype=dtype, device="meta")
                return fake(mode, plain, device)

        return make

    def _view(self, like: Any, index: int) -> Callable[[list[Any]], Any]:
        shape, stride, dtype = like.shape, like.stride(), like.dtype
        offset, device = like.storage_offset(), like.fake_device
        fake, mode, empty = self._fake, self._mode, self._torch.empty
        no_dispatch = self._no_dispatch

        def make(given: list[Any]) -> Any:
            storage = given[index].untyped_storage()
            with no_dispatch():
                plain = empty(0, dtype=dtype, device="meta").set_(storage, offset, shape, stride)
                return fake(mode, plain, device)

        return make
