"""vLLM's and SGLang's own parsers take the argument lines."""

from __future__ import annotations

import ast
import importlib.util
import os
import zipfile
from pathlib import Path

import pytest
from checkpoints import save_tiny
from plans import arguments_of, emitted

from memplan.emit.sglang import FIELDS
from memplan.units import GIB

pytestmark = [pytest.mark.engines, pytest.mark.filterwarnings("ignore")]  # theirs

CASES = {
    "plain": (),
    "many": ("--batch", "8", "--context", "128", "--prefill-chunk", "64"),
    "fp8 cache": ("--kv-dtype", "fp8"),
    "adapters": ("--lora-slots", "2", "--lora-rank", "16"),
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture(scope="module")
def engine_args():
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vllm is not installed: make engines")
    os.environ["VLLM_TARGET_DEVICE"] = "cpu"
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
    from vllm.engine.arg_utils import EngineArgs

    return EngineArgs


def parse(engine_args, words):
    """Return vLLM's EngineArgs of "vllm serve MODEL --option value ..."."""
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    assert words[:2] == ["vllm", "serve"]
    parser = engine_args.add_cli_args(FlexibleArgumentParser())
    return engine_args.from_cli_args(parser.parse_args(["--model", *words[2:]]))


@pytest.mark.parametrize("case", CASES)
def test_vllm_builds_its_config_of_the_argument_line(engine_args, llama, case):
    """EngineArgs parses it and makes a VllmConfig, on a machine without a GPU."""
    options = ("--runtime", "vllm", "--device", "1GiB", "--context", "64", *CASES[case])
    words = arguments_of(emitted("vllm", llama, *options)["vllm.sh"])
    arguments = parse(engine_args, words)
    config = arguments.create_engine_config()
    wanted = dict(zip(options[::2], options[1::2], strict=True))
    assert config.model_config.max_model_len == int(wanted["--context"])
    assert config.scheduler_config.max_num_seqs == int(wanted.get("--batch", 1))
    assert config.cache_config.kv_cache_memory_bytes == int(
        words[words.index("--kv-cache-memory-bytes") + 1]
    )


def test_vllm_refuses_what_is_wrong_in_such_a_line(engine_args, llama):
    """The check can fail: three heads' worth of degrees, a cache type that does not exist."""
    words = arguments_of(
        emitted("vllm", llama, "--runtime", "vllm", "--device", "1GiB", "--context", "64")[
            "vllm.sh"
        ]
    )
    with pytest.raises(SystemExit):
        parse(engine_args, [*words, "--swap-space", "4"])
    with pytest.raises(Exception, match="divisible"):
        parse(engine_args, [*words, "--tensor-parallel-size", "3"]).create_engine_config()


def test_two_cards_are_two_stages_of_the_layers_that_the_map_says(engine_args, llama):
    """--pipeline-parallel-size, and the layers of each stage where they are not equal."""
    text = emitted(
        *("vllm", "llama-3.1-8b", "--runtime", "vllm"),
        *("--device", "24GiB", "--device", "12GiB", "--context", "4096"),
    )["vllm.sh"]
    assert "--pipeline-parallel-size 2" in text
    line = next(x for x in text.splitlines() if "VLLM_PP_LAYER_PARTITION" in x)
    layers = [int(n) for n in line.partition("=")[2].split(",")]
    assert sum(layers) == 32
    assert layers[0] > layers[1]


def test_vllm_is_told_the_bytes_that_stay_on_the_host(engine_args, llama):
    """In its GB, which are GiB."""
    from plans import planned

    options = ("llama-3.1-8b", "--runtime", "vllm", "--device", "14GiB", "--host-memory", "64GiB")
    plan = planned(*options)
    words = arguments_of(emitted("vllm", *options)["vllm.sh"])
    size = float(words[words.index("--cpu-offload-gb") + 1])
    assert plan.placement.offloaded_bytes > 0
    assert size * GIB == pytest.approx(plan.placement.offloaded_bytes, abs=GIB // 1000)


@pytest.fixture(scope="module")
def sglang_options():
    """Option names of SGLang's ServerArgs, read from its wheel: installing it needs CUDA."""
    folder = Path(os.environ.get("MEMPLAN_ENGINE_WHEELS", ".venv-engines/wheels"))
    found = sorted(folder.glob("sglang-*.whl"))
    if not found:
        pytest.skip("no wheel of sglang: make engines")
    names = set()
    with zipfile.ZipFile(found[-1]) as wheel:
        for name in wheel.namelist():
            if "/arg_groups/fields/" in name or name.endswith("srt/server_args.py"):
                tree = ast.parse(wheel.read(name))
                for node in ast.walk(tree):
                    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                        names.add(node.target.id)
    return names


@pytest.mark.parametrize("case", CASES)
def test_sglang_has_every_option_of_the_argument_line(sglang_options, llama, case):
    """By the names of its fields."""
    options = ("--runtime", "vllm", "--device", "1GiB", "--context", "64", *CASES[case])
    words = arguments_of(emitted("sglang", llama, *options)["sglang.sh"])
    given = {word.removeprefix("--").replace("-", "_") for word in words if word.startswith("--")}
    assert given <= sglang_options
    assert given <= FIELDS <= sglang_options
