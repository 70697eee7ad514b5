"""`memplan plan`, `map` and `emit` as a user types them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from checkpoints import LLAMA_7B, LLAVA, TINY, write_config, write_llama, write_safetensors
from goldens import check_golden

from memplan.cli.main import run
from memplan.serialize import loads
from memplan.types import Plan

HARDWARE = ("--device", "8GiB", "--host-memory", "6GiB", "--disk", "100GiB")


@pytest.fixture
def llama(tmp_path):
    return str(write_llama(tmp_path / "llama-7b", LLAMA_7B, "F16"))


def test_a_plan_reads_like_this(llama, capsys):
    """Offload over three tiers."""
    assert run(["plan", llama, *HARDWARE]) == 0
    check_golden("cli_plan.txt", capsys.readouterr().out)


def test_the_json_is_the_contracts(llama, capsys):
    """Keys, whole bytes, the options used and which of them were assumed."""
    assert run(["plan", llama, *HARDWARE, "--context", "1024", "--json"]) == 0
    text = capsys.readouterr().out
    plan = json.loads(text)
    assert plan["schema"] == "memplan.plan/1"
    assert plan["id"] is None
    expected = {
        "model": {
            "name",
            "architecture",
            "source",
            "parameters",
            "active_parameters",
            "layers",
            "weight_format",
        },
        "workload": {"task", "runtime", "dtype", "context", "batch", "kv_dtype", "attention"}
        | {"device", "host_memory", "disk", "reserve", "assumed", "estimator"},
        "footprint": {"lines", "total_bytes", "low_bytes", "high_bytes"},
        "placement": {
            "device_map",
            "offloaded_bytes",
            "streamed_bytes_per_token",
            "decode_tokens_per_s",
            "policy",
        },
        "verdict": {"fits", "reason", "changes"},
    }
    for key, names in expected.items():
        assert names <= plan[key].keys()
    for line in plan["footprint"]["lines"]:
        assert {"part", "bytes", "low_bytes", "high_bytes", "basis", "source"} <= line.keys()
        assert isinstance(line["bytes"], int)
    for device in plan["devices"]:
        names = {"name", "kind", "capacity_bytes", "reserve_bytes", "parts", "total_bytes"}
        assert names | {"free_bytes"} <= device.keys()
        assert device["total_bytes"] == sum(device["parts"].values())
    assert plan["workload"]["context"] == 1024
    assert "context" not in plan["workload"]["assumed"]
    assert "batch" in plan["workload"]["assumed"]
    weights = next(x for x in plan["footprint"]["lines"] if x["part"] == "weights")
    assert weights["bytes"] == 13_476_831_232
    assert loads(text, Plan).verdict.fits


def test_exit_codes_are_fits_does_not_fit_and_cannot_answer(tmp_path, llama, capsys):
    """0, 1 and 2."""
    config = str(write_config(tmp_path / "config-only", LLAMA_7B))
    for model in (llama, config):
        assert run(["plan", model, "--device", "24GiB"]) == 0
        small = ["--device", "4GiB", "--host-memory", "4GiB", "--disk", "0"]
        assert run(["plan", model, *small]) == 1
    assert "DOES NOT FIT: cpu lacks" in capsys.readouterr().out
    assert run(["plan", str(tmp_path / "none")]) == 2


def test_planning_a_safetensors_folder_imports_no_torch(llama):
    """Headers suffice."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "memplan", "plan", llama, *HARDWARE],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "DynamicCache" in done.stdout
    names = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert not names & {"torch", "transformers", "accelerate", "sqlalchemy", "textual"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--device", "lots"), "'lots' is no device"),
        (("--device", "-4GiB"), "'-4GiB' is no device"),
        (("--device", "0"), "holds nothing"),
        (("--device", "cpu", "--device", "8GiB"), "no GPU computes"),
        (("--host-memory", "nan"), "is not a size"),
        (("--device", "4GiB", "--reserve", "5GiB"), "--reserve is more"),
        (("--context", "0"), "not between 1"),
        (("--context", "many"), "not a whole number"),
        (("--batch", "-3"), "not between 1"),
        (("--dtype", "float7"), "unknown dtype"),
        (("--seq", "5"), "belongs to --task train"),
        (("--quant", "q9"), "'q9' is not"),
    ],
)
def test_bad_options_are_one_clear_line_and_exit_2(llama, capsys, arguments, message):
    """And nothing on standard output."""
    assert run(["plan", llama, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert "hint: " in err


def test_a_truncated_file_is_one_clear_line(tmp_path, capsys):
    """Exit 2 and what to do."""
    path = write_safetensors(tmp_path / "model.safetensors", {"a": ("F32", (1000,))})
    with path.open("r+b") as file:
        file.truncate(500)
    assert run(["plan", str(path)]) == 2
    assert "download the file again" in capsys.readouterr().err


def test_quiet_prints_one_number(llama, capsys):
    """Bytes, for scripts."""
    assert run(["plan", llama, *HARDWARE, "--quiet"]) == 0
    assert capsys.readouterr().out.strip().isdigit()


def test_plain_draws_no_bars(llama, capsys):
    """For screen readers."""
    assert run(["plan", llama, *HARDWARE, "--plain"]) == 0
    assert "#" not in capsys.readouterr().out


def test_the_map_is_what_from_pretrained_takes(tmp_path, capsys):
    """GPUs by number, cpu and disk by name, complete."""
    folder = write_llama(tmp_path / "tiny", TINY)
    assert run(["map", str(folder), *HARDWARE]) == 0
    keys = json.loads(capsys.readouterr().out)
    assert set(keys.values()) == {0}
    assert {"model.embed_tokens", "model.norm", "lm_head", "model.rotary_emb"} <= keys.keys()


def test_a_saved_plan_is_found_again_and_emitted(tmp_path, capsys):
    """Plan --save, then emit by "last" and by JSON file: the same files."""
    folder = str(write_llama(tmp_path / "tiny", TINY))
    assert run(["plan", folder, *HARDWARE, "--save", "--json"]) == 0
    text = capsys.readouterr().out
    saved = json.loads(text)
    assert saved["id"]
    (tmp_path / "plan.json").write_text(text)
    for source, name in (("last", "a"), (str(tmp_path / "plan.json"), "b"), (saved["id"], "c")):
        arguments = ["emit", source, "--to", "accelerate", "--output", str(tmp_path / name)]
        assert run(arguments) == 0
        settings = json.loads((tmp_path / name / "accelerate.json").read_text())
        assert settings["memplan"]["plan"] == saved["id"]
        assert settings["dtype"] == "float32"
    assert run(arguments) == 2
    assert "--force" in capsys.readouterr().err
    assert run([*arguments, "--force"]) == 0


def test_a_quantized_plan_is_not_emitted_as_a_plain_one(tmp_path, capsys):
    """Accelerate's files carry no quantization: loading by them would take four times as much."""
    folder = str(write_llama(tmp_path / "tiny", TINY))
    assert run(["plan", folder, *HARDWARE, "--quant", "nf4", "--save", "--quiet"]) == 0
    assert run(["emit", "last", "--to", "accelerate", "--output", str(tmp_path / "out")]) == 2
    assert "carry no --quant nf4" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_plan_that_is_not_there_is_one_clear_line(capsys):
    """No database yet, no such file."""
    assert run(["emit", "last", "--to", "accelerate"]) == 2
    assert run(["emit", "none.json", "--to", "accelerate"]) == 2
    assert capsys.readouterr().err.count("error: ") == 2


def test_images_are_named_in_the_plan(tmp_path, capsys):
    """--images and --image-size reach the workload; a size that is none ends with a hint."""
    (tmp_path / "config.json").write_text(json.dumps(LLAVA))
    plan = ["plan", str(tmp_path), "--device", "24GiB", "--context", "256", "--json"]
    assert run([*plan, "--images", "2", "--image-size", "640x480"]) == 0
    work = json.loads(capsys.readouterr().out)["workload"]
    assert (work["images"], work["image_size"]) == (2, "640x480")
    assert run([*plan, "--images", "2", "--image-size", "wide"]) == 2
    assert "1024x768" in capsys.readouterr().err


def test_a_proof_is_one_line_per_device(llama, capsys):
    """In bytes, with the sign that says whether it holds."""
    assert run(["plan", llama, *HARDWARE, "--proof"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[:2]] == ["cuda", "cpu"]
    assert all(" = " in line and " <= " in line for line in lines[:3])
    assert "read from the checkpoint's own files" in lines[3]


def test_pins_and_others_reach_the_plan(llama, capsys):
    """--pin is repeatable and part of the workload; --beside optimum names the bound."""
    pytest.importorskip("scipy")
    pins = ["--pin", "lm_head=cpu", "--pin", "model.norm=cuda:0"]
    assert run(["plan", llama, *HARDWARE, *pins, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["workload"]["pin"] == ["lm_head=cpu", "model.norm=cuda:0"]
    assert "pin" not in plan["workload"]["assumed"]
    assert plan["placement"]["device_map"]["lm_head"] == "cpu"
    assert run(["plan", llama, *HARDWARE, "--beside", "optimum", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["placement"]["beside"]
    assert row["name"] == "optimum"
    assert run(["plan", llama, *HARDWARE, "--pin", "lm_heat=cpu"]) == 2
    assert "hint: such as" in capsys.readouterr().err
