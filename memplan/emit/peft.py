"""Plan -> PEFT's LoraConfig, how its base is loaded, and the Trainer's arguments."""

from __future__ import annotations

from memplan.emit import transformers
from memplan.emit.text import json_text, model_and_revision, refuse, stamp
from memplan.emit.training import lora_config, require_training, trainer_arguments
from memplan.types import ModelSpec, Plan

__all__ = ["adapter_file", "files"]

_SCRIPT = '''\
"""Adapters on {name} as plan {plan_id} says (written by memplan {version}).

    from adapters import adapted
    model = adapted()
"""

from load import HERE, SETTINGS, load


def adapted(**options):
    """Return the base model with its adapters; options go to from_pretrained."""
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    model = load(**options)
    if "quantization_config" in SETTINGS["from_pretrained"]:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing={checkpointing})
    config = LoraConfig.from_pretrained(str(HERE))
    model = get_peft_model(model, config, autocast_adapter_dtype={autocast})
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.{dtype})
    return model


if __name__ == "__main__":
    adapted().print_trainable_parameters()
'''


def adapter_file(plan: Plan) -> dict[str, str]:
    """Return adapter_config.json by its name, or nothing when every weight is trained."""
    config = lora_config(plan)
    if config is None:
        return {}
    model, revision = model_and_revision(plan)
    mapping = {
        "base_model_class": plan.model.architecture,
        "parent_library": "transformers",
        "memplan": stamp(plan, "peft"),
    }
    config |= {"base_model_name_or_path": model, "revision": revision, "auto_mapping": mapping}
    return {"adapter_config.json": json_text(config)}


def files(plan: Plan, spec: ModelSpec) -> dict[str, str]:
    """Return file name -> content: adapter_config.json, sft_config.json, adapters.py and a loader.

    adapter_config.json is LoraConfig's own file; the plan is named in its `auto_mapping`, which
    PEFT reads for models without a task type alone. sft_config.json holds arguments of TRL's
    SFTConfig.

    Raises UsageError for a plan that trains no adapters.
    """
    require_training("peft", plan)
    if lora_config(plan) is None:
        raise refuse(
            "peft", plan, "it trains every weight", hint="plan with --method lora, or --to torchrun"
        )
    said, work = stamp(plan, "peft"), plan.workload
    script = _SCRIPT.format(
        name=plan.model.name,
        plan_id=said["plan"],
        version=said["version"],
        checkpointing=work.checkpointing == "full",
        autocast=work.lora_dtype == "float32",
        dtype=work.lora_dtype,
    )
    return {
        **adapter_file(plan),
        "sft_config.json": json_text(trainer_arguments(plan, "peft")),
        "adapters.py": script,
        **transformers.files(plan, spec),
    }
