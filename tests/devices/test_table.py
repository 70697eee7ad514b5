"""memplan.devices.table: the products, their names and what `--device` makes of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict

import pytest

from memplan.cli.main import run
from memplan.devices import parse, table
from memplan.devices.parse import parse_hardware
from memplan.devices.table import closest, find, known, matching, normalised
from memplan.errors import DeviceError
from memplan.types import Device
from memplan.units import GIB, MIB, parse_bytes

EVERY = pytest.mark.parametrize("device", known(), ids=lambda device: device.name)


def test_the_table_covers_the_makers_and_kinds():
    """It has at least 75 products, of the five big makers and of every kind."""
    assert len(known()) >= 75
    assert {device.vendor for device in known()} >= {"NVIDIA", "AMD", "Intel", "Apple", "Google"}
    assert {device.kind for device in known()} == {"gpu", "unified", "accelerator"}


def test_no_name_stands_for_two_products():
    """Names, labels and aliases are unambiguous once case, spaces, signs and makers are gone."""
    owners = defaultdict(set)
    for device in known():
        for text in (device.name, device.label, *device.aliases):
            assert normalised(text)
            owners[normalised(text)].add(device.name)
    assert {text: names for text, names in owners.items() if len(names) > 1} == {}
    assert len({device.name for device in known()}) == len(known())


@EVERY
def test_a_product_makes_sense(device):
    """Sizes, rates and years are in the range of what exists, and a source is named."""
    assert GIB * 4 <= device.memory_bytes <= GIB * 512
    assert device.memory_bytes % GIB == 0
    assert 0.6 * device.memory_bytes < device.capacity_bytes <= device.memory_bytes
    if device.usable_bytes is not None:
        assert device.usable_bytes % MIB == 0
        assert device.usable_bytes >= 0.9 * device.memory_bytes
    if device.usable_share is not None:
        assert device.kind == "unified"
        assert 0.5 < device.usable_share < 1
    assert device.bandwidth is None or 30e9 <= device.bandwidth <= 10e12
    assert device.nvlink_bandwidth is None or 50e9 <= device.nvlink_bandwidth <= 2e12
    assert device.host_bandwidth is None or 7e9 <= device.host_bandwidth <= 450e9
    assert 2016 <= device.year <= 2026
    assert len(device.source) > 8


@EVERY
def test_the_name_is_a_slug_that_is_found_and_is_no_size(device):
    """Lower case, and neither a size nor a word of the command line."""
    assert device.name == device.name.lower()
    assert " " not in device.name
    assert device.name not in {"local", "cpu"}
    assert find(device.name) is device
    assert find(device.label) is device
    for text in (device.name, device.label, *device.aliases):
        assert find(text) is device
        with pytest.raises(ValueError, match="is not a size"):
            parse_bytes(text)


@pytest.mark.parametrize(
    ("name", "memory", "usable", "bandwidth", "pcie", "nvlink", "capability"),
    [
        ("rtx4090", 24, 24564, 1008, "4.0 x16", None, "8.9"),
        ("rtx3090", 24, 24576, 936.2, "4.0 x16", 112.5, "8.6"),
        ("rtx5090", 32, 32607, 1792, "5.0 x16", None, "12.0"),
        ("t4", 16, 15360, 320, "3.0 x16", None, "7.5"),
        ("a10", 24, 23028, 600, "4.0 x16", None, "8.6"),
        ("a100-80gb", 80, 81920, 2039, "4.0 x16", 600, "8.0"),
        ("l4", 24, 23034, 300, "4.0 x16", None, "8.9"),
        ("l40s", 48, 46068, 864, "4.0 x16", None, "8.9"),
        ("h100-sxm", 80, 81559, 3350, "5.0 x16", 900, "9.0"),
        ("h200", 141, 143771, 4800, "5.0 x16", 900, "9.0"),
        ("mi300x", 192, 196592, 5300, "5.0 x16", None, "gfx942"),
        ("arc-b580", 12, None, 456, "4.0 x8", None, None),
        ("tpu-v5e", 16, None, 819, None, None, None),
    ],
)
def test_golden_products(name, memory, usable, bandwidth, pcie, nvlink, capability):
    """A few entries, held against the makers' data sheets and the drivers' totals."""
    device = find(name)
    assert device.memory_bytes == memory * GIB
    assert device.usable_bytes == (None if usable is None else usable * MIB)
    assert device.bandwidth == bandwidth * 10**9
    assert device.pcie == pcie
    assert device.nvlink_bandwidth == (None if nvlink is None else nvlink * 10**9)
    assert device.compute_capability == capability


@pytest.mark.parametrize(
    ("name", "bytes_"),
    [("m1-16gb", 11453246122), ("m3-pro-36gb", 27 * GIB), ("m3-max-128gb", 96 * GIB)],
)
def test_apple_gives_the_gpu_a_share(name, bytes_):
    """The figures are those that Metal reports: 11453.25 MB of 16 GB, three quarters of 36 GB."""
    device = find(name)
    assert device.kind == "unified"
    assert device.usable_bytes is None
    assert device.capacity_bytes == bytes_


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("RTX 4090", "rtx4090"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("geforce-rtx-4090", "rtx4090"),
        ("nvidia geforce rtx 4090 laptop gpu", "rtx4090-laptop"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie-80gb"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("Tesla V100-SXM2-32GB", "v100-32gb"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx6000-ada"),
        ("AMD Radeon RX 7900 XTX", "rx7900xtx"),
        ("Apple M3 Max 128GB", "m3-max-128gb"),
        ("GB10", "dgx-spark"),
    ],
)
def test_a_product_is_found_under_what_people_and_drivers_write(text, name):
    """Case, spaces, dashes, the maker and a final "GPU" do not matter."""
    assert find(text).name == name


@pytest.mark.parametrize("text", ["", "nvidia", "rtx", "a100", "24GiB", "local", "cpu", "GPU"])
def test_what_names_no_single_product_is_not_found(text):
    """An A100 has 40 or 80 GB: which one is not guessed."""
    assert find(text) is None


def test_close_names_come_first_that_begin_alike():
    """Then those that difflib finds; there are always as many as asked for."""
    assert closest("a100") == ("a100-40gb", "a100-pcie-40gb", "a100-80gb")
    assert closest("RTX 4091")[0] == "rtx4090"
    assert len(closest("")) == len(closest("?")) == 3


def test_products_are_filtered_by_a_part_of_the_name_the_maker_or_the_kind():
    """Whatever the case and the signs."""
    assert {d.name for d in matching("4090")} == {"rtx4090", "rtx4090d", "rtx4090-laptop"}
    assert {d.vendor for d in matching("apple")} == {"Apple"}
    assert all(d.kind == "accelerator" for d in matching("accelerator"))
    assert matching("no such thing") == ()


def test_the_file_is_read_when_it_is_first_needed():
    """Importing the module opens nothing, and it imports no torch."""
    program = (
        "import sys, memplan.devices.table as table\n"
        "assert table.known.cache_info().currsize == 0\n"
        "assert 'torch' not in sys.modules\n"
        "assert table.known() is table.known()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_product_is_planned_for_with_what_its_driver_reports():
    """Its label and source come along; its own memory's rate is no rate towards a device."""
    found = parse_hardware(["rtx4090", "NVIDIA A10", "8GiB"], host_memory=GIB, disk=0, reserve=5)
    gpus = [device for device in found.devices if device.kind == "gpu"]
    assert [(g.name, g.capacity_bytes, g.reserve_bytes) for g in gpus] == [
        ("cuda:0", 24564 * MIB, 5),
        ("cuda:1", 23028 * MIB, 5),
        ("cuda:2", 8 * GIB, 5),
    ]
    assert gpus[0].label == "NVIDIA GeForce RTX 4090"
    assert gpus[0].source == find("rtx4090").source
    assert gpus[0].bandwidth is None
    assert found.names == ("rtx4090", "NVIDIA A10", "8GiB")


