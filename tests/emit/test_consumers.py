"""transformers, bitsandbytes and PEFT take what was written, on tiny real models."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest
from checkpoints import save_tiny
from plans import planned, written

from memplan.emit.launch import ignored
from memplan.emit.transformers import quantization_config
from memplan.errors import UsageError

pytestmark = [pytest.mark.models, pytest.mark.filterwarnings("ignore")]  # theirs

CPU = ("--device", "cpu", "--context", "64")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "llama", "llama")


def script(folder, name):
    """Import a script that was written, beside the files that it reads."""
    found = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    found.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("quant", "kind"),
    [
        ("nf4", "BitsAndBytesConfig"),
        ("fp4-dq", "BitsAndBytesConfig"),
        ("int8", "BitsAndBytesConfig"),
        ("fp8", "FineGrainedFP8Config"),
        ("hqq-4bit-g64", "HqqConfig"),
        ("eetq", "EetqConfig"),
        ("mxfp4", "Mxfp4Config"),
        ("bitnet", "BitNetQuantConfig"),
    ],
)
def test_transformers_makes_its_config_of_ours(quant, kind):
    """The class that it chooses, with no key left over."""
    import inspect

    from transformers.quantizers.auto import AutoQuantizationConfig

    ours = quantization_config(quant, "bfloat16", offload=True)
    try:
        config = AutoQuantizationConfig.from_dict(dict(ours))
    except ImportError as error:
        pytest.skip(str(error))
    assert type(config).__name__ == kind
    taken = inspect.signature(type(config)).parameters
    assert set(ours) - {"quant_method"} <= set(taken)
    assert quantization_config("none", "bfloat16") is None
    with pytest.raises(UsageError, match="no config"):
        quantization_config("nvfp4-online", "bfloat16")


def test_a_4_bit_model_loads_and_holds_what_is_planned(tmp_path, llama):
    """Bitsandbytes on the CPU: bytes with scales, as the plan counts them."""
    pytest.importorskip("bitsandbytes")
    plan = planned(llama, *CPU, "--quant", "nf4")
    folder = written(tmp_path / "out", "transformers", llama, *CPU, "--quant", "nf4")
    module = script(folder, "load")
    model = module.load()
    places = module.places(model)
    assert places == {"cpu": plan.devices[0].parts["weights"]}
    assert ignored(plan, [{"weights": places}]) is None
    assert "holds" in ignored(planned(llama, *CPU), [{"weights": {"cpu": 10 * 2**20}}])


def test_generate_takes_the_caches_arguments(tmp_path, llama):
    """An offloaded cache, and prompts in pieces."""
    import torch

    options = (*CPU, "--cache", "static", "--prefill-chunk", "8")
    module = script(written(tmp_path / "out", "transformers", llama, *options), "load")
    chosen = module.generate_options()
    assert chosen == {
        "max_length": 64,
        "cache_implementation": "static",
        "prefill_chunk_size": 8,
    }
    out = module.load().generate(torch.arange(3, 19).reshape(1, -1), do_sample=False, **chosen)
    assert out.shape[-1] <= 64


@pytest.mark.parametrize(
    "method", [("lora",), ("dora", "--lora-targets", "q_proj,v_proj"), ("rslora",)]
)
def test_peft_puts_the_planned_adapters_on(tmp_path, llama, method):
    """Trainable bytes of get_peft_model are the plan's gradients."""
    options = ("--task", "train", "--seq", "16", "--device", "cpu", "--method", *method)
    plan = planned(llama, *options)
    folder = written(tmp_path / "out", "peft", llama, *options)
    script(folder, "load")
    model = script(folder, "adapters").adapted()
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    assert trained == plan.devices[0].parts["gradients"]
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["auto_mapping"]["memplan"]["plan"] == "not saved"
