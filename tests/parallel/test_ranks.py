"""Parallel training: each rank's bytes against real processes, DeepSpeed's figures and papers."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import deepspeed_worker
import parallel_worker
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memplan.errors import UsageError
from memplan.footprint.optimizer import OPTIMIZERS
from memplan.parallel.ddp import ddp_buckets
from memplan.parallel.fsdp import fsdp_gather_bytes, fsdp_part
from memplan.parallel.grid import STRATEGIES, Place, grid_of
from memplan.parallel.model import (
    activation_share,
    in_flight,
    layout_of,
    pieces,
    stage_layers,
)
from memplan.parallel.shard import shard, shards
from memplan.parallel.types import ShardOptions
from memplan.parallel.zero import partition_elements, touched_elements
from memplan.types import Tensor, Workload
from memplan.units import MIB

ADAMW = OPTIMIZERS["adamw"][0]
STEP = 4


def training(strategy, gpus, **options):
    return Workload(task="train", strategy=strategy, gpus=gpus, **options)


def tensor(name, *shape, dtype="float32", tied_to=None):
    size = {"float32": 4, "bfloat16": 2}[dtype]
    return Tensor(
        name=name, shape=shape, dtype=dtype, bytes=math.prod(shape) * size, tied_to=tied_to
    )


def of_worker(dtype="float32", **changes):
    """Return the parameters of the worker's model, read from the same class on no device."""
    import torch

    with torch.device("meta"):
        model = parallel_worker.build(dtype, **changes)
    found, owners = [], {}
    for name, value in model.named_parameters(remove_duplicate=False):
        owner = owners.setdefault(id(value), name)
        tied_to = owner if owner != name else None
        found.append(tensor(name, *value.shape, dtype=dtype, tied_to=tied_to))
    return tuple(found)


def of_rank(parameters, grid, rank):
    options = ShardOptions()
    layout = layout_of(parameters, grid.pp, options)
    return pieces(layout, None, grid, grid.place(rank), options)


def sizes(one):
    return {
        "weights": one.weights.bytes,
        "gradients": one.gradients.bytes,
        "optimizer": one.optimizer.bytes,
    }