def test_a_shared_memory_is_counted_once(monkeypatch):
    """Beside it there is no host, not even this machine's, unless one is given."""
    monkeypatch.setattr(parse, "detect_host", lambda: pytest.fail("the host was asked"))
    alone = parse_hardware(["m3-max-128gb"], disk=0)
    assert [(d.name, d.kind, d.capacity_bytes) for d in alone.devices] == [
        ("cuda:0", "gpu", 96 * GIB)
    ]
    given = parse_hardware(["m3-max-128gb"], host_memory=GIB, disk=0)
    assert [(d.name, d.capacity_bytes) for d in given.devices] == [
        ("cuda:0", 96 * GIB),
        ("cpu", GIB),
    ]


def test_beside_a_card_the_host_is_this_machine(monkeypatch):
    """A product with memory of its own changes nothing about the host."""
    host = Device(name="cpu", kind="cpu", capacity_bytes=3 * GIB)
    monkeypatch.setattr(parse, "detect_host", lambda: host)
    found = parse_hardware(["rtx4090"], disk=0)
    assert [d.capacity_bytes for d in found.devices] == [24564 * MIB, 3 * GIB]


def test_an_unknown_name_is_answered_with_the_closest_ones():
    """One line, three names, and where all of them are listed."""
    with pytest.raises(DeviceError) as caught:
        parse_hardware(["rtx 4091"], host_memory=GIB, disk=0)
    assert str(caught.value) == "'rtx 4091' is no device that memplan knows"
    assert caught.value.hint.startswith("close are rtx4090, rtx4090d, ")
    assert "`memplan devices`" in caught.value.hint
    assert "\n" not in caught.value.hint


