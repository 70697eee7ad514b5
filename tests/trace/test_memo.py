"""Operators remembered by the shapes of their arguments: nothing may come out otherwise."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.models


class Counting:
    """An operator that counts how often it really runs."""

    def __init__(self, operator):
        self.operator, self.runs = operator, 0
        self.tags = operator.tags

    def __call__(self, *args, **named):
        self.runs += 1
        return self.operator(*args, **named)


@pytest.fixture
def fakes():
    """(mode, memo) with the mode active."""
    from memplan.trace.fake import fake_mode
    from memplan.trace.memo import Memo

    mode = fake_mode()
    with mode:
        yield mode, Memo(mode)


def facts(tensor):
    storage = tensor.untyped_storage()
    place = (tuple(tensor.shape), tensor.stride(), tensor.storage_offset(), storage.nbytes())
    return (*place, tensor.dtype, str(tensor.device), tensor.requires_grad, type(tensor).__name__)


def operators():
    """Operators with their arguments: fresh, view, in place, several results, no tensor."""
    import torch

    aten = torch.ops.aten
    x = torch.empty(4, 6, dtype=torch.bfloat16)
    y = torch.empty(4, 6)
    return [
        (aten.add.Tensor, (x, y), {}),
        (aten.mul.Tensor, (x, 2), {}),
        (aten.mm.default, (x, x.t()), {}),
        (aten.transpose.int, (x, 0, 1), {}),
        (aten.slice.Tensor, (x, 1, 2, 5), {}),
        (aten.add_.Tensor, (y, x), {}),
        (aten.split.Tensor, (x, 2, 1), {}),
        (aten.topk.default, (y, 3), {}),
        (aten.native_layer_norm.default, (y, [6], None, None, 1e-5), {}),
        (aten._to_copy.default, (x,), {"dtype": torch.float32}),
        (aten.zeros.default, ([3, 5],), {"dtype": torch.int64}),
        (aten.empty_like.default, (x.t(),), {}),
    ]


def test_the_second_answer_is_like_the_first_and_costs_no_run(fakes):
    """Shapes, strides, storage sizes, dtype and device, of each result."""
    _, memo = fakes
    for operator, args, named in operators():
        counting = Counting(operator)
        first = memo.run(counting, args, named)
        again = memo.run(counting, args, named)
        assert counting.runs == 1, operator
        pairs = (
            zip(first, again, strict=True) if isinstance(first, tuple | list) else [(first, again)]
        )
        for one, other in pairs:
            assert facts(one) == facts(other), operator
        assert type(first) is type(again)


def test_a_view_shares_its_argument_and_a_result_in_place_is_its_argument(fakes):
    """So that a storage lives as long as all that look at it."""
    import torch

    _, memo = fakes
    aten = torch.ops.aten
    for _ in range(2):
        x = torch.empty(4, 6)
        view = memo.run(aten.transpose.int, (x, 0, 1), {})
        assert view.untyped_storage()._cdata == x.untyped_storage()._cdata
        assert memo.run(aten.add_.Tensor, (x, 1), {}) is x
        fresh = memo.run(aten.add.Tensor, (x, 1), {})
        assert fresh.untyped_storage()._cdata != x.untyped_storage()._cdata


def test_what_looks_equal_and_is_not_is_told_apart(fakes):
    """1, 1.0 and True; an argument twice and two of the same shape; inference mode."""
    import torch

    _, memo = fakes
    aten = torch.ops.aten
    x = torch.empty(3, dtype=torch.int64)
    kinds = [memo.run(aten.mul.Tensor, (x, value), {}).dtype for value in (2, 2.0, True, 1, 1.0)]
    assert kinds == [torch.int64, torch.float32, torch.int64, torch.int64, torch.float32]
    a, b = torch.empty(2, 2), torch.empty(2, 2)
    counting = Counting(aten.mm.default)
    memo.run(counting, (a, a), {})
    memo.run(counting, (a, b), {})
    assert counting.runs == 2
    with torch.inference_mode():
        c = torch.empty(2, 2)
        memo.run(counting, (c, c), {})
    assert counting.runs == 3


def test_what_depends_on_values_runs_each_time(fakes):
    """Known constants, shapes that change in place, and real tensors."""
    import torch

    _, memo = fakes
    aten = torch.ops.aten
    constant = torch.tensor(3.0)
    assert constant.constant is not None
    counting = Counting(aten.add.Tensor)
    for _ in range(2):
        assert memo.run(counting, (constant, 1), {}).item() == 4.0
    assert counting.runs == 2
    counting = Counting(aten.squeeze_.default)
    for _ in range(2):
        assert memo.run(counting, (torch.empty(1, 2),), {}).shape == (2,)
    assert counting.runs == 2


def test_a_number_keeps_its_value_until_it_is_written_to(fakes):
    """As FakeTensorMode's own: known, a scalar on the host, unknown once something is added."""
    import torch

    mode, memo = fakes
    aten = torch.ops.aten
    for value in (3.0, 7, True):
        with memo._no_dispatch():
            real = torch.tensor(value)
        number = memo.run(aten.lift_fresh.default, (real,), {})
        assert facts(number) == facts(mode.fake_tensor_converter.from_real_tensor(mode, real))
        assert number.item() == value
    assert memo.run(aten.add.Tensor, (number, 1), {}).item() == 2
    number.logical_or_(torch.empty((), dtype=torch.bool))
    with pytest.raises(torch._subclasses.fake_tensor.DataDependentOutputException):
        number.item()


def test_filling_returns_what_is_filled_and_forgets_its_value(fakes):
    """A row and a constant; what is no number goes the long way."""
    import torch

    _, memo = fakes
    fill = torch.ops.aten.fill_.Tensor
    row, number = torch.empty(4, 6)[2], torch.tensor(0.5)
    assert memo.run(fill, (row, number), {}) is row
    known = torch.tensor(1.0)
    assert memo.run(fill, (known, torch.empty(())), {}) is known
    assert known.constant is None
    with pytest.raises(RuntimeError, match="0-dimension"):
        memo.run(fill, (row, torch.empty(2)), {})