@pytest.fixture(scope="module", params=[2, 4])
def ran(request, tmp_path_factory):
    """Start real processes once; return (ranks, what each held and, last, what is gathered)."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, parallel_worker.__file__, str(folder), str(request.param)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    files = [folder / f"{rank}.json" for rank in [*range(request.param), "gathered"]]
    return request.param, [json.loads(file.read_text(encoding="utf-8")) for file in files]


@pytest.mark.models
@pytest.mark.slow
def test_ddp_ranks_hold_what_torch_holds(ran):
    """Weights, gradients and states on every rank; buckets are a second copy of the gradients."""
    ranks, (*found, _) = ran
    parameters = of_worker()
    for rank, held in enumerate(found):
        one = shard(parameters, training("ddp", ranks), ADAMW, rank=rank)
        assert held["ddp"]["stored"] == sizes(one)
        assert sum(held["ddp"]["buckets"]) == sum(line.bytes for line in one.buffers)
        assert not held["ddp"]["gradients are views"]


@pytest.mark.models
@pytest.mark.slow
def test_ddp_buckets_are_those_of_torch(ran):
    """The first of at least 1 MiB.

    They are rebuilt in the order in which gradients were ready, which moves two vectors of a
    layer past its matrices.
    """
    _, (*found, _) = ran
    planned = ddp_buckets(of_worker(), ShardOptions())
    assert len(found[0]["ddp"]["buckets"]) == len(planned) == 2
    vectors = 2 * 4 * parallel_worker.CONFIG["hidden_size"]
    for real, mine in zip(found[0]["ddp"]["buckets"], planned, strict=True):
        assert abs(real - mine) <= vectors
    assert planned[0] >= MIB > planned[1]


@pytest.mark.models
@pytest.mark.slow
def test_gradients_that_are_views_of_ddp_buckets_cost_nothing_more(ran):
    """gradient_as_bucket_view: one copy, and torch's gradients share the buckets' storage."""
    ranks, (*found, _) = ran
    options = ShardOptions(gradient_as_bucket_view=True)
    one = shard(of_worker(), training("ddp", ranks), ADAMW, options=options)
    assert found[0]["ddp views"]["gradients are views"]
    assert found[0]["ddp views"]["stored"] == sizes(one)
    assert one.buffers == ()


FSDP = {
    "fsdp": ({}, {}, None),
    "fsdp bf16": ({"dtype": "bfloat16"}, {"precision": "bf16"}, None),
    "fsdp frozen": ({}, {}, parallel_worker.FROZEN),
    "fsdp tied": ({"tie_word_embeddings": True}, {}, None),
    "fsdp mixed": ({}, {"precision": "bf16-mixed"}, None),
    "fsdp kept": ({}, {}, None),
}


@pytest.mark.models
@pytest.mark.slow
@pytest.mark.parametrize("case", FSDP)
def test_fsdp2_ranks_hold_what_torch_holds(ran, case):
    """Storages with their padding, to the byte, on every rank; uneven rows leave the last less."""
    ranks, (*found, _) = ran
    changes, options, frozen = FSDP[case]
    parameters = of_worker(**changes)
    names = None
    if frozen:
        names = {t.name for t in parameters if not t.name.startswith(frozen)}
    work = training("fsdp2", ranks, **options)
    for rank, held in enumerate(found):
        one = shard(parameters, work, ADAMW, trainable=names, rank=rank)
        assert held[case]["stored"] == sizes(one)
    assert found[-1][case]["views"]["weights"] < found[-1][case]["stored"]["weights"]


@pytest.mark.models
@pytest.mark.slow
def test_fsdp2_views_are_the_ranks_own_rows(ran):
    """What `parameter.to_local()` counts: without padding, and together the whole model."""
    ranks, (*found, _) = ran
    parameters = of_worker()
    total = 0
    for rank, held in enumerate(found):
        grid = grid_of(training("fsdp2", ranks))
        own = of_rank(parameters, grid, rank)
        local = sum(fsdp_part(piece, padded=False).bytes for piece in own)
        assert held["fsdp"]["views"]["weights"] == local
        total += local
    assert total == sum(t.bytes for t in parameters)


@pytest.mark.models
@pytest.mark.slow
def test_offloaded_fsdp2_ranks_hold_the_same_in_host_memory(ran):
    """CPUOffloadPolicy: gradients are copied without their padding."""
    ranks, (*found, _) = ran
    options = ShardOptions(offload_param="cpu")
    for rank, held in enumerate(found):
        one = shard(of_worker(), training("fsdp2", ranks), ADAMW, options=options, rank=rank)
        on_host = {line.part: line.bytes for line in one.host}
        assert held["fsdp offload"]["views"]["gradients"] == on_host["gradients"]
        assert held["fsdp offload"]["stored"]["weights"] == on_host["weights"]
        assert held["fsdp offload"]["stored"]["optimizer"] == on_host["optimizer"]
        assert sizes(one) == {"weights": 0, "gradients": 0, "optimizer": 0}


@pytest.mark.models
@pytest.mark.slow
@pytest.mark.parametrize(("case", "reshard"), [("resharded", True), ("kept", False)])
def test_gathered_weights_agree_with_torchs_tracker(ran, case, reshard):
    """The highest sum of gathered weights, full gradients and buffers, forward and backward.

    The tracker's "temporary" also has the gradients of four tokens' activations: under 2 %.
    """
    ranks, (*_, found) = ran
    work = training("fsdp2", ranks)
    options = ShardOptions(reshard_after_forward=reshard)
    own = of_rank(of_worker(**parallel_worker.WIDE), grid_of(work), 0)
    low, value, high = fsdp_gather_bytes(own, options)
    assert value <= found[case] <= 1.02 * value
    assert low < value < high


@pytest.mark.models
@pytest.mark.slow
def test_tensor_parallel_ranks_hold_what_transformers_gives_them(ran):
    """Its own plan, uneven: 250 inner features, 1003 rows of the vocabulary.

    The input embedding's gradient has all rows on every rank; its states have not.
    """
    ranks, (*found, _) = ran
    for rank, held in enumerate(found):
        one = shard(of_worker(), training("tp", ranks, tp=ranks), ADAMW, rank=rank)
        assert held["tp"]["views"] == sizes(one)
        assert one.buffers == ()


@pytest.mark.models
@pytest.mark.slow
@pytest.mark.parametrize("ran", [4], indirect=True)
def test_a_hybrid_is_the_product_of_its_parts(ran):
    """2 x 2: transformers' tensor parallelism below, FSDP2 above."""
    _, (*found, _) = ran
    for rank, held in enumerate(found):
        grid = grid_of(training("fsdp2", 4, tp=2))
        one = shard(of_worker(), training("fsdp2", 4, tp=2), ADAMW, rank=rank)
        own = of_rank(of_worker(), grid, rank)
        local = sum(fsdp_part(piece, padded=False).bytes for piece in own)
        assert held["tp fsdp"]["views"]["weights"] == local
        assert held["tp fsdp"]["stored"]["gradients"] == one.gradients.bytes
        assert held["tp fsdp"]["stored"]["optimizer"] == one.optimizer.bytes