def test_devices_prints_what_is_here_and_then_the_table(capsys):
    """Every product has one line."""
    assert run(["devices"]) == 0
    here, _, products = capsys.readouterr().out.partition("\nknown, for --device:\n")
    assert "cpu" in here
    head, *lines = products.splitlines()
    assert head.split() == ["name", "memory", "a", "plan", "uses", "bandwidth", "link", "from"]
    assert [line.split()[0] for line in lines] == [device.name for device in known()]


def test_devices_can_be_looked_up(capsys):
    """With a text only the products that have it, with both sizes, rate, link and source."""
    assert run(["devices", "RTX 3090", "--unit", "GiB"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines[1].split()) == (
        "rtx3090 24 GiB 24.00 GiB 936 GB/s PCIe 4.0 x16, NVLink 112 GB/s "
        "NVIDIA Ampere GA102 GPU Architecture..."
    )
    assert [line.split()[0] for line in lines[1:]] == ["rtx3090", "rtx3090ti"]
    assert run(["devices", "m3-max-64gb"]) == 0
    assert "shared with the CPU" in capsys.readouterr().out


def test_devices_json_has_the_schema_and_the_products(capsys):
    """The filter holds for the products; what was detected is always there."""
    assert run(["devices", "4090", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "memplan.devices/1"
    assert {"cpu", "disk"} <= {row["name"] for row in document["devices"]}
    assert [row["name"] for row in document["known"]] == ["rtx4090", "rtx4090d", "rtx4090-laptop"]
    assert document["known"][0]["capacity_bytes"] == 24564 * MIB
    assert document["known"][0]["source"]


def test_a_text_that_matches_nothing_is_answered_with_close_names(capsys):
    """Exit code 2 and a hint."""
    assert run(["devices", "rtx 4091"]) == 2
    assert "close are rtx4090" in capsys.readouterr().err


def test_the_table_has_no_field_that_is_not_read():
    """Every entry has every field, so that none is forgotten."""
    text = table.importlib.resources.files("memplan.devices").joinpath("table.json").read_text()
    document = json.loads(text)
    assert document["schema"] == "memplan.device-table/1"
    fields = {field for row in document["devices"] for field in row}
    assert all(row.keys() == fields for row in document["devices"])
