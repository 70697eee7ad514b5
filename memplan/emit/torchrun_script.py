"""The script that the torchrun target writes: a training step divided as the plan says."""

from __future__ import annotations

__all__ = ["SCRIPT"]

SCRIPT = '''\
"""Trains {name} on {ranks} processes as plan {plan_id} says (written by memplan {version}).

    sh {launch} --steps 4            # steps on random tokens; prints what each rank holds
    from train import prepare         # in a script of your own: model and optimizer, divided

What is divided how stands in {settings} beside this file.
"""

import argparse
import json
import os
import resource
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import transformers

HERE = Path(__file__).resolve().parent
PLAN = json.loads((HERE / "{settings}").read_text(encoding="utf-8"))
DTYPE = getattr(torch, PLAN["dtype"])


def device():
    """Return this process's GPU, or the CPU where there is none (gloo: to try the plan out)."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def prepare(random_weights=False):
    """Return the model, divided among the processes, and its optimizer."""
    here = device()
    if here.type == "cuda":
        torch.cuda.set_device(here)
    if "RANK" in os.environ and not PLAN["strategy"].startswith("zero"):
        dist.init_process_group("cpu:gloo,cuda:nccl" if here.type == "cuda" else "gloo")
    kind = PLAN["strategy"]
    if kind.startswith("zero"):
        return zero(random_weights)
    if PLAN["tp"] > 1:
        model = tensor_parallel(random_weights)
    elif kind == "fsdp2":
        model = fully_sharded(here, random_weights)
    else:
        model = checkpointed(adapted(whole(random_weights))).to(here)
        if kind == "ddp":
            ids = [here.index] if here.type == "cuda" else None
            model = torch.nn.parallel.DistributedDataParallel(model, device_ids=ids)
    if PLAN["compile"]:
        model.compile()
    return model, optimizer(model)


def whole(random_weights, on_meta=False):
    """Return the whole model: from its files, with random weights, or without memory."""
    cls = getattr(transformers, PLAN["architecture"])
    chosen = {{"dtype": DTYPE, "attn_implementation": PLAN["attn_implementation"]}}
    if not random_weights and not on_meta:
        return cls.from_pretrained(PLAN["model"], revision=PLAN["revision"], **chosen)
    config = transformers.AutoConfig.from_pretrained(PLAN["model"], revision=PLAN["revision"])
    if not on_meta:
        torch.manual_seed(0)
        return cls._from_config(config, **chosen)
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model = cls._from_config(config, **chosen)
    model.tie_weights()
    return model


def adapted(model):
    """Return the model with the plan's adapters, or as it is."""
    if PLAN["lora"] is None:
        return model
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(model, LoraConfig(**PLAN["lora"]), autocast_adapter_dtype=False)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(getattr(torch, PLAN["lora_dtype"]))
    return model


def checkpointed(model):
    """Switch the plan's activation checkpointing on."""
    if PLAN["checkpointing"] != "none":
        chosen = {{"use_reentrant": False}}
        if PLAN["checkpointing"] == "selective":
            chosen["context_fn"] = partial(selective)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=chosen)
        if PLAN["lora"] is not None:
            model.enable_input_require_grads()
    return model


def selective():
    """Keep attention's outputs and every second matrix product; compute the rest again."""
    from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

    aten = torch.ops.aten
    kept = {{
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
    }}
    count = [0]

    def policy(context, operator, *args, **kwargs):
        count[0] += operator in (aten.mm.default, aten.addmm.default)
        odd = operator in (aten.mm.default, aten.addmm.default) and count[0] % 2
        if operator in kept or odd:
            return CheckpointPolicy.MUST_SAVE
        return CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


def fully_sharded(here, random_weights):
    """Return the model under FSDP2: built without memory, divided, then filled."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard

    model = checkpointed(adapted(whole(random_weights, on_meta=True)))
    chosen = {{"mesh": init_device_mesh(here.type, (dist.get_world_size(),))}}
    chosen["reshard_after_forward"] = PLAN["reshard_after_forward"]
    if PLAN["gathered_in"] is not None:
        chosen["mp_policy"] = MixedPrecisionPolicy(
            param_dtype=getattr(torch, PLAN["gathered_in"]),
            reduce_dtype=getattr(torch, PLAN["reduced_in"]),
        )
    if PLAN["offload"]:
        chosen["offload_policy"] = CPUOffloadPolicy(pin_memory=here.type == "cuda")
    prefix = "base_model.model." if PLAN["lora"] is not None else ""
    for name in PLAN["groups"]:
        fully_shard(model.get_submodule(prefix + name), **chosen)
    fully_shard(model, **chosen)
    home = torch.device("cpu") if PLAN["offload"] else here
    model._apply(lambda t: torch.empty_like(t, device=home) if t.is_meta else t.to(here))
    fill(model, random_weights)
    return model


def fill(model, random_weights):
    """Give a divided model its weights: rank 0 reads them, the others are sent their parts."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    state = {{}}
    if dist.get_rank() == 0:
        full = adapted(whole(random_weights))
        state = {{name: tensor.to(DTYPE) if PLAN["lora"] is None and tensor.is_floating_point()
                 else tensor for name, tensor in full.state_dict().items()}}
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, state, options=options)


def zero(random_weights):
    """Return DeepSpeed's engine by ds_config.json, and the optimizer inside it."""
    import deepspeed

    deepspeed.init_distributed("nccl" if torch.cuda.is_available() else "gloo")
    model = checkpointed(adapted(whole(random_weights)))
    config = json.loads((HERE / "ds_config.json").read_text(encoding="utf-8"))
    engine, chosen, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer(model), config=config
    )
    if PLAN["compile"]:
        engine.compile()
    return engine, chosen


def zero_parts(engine):
    """Return what DeepSpeed holds of weights, and of master weights with optimizer states."""
    zero = engine.optimizer
    values = [v for state in zero.optimizer.state.values() for v in state.values()]
    states = [v for v in values if hasattr(v, "numel")]
    if PLAN["strategy"] == "zero3":
        weights = [zero.lp_param_buffer]
        masters = zero.fp32_partitioned_groups_flat
    else:
        weights, masters = zero.bit16_groups_flat, zero.single_partition_of_fp32_groups
    known = {{local(t).untyped_storage().data_ptr() for t in weights}}
    apart = [t for t in masters if t.untyped_storage().data_ptr() not in known]
    return weights, [*apart, *states]


def tensor_parallel(random_weights):
    """Return the model divided by transformers' own plan, its copies by FSDP2 where planned."""
    from transformers.distributed import DistributedConfig

    if random_weights:
        raise SystemExit("--random-weights: transformers divides layers while it reads files")
    cls = getattr(transformers, PLAN["architecture"])
    degrees = {{"tp_size": PLAN["tp"], "tp_plan": "auto"}}
    if PLAN["strategy"] == "fsdp2" and PLAN["dp"] > 1:
        degrees["fsdp_size"] = PLAN["dp"]
    model = cls.from_pretrained(
        PLAN["model"],
        revision=PLAN["revision"],
        dtype=DTYPE,
        attn_implementation=PLAN["attn_implementation"],
        distributed_config=DistributedConfig(**degrees),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            part = local(parameter)
            if part.untyped_storage().nbytes() > part.numel() * part.element_size():
                # On the CPU a part is a view of the whole: keep the part alone.
                parameter._local_tensor = part.clone()
    return checkpointed(model)


def optimizer(model):
    """Return the plan's optimizer over what is trained."""
    module, _, name = PLAN["optimizer"]["class"].rpartition(".")
    cls = getattr(__import__(module, fromlist=[name]), name)
    trained = [p for p in model.parameters() if p.requires_grad]
    return cls(trained, lr=1e-5, **PLAN["optimizer"]["arguments"])


def forward(model, tokens):
    """Return the loss of one batch, in the plan's precision."""
    autocast = PLAN["autocast"]
    chosen = getattr(torch, autocast or "bfloat16")
    with torch.autocast(tokens.device.type, chosen, enabled=bool(autocast)):
        return model(input_ids=tokens, labels=tokens).loss


def step(model, chosen, tokens):
    """Take one optimizer step of the plan's micro-batches; return the last loss."""
    for _ in range(PLAN["grad_accum"]):
        loss = forward(model, tokens)
        if PLAN["strategy"].startswith("zero"):
            model.backward(loss)
            model.step()
            continue
        (loss / PLAN["grad_accum"]).backward()
    if not PLAN["strategy"].startswith("zero"):
        chosen.step()
    return loss.detach()


def evaluate(model, tokens):
    """Return the loss of a batch between two steps, where there are no gradients."""
    model.eval()
    with torch.no_grad():
        loss = forward(model, tokens)
    model.train()
    return loss


def local(tensor):
    """Return this rank's part of a tensor."""
    return getattr(tensor, "_local_tensor", tensor)


def held(tensors):
    """Return the bytes of the storages behind some tensors, each once, and where they are."""
    parts = [local(t) for t in tensors if t is not None]
    seen = {{p.untyped_storage().data_ptr(): p for p in parts if p.untyped_storage().nbytes()}}
    where = {{}}
    for part in seen.values():
        where[part.device.type] = where.get(part.device.type, 0) + part.untyped_storage().nbytes()
    return where


def report(model, chosen):
    """Return what this rank holds after a step, by kind and device, and its peaks."""
    if PLAN["strategy"].startswith("zero"):
        weights, states = zero_parts(model)
        parts = {{"weights": held(weights), "optimizer": held(states)}}
    else:
        states = [v for state in chosen.state.values() for v in state.values()]
        parts = {{
            "weights": held(model.parameters()),
            "gradients": held(p.grad for p in model.parameters()),
            "optimizer": held(v for v in states if hasattr(v, "numel")),
        }}
    found = {{
        "rank": int(os.environ.get("RANK", 0)),
        **parts,
        "max_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }}
    if torch.cuda.is_available():
        found["max_allocated_bytes"] = torch.cuda.max_memory_allocated()
        found["max_reserved_bytes"] = torch.cuda.max_memory_reserved()
    return found


def random_tokens(model, batch):
    """Return a batch of random tokens of the plan's length."""
    high = getattr(model, "module", model).config.get_text_config().vocab_size
    return torch.randint(0, high, (batch, PLAN["seq"]), device=device())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--random-weights", action="store_true", help="do not read the weights")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # deepspeed's launcher
    parser.add_argument("--report", type=Path, help="folder for RANK.json: what each rank holds")
    args = parser.parse_args()
    model, chosen = prepare(args.random_weights)
    rank = os.environ.get("RANK", 0)
    for number in range(args.steps):
        if number and not PLAN["strategy"].startswith("zero"):
            chosen.zero_grad()
        if number and PLAN["eval_batch"]:
            loss = evaluate(model, random_tokens(model, PLAN["eval_batch"]))
            print(f"rank {{rank}} evaluation loss {{loss.item():.4f}}", flush=True)
        loss = step(model, chosen, random_tokens(model, PLAN["batch"]))
        print(f"rank {{rank}} step {{number}} loss {{loss.item():.4f}}", flush=True)
    found = report(model, chosen)
    if args.report:
        args.report.mkdir(parents=True, exist_ok=True)
        path = args.report / f"{{found['rank']}}.json"
        path.write_text(json.dumps(found), encoding="utf-8")
    print(json.dumps(found), flush=True)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
'''
"""Filled in with `str.format`: name, ranks, plan_id, version, launch and settings."""