BILLION = tuple(tensor(f"layers.{i}.w.weight", 62_500_000, dtype="bfloat16") for i in range(16))
"""16 parameters, 1e9 elements: partitions among 8 ranks end where a parameter ends."""


def states(one):
    """Weights, gradients and states without the optimizer's step counters."""
    return sum(sizes(one).values()) - STEP


def test_zero2_equals_deepspeeds_estimator():
    """estimate_zero2_model_states_mem_needs(1e9, 8, 1, cpu_offload=False): 4,250,000,000 B.

    2N + 18N/n (DeepSpeed 0.19.8). It is right only for mixed precision with Adam, and it leaves
    out the buckets (2 B x reduce_bucket_size, here a quarter more) and the padding.
    """
    work = training("zero2", 8, precision="bf16-mixed")
    one = shard(BILLION, work, ADAMW)
    assert states(one) == 4_250_000_000
    assert sum(line.bytes for line in one.buffers) == 2 * 500_000_000
    plain = shard(BILLION, training("zero2", 8, precision="bf16"), ADAMW)
    assert states(plain) == 2_000_000_000 + (2 + 2 + 6) * 125_000_000


def test_zero3_is_two_bytes_beside_deepspeeds_estimator():
    """estimate_zero3_model_states_mem_needs(1e9, 62.5e6, 8, 1, cpu_offload=False): 2,500,000,000.

    18N/n + 4 x the largest module. Its 18 are stage 2's partitioned bytes (2 + 4 gradients, 4
    master, 8 states), to which stage 3 adds the weights' own 2; without the float32 gradients,
    which live during the step alone, it is 16. The second term stands for one gathered module and
    its gradient, where DeepSpeed's defaults keep up to 1e9 gathered elements and a bucket of 5e8
    (zero/config.py): twelve times as much here.
    """
    one = shard(BILLION, training("zero3", 8, precision="bf16-mixed"), ADAMW)
    assert states(one) == 20 * 10**9 // 8
    without = states(one) - one.gradients.bytes + one.gradients.low_bytes
    assert without == 16 * 10**9 // 8
    assert without < 18 * 10**9 // 8 < states(one)
    bucket, live = one.buffers
    assert bucket.bytes == 1_000_000_000
    assert live.low_bytes == 2 * 62_500_000
    assert live.bytes == 2_000_000_000


def test_offloaded_zero2_keeps_the_weights_alone():
    """estimate_zero2_model_states_mem_needs(1e9, 8, 1, cpu_offload=True): (48e9, 2e9) B.

    The device is right. For the host it says 32 B a parameter (4 x 8 ranks, for the load) x 1.5;
    its 16 B of states leave out the copy of the partition in 16 bit: the source allocates
    4 master + 8 states + 4 gradient + 2 copy, and a buffer like the largest parameter per rank.
    """
    options = ShardOptions(offload_optimizer="cpu")
    work = training("zero2", 8, precision="bf16-mixed")
    every = shards(BILLION, work, ADAMW, options=options)
    assert sum(sizes(every[0]).values()) == 2_000_000_000
    host = sum(one.host_bytes - STEP for one in every)
    assert host == 18 * 10**9 + 8 * 2 * 62_500_000
    assert host < 48 * 10**9


