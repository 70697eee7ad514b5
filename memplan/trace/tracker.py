"""One dispatch mode that sees every operator, and follows each storage to its end."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from memplan.trace.record import Recording

__all__ = ["Run", "Scratch", "Tracker"]

Scratch = Callable[[str, tuple[Any, ...]], int]
"""(operator, arguments) -> bytes that it takes inside."""
Run = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
"""(operator, arguments, named arguments) -> what it returns."""


def _run_as_it_is(operator: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    return operator(*args, **named)


_WHERE = "prim::device"
"""Asks where a tensor is, and makes none: two of three calls."""


def _key(storage: Any) -> int:
    return int(storage._cdata)  # noqa: SLF001 - the same for every view, and nothing public is


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
        self._names: dict[Any, str] = {}
        self._modules = [""]

    def number(self, tensor: Any) -> int | None:
        """Return a tensor's storage by its number, or None when it was never seen."""
        found = self._known.get(_key(tensor.untyped_storage()))
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
        key = _key(storage)
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
    def watching(
        self, model: Any, scratch: Scratch = lambda *_: 0, run: Run = _run_as_it_is
    ) -> Iterator[None]:
        """Watch every operator, and know which module of a model runs.

        Args:
            model: its modules give the names.
            scratch: (operator, arguments) -> bytes that it takes inside while it runs.
            run: runs an operator.
        """
        from torch.nn.modules import module as hooks

        stack = self._modules
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
            with _mode(partial(self._record, scratch=scratch, run=run)):
                yield
        finally:
            for handle in handles:
                handle.remove()
            del stack[1:]

    def _record(
        self,
        operator: Any,
        args: tuple[Any, ...],
        named: dict[str, Any],
        *,
        scratch: Scratch,
        run: Run,
    ) -> Any:
        """Run an operator, with what it takes inside alive beside its results."""
        recording, module = self.recording, self._modules[-1]
        name = self._names.get(operator)
        if name is None:
            name = self._names[operator] = operator._schema.name  # noqa: SLF001 - no public name without overload
        if name == _WHERE:
            return run(operator, args, named)
        hidden = scratch(name, args)
        number = recording.add(hidden, module, operator) if hidden else None
        result = run(operator, args, named)
        if isinstance(result, tuple | list):
            for item in result:
                self._see_all(item if isinstance(item, list) else (item,), operator)
        else:
            self._see_all((result,), operator)
        if number is not None:
            recording.end(number)
        return result

    def _see_all(self, values: Iterable[Any], operator: object) -> None:
        for value in values:
            if hasattr(value, "untyped_storage"):
                self._see(value, operator)


def _mode(record: Run) -> Any:
    """Return a dispatch mode that hands every operator over."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Mode(TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            return record(func, args, kwargs or {})

        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            """Say that nothing compiles here: torch would wrap every call to make sure of it."""
            return False

    return Mode()
