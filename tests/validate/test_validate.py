"""memplan.validate: the shipped measurements, and the arithmetic of the table."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from memplan.errors import SchemaError
from memplan.validate.cases import read_cases
from memplan.validate.predict import predict
from memplan.validate.table import rows

ROOT = Path(__file__).parent.parent.parent
REFERENCE = ROOT / "tests" / "reference"
TINY = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 100,
    "dtype": "bfloat16",
}


def write(tmp_path, *cases):
    path = tmp_path / "cases.jsonl"
    lines = [case if isinstance(case, str) else json.dumps(case) for case in cases]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def case(**changes):
    return {
        "id": "a",
        "model": {"config": TINY},
        "options": {"context": 16},
        "quantity": "kv_cache",
        "per": "model",
        "measured_bytes": 4096,
        "source": "by hand",
        **changes,
    }


@pytest.fixture(scope="module")
def shipped():
    return rows([predict(c) for c in read_cases(REFERENCE / "inference.jsonl")])


@pytest.mark.models
def test_the_readme_shows_the_table_of_the_shipped_measurements(shipped):
    """Printed by `make docs`, never typed."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert generate.accuracy_table(shipped) in readme


@pytest.mark.models
def test_the_shipped_measurements_are_met(shipped):
    """The promise of the README, from published logs and tables."""
    table = {(row.quantity, row.runtime): row for row in shipped}
    assert sum(row.cases for row in table.values()) > 100
    for (quantity, runtime), row in table.items():
        assert row.unsafe == 0, (quantity, runtime)
        assert row.refused == 0, (quantity, runtime)
        if quantity in ("weights", "parameters"):
            assert row.p90 == 0.0, (quantity, runtime)
        if quantity == "kv_cache":
            assert row.median == 0.0
            assert row.p90 < 0.01
        if quantity == "total":
            assert row.median < 0.08
    assert table["activations", "llama.cpp"].median < 0.1


@pytest.mark.models
def test_a_case_is_predicted_with_its_error_and_band(tmp_path):
    """2 layers x 2 heads x 16 elements x 2 tensors x 2 bytes x 16 tokens = 4096 bytes."""
    exact, high = (
        predict(c) for c in read_cases(write(tmp_path, case(), case(id="b", measured_bytes=8192)))
    )
    assert (exact.value, exact.error, exact.within, exact.unsafe) == (4096, 0.0, True, False)
    assert (high.error, high.within, high.unsafe) == (-0.5, False, True)


@pytest.mark.models
def test_an_error_below_the_resolution_is_none(tmp_path):
    """A printed 4.1 kB tells no more than its digits."""
    (one,) = (
        predict(c) for c in read_cases(write(tmp_path, case(measured_bytes=4100, tolerance=0.01)))
    )
    assert one.error == 0.0
    assert not one.unsafe


@pytest.mark.models
def test_what_cannot_be_planned_is_counted_and_named(tmp_path):
    """An unknown option is a refusal, never a silent guess."""
    (one,) = (predict(c) for c in read_cases(write(tmp_path, case(options={"magic": 1}))))
    assert one.value is None
    assert "magic" in one.problem
    (row,) = rows([one])
    assert (row.cases, row.refused, row.median) == (0, 1, None)


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"id": 1}',
        json.dumps(case(quantity="speed")),
        json.dumps(case(measured_bytes=-1)),
        json.dumps(case(measured_bytes="many")),
        json.dumps(case(per="rack")),
        '{"id": "x", "measured_bytes": NaN}',
    ],
)
def test_a_line_that_is_no_case_is_named_by_its_number(tmp_path, line):
    """One error with file and line."""
    with pytest.raises(SchemaError, match=r"cases\.jsonl:2"):
        read_cases(write(tmp_path, case(), line))