def test_offloaded_zero3_leaves_nothing_but_buffers():
    """estimate_zero3_model_states_mem_needs(1e9, 62.5e6, 8, 1): (27e9 with zero_init, 0.25e9) B.

    18 B a parameter x 1.5 on the host; the source keeps 20: weights 2, master 4, states 8,
    gradients 4 in float32 and 2 in the flat buffer.
    """
    options = ShardOptions(offload_optimizer="cpu", offload_param="cpu")
    work = training("zero3", 8, precision="bf16-mixed")
    every = shards(BILLION, work, ADAMW, options=options)
    assert all(sum(sizes(one).values()) == 0 for one in every)
    assert sum(one.host_bytes - STEP for one in every) == 20 * 10**9


def test_zero_equals_the_papers_figure_for_7_5_billion():
    """ZeRO (Rajbhandari et al. 2020, figure 1), 64 ranks: 31.4, 16.6 and 1.9 GB of 120 GB.

    The paper counts 16-bit gradients alone; DeepSpeed also makes their float32 copy for the step,
    which is the upper part of the line.
    """
    # 128 equal parameters, so that no partition begins inside one.
    size = 7_500_000_000 // 128
    parameters = tuple(tensor(f"w{i}", size - size % 2, dtype="bfloat16") for i in range(128))
    found = {}
    for name in ("zero1", "zero2", "zero3"):
        one = shard(parameters, training(name, 64, precision="bf16-mixed"), ADAMW)
        found[name] = one.weights.bytes + one.optimizer.bytes + one.gradients.low_bytes
    assert found["zero2"] / 1e9 == pytest.approx(16.6, abs=0.05)
    assert found["zero3"] / 1e9 == pytest.approx(1.9, abs=0.05)
    one = shard(parameters, training("zero1", 64, precision="bf16-mixed"), ADAMW)
    assert sum(sizes(one).values()) / 1e9 == pytest.approx(31.4, abs=0.05)


def test_zero_partitions_follow_deepspeeds_alignment():
    """Flat groups of stages 1 and 2 to 2n elements; stage 3 cuts each parameter by itself."""
    parameters = (tensor("a", 7), tensor("b", 5), tensor("c", 1))
    assert partition_elements(13, 4) == 4  # 16 = 2 x (2 x 4)
    work = training("zero1", 4, precision="bf16-mixed")
    every = shards(parameters, work, OPTIMIZERS["sgd"][0])
    assert [one.weights.bytes for one in every] == [2 * 16] * 4
    assert [one.optimizer.bytes for one in every] == [4 * 4] * 4
    three = shard(
        parameters, training("zero3", 4, precision="bf16-mixed"), OPTIMIZERS["sgd"][0], rank=3
    )
    assert three.weights.bytes == 2 * (2 + 2 + 1)


DEEPSPEED = {
    ("zero1", "bf16-mixed"): (1_039_680, 693_120 + 1_386_244, (362_304, 388_224, 361_728)),
    ("zero2", "bf16-mixed"): (1_039_680, 693_120 + 1_386_244, (362_304, 388_224, 361_728)),
    ("zero2", "fp32"): (2_079_360, 693_120 + 1_386_244, (724_608, 776_448, 723_456)),
    ("zero3", "bf16-mixed"): (346_560, 693_120 + 1_386_244, (346_560,) * 3),
    ("zero3", "fp32"): (693_120, 693_120 + 1_386_244, (693_120,) * 3),
}
"""Stage and precision -> bytes of weights, of master weights and states, and of the gradients of
each of three ranks at the end of the backward pass. Measured: DeepSpeed 0.19.8 with torch.optim.
AdamW on CPU over gloo, one step of the worker's Llama, storages each once."""


@pytest.mark.models
@pytest.mark.parametrize(("strategy", "precision"), DEEPSPEED)
def test_zero_ranks_hold_what_deepspeed_held(strategy, precision):
    """To the byte; the gradients are those before the step, without its copy."""
    weights, optimizer, gradients = DEEPSPEED[strategy, precision]
    every = shards(of_worker(), training(strategy, 3, precision=precision), ADAMW)
    master = {"bf16-mixed": 4, "fp32": 4}[precision] * 173_280
    for one, held in zip(every, gradients, strict=True):
        assert one.weights.bytes == weights
        assert one.optimizer.bytes == optimizer
        assert one.gradients.bytes - master == held


