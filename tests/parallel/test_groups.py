"""FSDP2's groups outside the layers: cut out where that lowers what a rank gathers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import LLAMA_7B, llama_tensors

from memplan.parallel.groups import fsdp_groups
from memplan.types import Tensor, Workload

SMALL = {
    "hidden_size": 512,
    "intermediate_size": 1400,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 16003,
    "tie_word_embeddings": False,
}


def tensors(config, *, tied=False):
    """Return a float32 Llama's parameters in their order."""
    found = []
    for name, (_, shape) in llama_tensors(config).items():
        size = 4
        for side in shape:
            size *= side
        owner = "model.embed_tokens.weight" if tied and name == "lm_head.weight" else None
        found.append(Tensor(name=name, shape=shape, dtype="float32", bytes=size, tied_to=owner))
    order = {"model.embed_tokens.weight": -1, "model.norm.weight": 1, "lm_head.weight": 2}
    return sorted(found, key=lambda t: order.get(t.name, 0))


def work(ranks):
    return Workload(task="train", strategy="fsdp2", gpus=ranks, seq=4)


def test_a_large_embedding_and_head_become_groups_of_their_own():
    """A 7B Llama on 64 ranks gathers half of what one root group would."""
    found = fsdp_groups(tensors(LLAMA_7B), work(64))
    assert found.modules == ("model.embed_tokens", "lm_head")
    assert found.bytes < found.root_bytes


def test_a_tied_embedding_stays_in_the_root():
    """Its output matrix is the same tensor: two groups would each divide it."""
    found = fsdp_groups(tensors(LLAMA_7B, tied=True), work(8))
    assert found.modules == ()
    assert found.bytes == found.root_bytes


def test_a_towers_matrices_stay_in_the_root():
    """A table of positions may be read without its module being called."""
    table = Tensor(name="visual.pos_embed.weight", shape=(4096, 1024), dtype="float32", bytes=2**24)
    found = fsdp_groups([table, *tensors(LLAMA_7B)], work(8))
    assert found.modules == ("model.embed_tokens", "lm_head")


@pytest.mark.engines
@pytest.mark.parametrize("ranks", [8, 64, 512])
def test_torchs_tracker_counts_the_same_bytes(tmp_path, ranks):
    """FSDPMemTracker on fake tensors, with a root group and with three."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SMALL))
    found = fsdp_groups(tensors(SMALL), work(ranks))
    worker = Path(__file__).parent.parent / "fsdp_oracle_worker.py"
    for modules, expected in (((), found.root_bytes), (found.modules, found.bytes)):
        done = subprocess.run(
            [sys.executable, worker, str(ranks), path, *modules],
            capture_output=True,
            text=True,
            check=True,
            timeout=600,
        )
        gathered = json.loads(done.stdout.splitlines()[-1])["gathered"]
        assert gathered == pytest.approx(expected, rel=0.01)
