"""The highest moment of FSDP2's steps: real ranks on gloo beside the plan."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import fsdp_peak_worker
import pytest

from memplan.footprint.defaults import complete
from memplan.footprint.optimizer import OPTIMIZERS
from memplan.models.load import load_model
from memplan.parallel.moments import rank_line
from memplan.parallel.shard import shard
from memplan.parallel.types import ShardOptions
from memplan.trace.estimate import TraceEstimator

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 384,
    "intermediate_size": 1000,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 12007,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
    "dtype": "float32",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    (path / "config.json").write_text(json.dumps(CONFIG))
    return path


@pytest.fixture(scope="module", params=[1, 2, 4])
def ran(request, folder):
    """Start real processes once; return (ranks, what rank 0 took, by case)."""
    (folder / "g").unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, fsdp_peak_worker.__file__, str(folder), str(request.param)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, **fsdp_peak_worker.MALLOC},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return request.param, json.loads((folder / "0.json").read_text())


def planned(folder, ranks, case, *, gloo):
    """Return a plan's bytes of one rank: weights and states, and the highest sum."""
    precision = "bf16-mixed" if case.get("mixed") else "fp32"
    options = {"task": "train", "seq": case["seq"], "precision": precision, "estimator": "trace"}
    spec = load_model(str(folder), dtype="float32", options=options)
    work = complete({**options, "strategy": "fsdp2", "gpus": ranks}, spec)
    kinds = ShardOptions(gloo=gloo, embedding_groups=bool(case["groups"]))
    one = shard(spec.tensors, work, OPTIMIZERS["adamw"][0], options=kinds, rank=0)
    whole = sum(t.bytes for t in spec.tensors if t.kind == "parameter")
    moments = TraceEstimator().moments(spec, work, gradients=whole, kind="cpu" if gloo else "gpu")
    line = rank_line(moments, one, work, layers=len(spec.layers), whole=whole)
    return one, one.device_bytes + line.bytes


@pytest.mark.models
@pytest.mark.slow
@pytest.mark.parametrize("case", fsdp_peak_worker.CASES)
def test_a_steps_peak_is_the_plans(ran, folder, case):
    """Within 1 %, states to the byte: with one root group, with three, with saved tensors."""
    ranks, found = ran
    seen = found[case]
    one, total = planned(folder, ranks, fsdp_peak_worker.CASES[case], gloo=True)
    assert (seen["weights"], seen["gradients"], seen["optimizer"]) == (
        one.weights.bytes,
        one.gradients.bytes,
        one.optimizer.bytes,
    )
    peak = seen["weights"] + seen["optimizer"] + max(seen["passes"], seen["step"])
    print(f"{case}, {ranks} ranks: {peak / total:.3f} of {total / 1e6:.1f} MB")
    assert peak == pytest.approx(total, rel=0.01)