@pytest.mark.models
@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "precision"), DEEPSPEED)
def test_zero_ranks_hold_what_deepspeed_holds_now(tmp_path, strategy, precision):
    """The same figures from the version that is installed, where one is."""
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    dtype = {"fp32": "float32", "bf16-mixed": "bfloat16"}[precision]
    arguments = [str(tmp_path), "3", strategy[-1], dtype]
    done = subprocess.run(
        [sys.executable, deepspeed_worker.__file__, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    weights, optimizer, gradients = DEEPSPEED[strategy, precision]
    for rank in range(3):
        held = json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8"))
        assert held["weights"] == weights
        assert held["optimizer"] == optimizer
        assert held["gradients"] == gradients[rank]
        if strategy == "zero3" and precision == "bf16-mixed":
            assert (held["bucket"], held["persistent"]) == (200_000, 1_344)


@pytest.mark.models
def test_zero_buffers_are_those_that_deepspeed_held():
    """Bucket 100,000 elements, persistence up to 5,000: 200,000 and 1,344 B, measured as above.

    Offloaded, the host held 693,120 B of master weights, 1,386,244 of states and 346,560 of
    gradients in the flat buffer.
    """
    options = ShardOptions(
        reduce_bucket_size=100_000,
        stage3_param_persistence_threshold=5_000,
        offload_optimizer="cpu",
    )
    work = training("zero3", 3, precision="bf16-mixed")
    one = shard(of_worker(), work, ADAMW, options=options)
    bucket, stays, _ = one.buffers
    assert (bucket.bytes, stays.bytes) == (200_000, 1_344)
    assert [line.bytes for line in one.host] == [693_120 + 1_386_244, 693_120, 346_560]


def test_a_parameter_counts_whole_where_zero2_reaches_into_it():
    """Partitions of 4: [0,4) [4,8) [8,12) [12,16) over parameters of 7, 5 and 1."""
    assert touched_elements([7, 5, 1], 4) == [7, 12, 5, 1]
    work = training("zero2", 4, precision="bf16-mixed")
    parameters = (tensor("a", 7), tensor("b", 5), tensor("c", 1))
    assert shard(parameters, work, ADAMW).rank == 1


def test_zero1_keeps_all_gradients_and_zero2_does_not():
    """Until the step: 2 B a parameter against 2 / n, and each twice as much to go through it."""
    found = {}
    for name in ("zero1", "zero2"):
        found[name] = shard(BILLION, training(name, 8, precision="bf16-mixed"), ADAMW)
    assert found["zero1"].gradients.bytes == 2 * 10**9
    assert found["zero2"].gradients.bytes == (2 + 4) * 10**9 // 8
    for one in found.values():
        line = one.gradients
        assert line.low_bytes <= line.bytes <= line.high_bytes


def test_nvme_moves_states_and_leaves_pinned_buffers():
    """Master weights, states and gradients on disk; four buffers of a sub-group in host memory."""
    options = ShardOptions(
        offload_optimizer="nvme", offload_param="nvme", sub_group_size=10**7, param_max_in_cpu=10**6
    )
    work = training("zero3", 8, precision="bf16-mixed")
    one = shard(BILLION, work, OPTIMIZERS["sgd-momentum"][0], options=options)
    part = 125_000_000
    in_disk = {line.part: line.bytes for line in one.disk}
    assert in_disk == {
        "weights": 2 * part - 2 * 10**6,
        "optimizer": 8 * part,
        "gradients": 4 * part,
    }
    sub = 2 * part // 16  # two parameters' parts are the first to reach ten million
    assert one.host_bytes == 2 * 10**6 + 5 * 10**8 * 2 + 2 * part + 4 * sub * 4


def test_unused_data_ranks_share_nothing_but_sharded_ones_do():
    """One GPU: every strategy keeps the whole model there (ZeRO with its own copies)."""
    parameters = (tensor("layers.0.w.weight", 8, 8), tensor("head.weight", 4, 8))
    whole = sum(t.bytes for t in parameters)
    for strategy in STRATEGIES:
        assert shard(parameters, training(strategy, 1), ADAMW).weights.bytes == whole


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved"])
def test_in_flight_micro_batches_follow_the_schedules(schedule):
    """GPipe all; 1F1B p - i; interleaved p(1 + (p - 1) / (pv)) on the first stage (Megatron-LM)."""
    options = ShardOptions(schedule=schedule, chunks=2)
    kept = [in_flight(options, stages=4, stage=i, micro_batches=16) for i in range(4)]
    assert (
        kept
        == {
            "gpipe": [16] * 4,
            "1f1b": [4, 3, 2, 1],
            "interleaved": [
                Fraction(4) * (1 + Fraction(3, 8)),
                *map(Fraction, ("4.5", "3.5", "2.5")),
            ],
        }[schedule]
    )
    few = [in_flight(options, stages=4, stage=i, micro_batches=2) for i in range(4)]
    assert max(few) == 2
    assert in_flight(options, stages=1, stage=0, micro_batches=16) == 1


def test_the_most_loaded_stage_has_the_vocabulary():
    """Whole layers in order: the embedding with the first, the output matrix with the last."""
    layers = [tensor(f"model.layers.{i}.mlp.up_proj.weight", 10, 10) for i in range(6)]
    parameters = (
        tensor("model.embed_tokens.weight", 100, 10),
        *layers,
        tensor("model.norm.weight", 10),
        tensor("lm_head.weight", 100, 10),
    )
    every = shards(parameters, training("pp", 3, pp=3, grad_accum=8), ADAMW)
    assert [one.weights.bytes for one in every] == [4 * 1200, 4 * 200, 4 * 1210]
    assert shard(parameters, training("pp", 3, pp=3), ADAMW).stage == 2
    assert [one.activations.micro_batches for one in every] == [3, 2, 1]
    assert [one.activations.logits for one in every] == [False, False, True]
    tied = (*parameters[:-1], tensor("lm_head.weight", 100, 10, tied_to=parameters[0].name))
    copies = shards(tied, training("pp", 3, pp=3), ADAMW)
    assert [one.weights.bytes for one in copies] == [4 * 1200, 4 * 200, 4 * 1210]
    assert shard(tied, training("ddp", 1), ADAMW).weights.bytes == 4 * 1610


def test_stages_take_equal_layers_or_those_that_are_named():
    """80 layers in 3 stages: 27, 27, 26."""
    assert stage_layers(80, 3) == (27, 27, 26)
    assert stage_layers(80, 3, (20, 40, 20)) == (20, 40, 20)
    for wrong in ((80,), (40, 41, -1), (1, 2, 3)):
        with pytest.raises(UsageError, match="80 layers in 3 stages"):
            stage_layers(80, 3, wrong)
    with pytest.raises(UsageError, match="4 pipeline stages for 2 layers"):
        stage_layers(2, 4)


def experts(stacked):
    home = "model.layers.0.mlp.experts"
    if stacked:
        return (
            tensor(f"{home}.gate_up_proj", 8, 12, 6),
            tensor(f"{home}.down_proj", 8, 6, 6),
            tensor("model.layers.0.mlp.gate.weight", 8, 6),
        )
    each = [tensor(f"{home}.{i}.up_proj.weight", 18, 6) for i in range(8)]
    return (*each, tensor("model.layers.0.mlp.gate.weight", 8, 6))


@pytest.mark.parametrize("stacked", [True, False])
def test_expert_parallelism_divides_the_experts_alone(stacked):
    """8 experts among 4 ranks: 2 each; the router stays whole."""
    every = shards(experts(stacked), training("ep", 4, ep=4), ADAMW)
    assert [one.weights.bytes for one in every] == [4 * (2 * 108 + 48)] * 4


def test_experts_and_tensor_parallelism_meet_as_the_framework_says():
    """With tp 2, ep 4 on 8 GPUs: transformers has 2 whole experts, Megatron 2 halves of 2."""
    work = training("ddp", 8, tp=2, ep=4)
    whole = shard(experts(stacked=True), work, ADAMW)
    assert whole.weights.bytes == 4 * (2 * 108 + 48)
    options = ShardOptions(expert_tensor_parallel=True)
    halves = shard(experts(stacked=True), work, ADAMW, options=options)
    assert halves.weights.bytes == 4 * (2 * 54 + 48)
    sharded = shard(experts(stacked=True), training("fsdp2", 8, ep=4), ADAMW)
    assert sharded.weights.bytes == 4 * (108 + 6)  # 2 experts among 2 ranks, the router among 8


def test_saved_tensors_follow_korthikanti():
    """Table 2: 10 + 24 / t of 34 without sequence parallelism, 34 / t with it; 1 / cp of tokens."""
    grid = grid_of(training("ddp", 16, tp=8, cp=2))
    place = Place(tp=0, cp=0, dp=0, pp=0)
    plain = activation_share(grid, place, ShardOptions(), layers=4, micro_batches=1)
    assert plain.tensor == Fraction(13, 34)
    assert plain.per_layer == Fraction(13, 68)
    divided = activation_share(
        grid, place, ShardOptions(sequence_parallel=True), layers=4, micro_batches=1
    )
    assert divided.tensor == Fraction(1, 8)


def test_context_parallel_ranks_share_weights_as_data_parallel_ones_do():
    """FSDP2 divides among dp x cp (torchtitan's dp_shard_cp)."""
    parameters = (tensor("layers.0.w.weight", 16, 4),)
    one = shard(parameters, training("fsdp2", 8, cp=4), ADAMW)
    assert one.weights.bytes == 4 * 2 * 4
    assert one.activations.sequence == Fraction(1, 4)


def test_a_given_plan_decides_how_matrices_are_divided():
    """Patterns of transformers; what no pattern names stays whole."""
    parameters = (
        tensor("model.layers.0.attn.qkv.weight", 9, 4),
        tensor("model.layers.0.attn.out.weight", 4, 9),
        tensor("model.layers.0.attn.out.bias", 4),
    )
    plan = {"layers.*.attn.qkv": "colwise", "layers.*.attn.out": "rowwise"}
    options = ShardOptions(tp_plan=plan)
    every = shards(parameters, training("tp", 2), ADAMW, options=options)
    assert [one.weights.bytes for one in every] == [4 * (20 + 20 + 4), 4 * (16 + 16 + 4)]
    whole = shard(parameters, training("tp", 2), ADAMW, options=ShardOptions(tp_plan={}))
    assert whole.weights.bytes == 4 * 76


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "horovod"}, "no rule for strategy 'horovod'"),
        ({"tp": 3}, "is 6, not 8 GPUs|not 8 GPUs"),
        ({"dp": 4}, "is 4, not 8 GPUs"),
        ({"ep": 3}, "ep 3 must divide"),
        ({"tp": 4, "ep": 2}, "multiple of tp"),
    ],
)
def test_degrees_that_do_not_go_together_are_refused(options, message):
    """With a hint that says what to change."""
    work = training(options.pop("strategy", "ddp"), 8, **options)
    with pytest.raises(UsageError, match=message) as caught:
        shard((tensor("layers.0.w.weight", 8, 8),), work, ADAMW)
    assert caught.value.hint


