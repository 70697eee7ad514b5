"""One dispatch mode that sees every operator, and follows each storage to its end."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from memplan.trace.record import Recording

__all__ = ["Scratch", "Tracker"]

Scratch = Callable[[str, tuple[Any, ...]], int]
"""(operator, arguments) -> bytes that it takes inside."""


class Tracker:
    """Writes the storages of everything that runs inside `watching()` into a Recording.

    What bypasses the dispatcher is not seen: scratch inside a kernel. Real and fake tensors are
    followed alike.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.recording = Recording()
        """What was seen."""
        self._known: dict[int, tuple[int, Any]] = {}
        self._modules = [""]

    def number(self, tensor: Any) -> int | None:
        """Return a tensor's storage by its number, or None when it was never seen."""
        found = self._known.get(tensor.untyped_storage()._cdata)
        return found[0] if found else None

    def add(self, tensors: Iterable[Any], label: str = "", operator: str = "") -> None:
        """Take in tensors that exist already."""
        for tensor in tensors:
            self._see(tensor, operator)
            self.label([tensor], label)

    def label(self, tensors: Iterable[Any], label: str) -> None:
        """Say what tensors are."""
        for tensor in tensors:
            number = self.number(tensor)
            if number is not None and label:
                self.recording.blocks[number].label = label

    def _see(self, tensor: Any, operator: object) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        if not size:
            return
        number = self.recording.add(size, self._modules[-1], operator)
        self._known[key] = number, weakref.ref(storage, self._forget(key, number))

    def _forget(self, key: int, number: int) -> Callable[[Any], None]:
        def forget(_: Any) -> None:
            found = self._known.get(key)
            if found is not None and found[0] == number:
                del self._known[key]
                self.recording.end(number)

        return forget

    @contextmanager
    def watching(self, model: Any, scratch: Scratch = lambda *_: 0) -> Iterator[None]:
        """Watch every operator, and know which module of a model runs.

        Args:
            model: its modules give the names.
            scratch: (operator, arguments) -> bytes that it takes inside while it runs.
        """
        import torch
        from torch.nn.modules import module as hooks
        from torch.utils._python_dispatch import TorchDispatchMode

        self_, see, stack, tensor_type = self, self._see, self._modules, torch.Tensor

        class Mode(TorchDispatchMode):
            def __torch_dispatch__(  # noqa: PLW3201 - torch's name
                self, func: Any, types: Any, args: Any = (), kwargs: Any = None
            ) -> Any:
                hidden = scratch(func._schema.name, args)
                number = self_.recording.add(hidden, stack[-1], func) if hidden else None
                result = func(*args, **(kwargs or {}))
                if isinstance(result, tensor_type):
                    see(result, func)
                elif isinstance(result, tuple | list):
                    for item in result:
                        if isinstance(item, tensor_type):
                            see(item, func)
                        elif isinstance(item, list):
                            for one in item:
                                see(one, func)
                if number is not None:
                    self_.recording.end(number)
                return result

        names = {id(module): name for name, module in model.named_modules()}

        def enter(module: Any, _: Any) -> None:
            stack.append(names.get(id(module), stack[-1]))

        def leave(*_: Any) -> None:
            if len(stack) > 1:
                stack.pop()

        handles = [
            hooks.register_module_forward_pre_hook(enter),
            hooks.register_module_forward_hook(leave, always_call=True),
        ]
        try:
            with Mode():
                yield
        finally:
            for handle in handles:
                handle.remove()
            del stack[1:]
