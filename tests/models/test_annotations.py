"""Values of configs held against transformers' own annotations, without importing it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from checkpoints import TINY

from memplan.errors import BadModelError
from memplan.models.annotations import check_values
from memplan.models.meta import plain_config
from memplan.models.skips import ModuleNames

pytestmark = pytest.mark.models


def test_no_default_config_of_transformers_is_refused():
    """Every causal language model type: what transformers writes is what it takes."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

    refused = {}
    for model_type in NAMES:
        try:
            config = plain_config(transformers.AutoConfig.for_model(model_type))
        except Exception:  # noqa: BLE001 - huggingface_hub has an error of its own for it
            continue  # a default that transformers itself refuses
        try:
            check_values(config)
        except BadModelError as error:
            refused[model_type] = str(error)
    assert not refused


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("intermediate_size", "many", "not int"),
        ("intermediate_size", None, "not int"),
        ("intermediate_size", True, "not int"),
        ("rms_norm_eps", "small", "not float"),
        ("attention_bias", 3, "not bool"),
        ("hidden_act", "nope", "not one that transformers knows"),
        ("hidden_size", 65, "not a multiple of the 4 heads"),
        ("num_key_value_heads", 0, "a number of 1 or more"),
        ("intermediate_size", -4, "a number of 0 or more"),
        ("rope_scaling", {"rope_type": "nope"}, "not one that transformers knows"),
        ("rope_scaling", 3, "not an object"),
        ("dtype", 3, "not the name of a dtype"),
        ("quantization_config", "x", "not an object"),
    ],
)
def test_a_value_that_cannot_be_is_named(key, value, words):
    """With the key, the value and what would be right."""
    with pytest.raises(BadModelError, match=words) as caught:
        check_values({**TINY, key: value})
    assert str(caught.value).startswith(f"config.json: {key.replace('rope_scaling', 'rope_')}"[:18])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("head_dim", None),
        ("num_key_value_heads", None),
        ("rope_scaling", {"rope_type": "yarn", "factor": 4}),
        ("rope_scaling", {"type": "su"}),
        ("hidden_act", "gelu"),
        ("rope_theta", 10000),
        ("pad_token_id", -1),
        ("something_of_the_future", {"a": -1}),
    ],
)
def test_what_real_configs_have_is_taken(key, value):
    """Null where transformers has a default, whole numbers for floats, token ids of -1."""
    check_values({**TINY, key: value})


def test_transformers_is_not_imported():
    """Its files are read, which takes milliseconds."""
    code = (
        "import sys, json; from memplan.models.annotations import check_values; "
        "check_values(json.loads(sys.argv[1])); print('transformers' in sys.modules)"
    )
    command = [sys.executable, "-c", code, json.dumps(TINY)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_pattern_that_takes_forever_is_refused():
    """A list of modules comes from a file: two seconds for all of its patterns."""
    names = ModuleNames(["re:(?:a|aa)+x$"])
    with pytest.raises(BadModelError, match="takes forever to match"):
        names.hold("a" * 200 + ".weight")