def test_settings_that_make_no_sense_are_refused():
    """Before they become bytes."""
    for wrong in ({"reduce_dtype": "int8"}, {"chunks": 0}, {"reduce_bucket_size": 0}):
        with pytest.raises(UsageError) as caught:
            ShardOptions(**wrong)
        assert caught.value.hint


def test_a_rank_that_is_not_there_is_refused():
    """Ranks count from 0."""
    with pytest.raises(UsageError, match="rank 2 of 2"):
        shard((tensor("w", 2),), training("ddp", 2), ADAMW, rank=2)


@st.composite
def models(draw):
    """A few parameters with matrices' and vectors' shapes, some in layers."""
    count = draw(st.integers(1, 6))
    found = []
    for i in range(count):
        layer = draw(st.sampled_from([f"model.layers.{i}.mlp.up_proj.weight", f"model.norm{i}.w"]))
        shape = draw(st.lists(st.integers(1, 40), min_size=1, max_size=2))
        found.append(tensor(layer, *shape))
    return tuple(found)


SHARDED = {
    "fsdp2": ("weights", "gradients", "optimizer"),
    "zero1": ("optimizer",),
    "zero2": ("optimizer",),
    "zero3": ("weights", "optimizer"),
}
MOMENTUM = OPTIMIZERS["sgd-momentum"][0]


def test_buckets_are_there_when_something_is_data_parallel():
    """A DDP job has them on one GPU too; tensor and pipeline parallelism alone have none."""
    parameters = (tensor("model.layers.0.mlp.up_proj.weight", 8, 8),)
    for work, size in (
        (training("ddp", 1), 256),
        (training("ddp", 2), 256),
        (training("ddp", 2, tp=2), 0),
        (training("tp", 4, tp=2), 128),
        (training("tp", 2), 0),
    ):
        assert sum(line.bytes for line in shard(parameters, work, ADAMW).buffers) == size


@settings(deadline=None)
@given(models(), st.integers(1, 9), st.sampled_from(sorted(SHARDED)))
def test_shards_add_up_to_at_least_the_whole(parameters, ranks, strategy):
    """Padding adds, nothing is lost."""
    work = training(strategy, ranks, precision="fp32")
    every = shards(parameters, work, MOMENTUM)
    one = shards(parameters, training(strategy, 1, precision="fp32"), MOMENTUM)[0]
    elements = sum(math.prod(t.shape) for t in parameters)
    for part in SHARDED[strategy]:
        total = sum(sizes(each)[part] for each in every)
        least = sizes(one)[part] if strategy in {"fsdp2", "zero3"} else 8 * elements
        assert total >= least
    assert (
        max(each.device_bytes for each in every) == shard(parameters, work, MOMENTUM).device_bytes
    )


@settings(deadline=None)
@given(models(), st.integers(1, 6), st.sampled_from(sorted(SHARDED)))
def test_shards_add_up_to_the_whole_when_it_divides(parameters, ranks, strategy):
    """Rows in multiples of 2n: no padding in any framework."""
    even = tuple(tensor(t.name, 2 * ranks * t.shape[0], *t.shape[1:]) for t in parameters)
    every = shards(even, training(strategy, ranks, precision="fp32"), MOMENTUM)
    one = shards(even, training(strategy, 1, precision="fp32"), MOMENTUM)[0]
    for part in SHARDED[strategy]:
        assert sum(sizes(each)[part] for each in every) == sizes(one)[part]


@settings(deadline=None)
@given(models(), st.integers(1, 8), st.sampled_from(sorted(SHARDED)))
def test_more_ranks_never_add_to_a_rank(parameters, ranks, strategy):
    """Of what the strategy divides, for the most loaded rank."""
    fewer, more = (
        shard(parameters, training(strategy, n, precision="fp32"), MOMENTUM)
        for n in (ranks, ranks + 1)
    )
    for part in SHARDED[strategy]:
        assert sizes(more)[part] <= sizes(fewer)[part]


@settings(deadline=None)
@given(models(), st.integers(1, 8))
def test_tensor_parallel_parts_add_up(parameters, ranks):
    """Matrices of the plan exactly once, the rest on every rank."""
    every = shards(parameters, training("tp", ranks, tp=ranks), MOMENTUM)
    divided = sum(t.bytes for t in parameters if "up_proj" in t.name)
    whole = sum(t.bytes for t in parameters) - divided
    assert sum(one.weights.bytes for one in every) == divided + ranks * whole


@settings(deadline=None)
@given(models(), st.integers(1, 6))
def test_gathering_needs_more_than_one_layer_and_less_than_everything_twice(parameters, ranks):
    """Weights, outputs of the collectives and gradients are each at most the padded model."""
    grid = grid_of(training("fsdp2", ranks))
    found = of_rank(parameters, grid, 0)
    low, value, high = fsdp_gather_bytes(found, ShardOptions())
    padded = sum(ranks * fsdp_part(piece, padded=True).bytes for piece in found)
    assert 0 < low <= value <= high
    assert value <= 4 * padded


def test_the_worker_is_a_program_of_its_own():
    """It runs without memplan, so nothing of memplan can colour what it measures."""
    assert "memplan" not in Path(parallel_worker.__file__).read_text(encoding="utf-8")
