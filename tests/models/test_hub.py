"""Models on the Hub, against a server on the loopback that also misbehaves."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time

import pytest
from checkpoints import LLAMA_7B, TINY, llama_tensors, write_safetensors
from gguf_files import llama, write_gguf
from hub_server import COMMIT, serving

from memplan.errors import BadModelError, ModelError, ModelNotFoundError, UnsupportedModelError
from memplan.hub import ranges, repo
from memplan.hub.names import parse_name
from memplan.hub.store import HubStore
from memplan.models.load import load_model
from memplan.models.resolve import resolve

REPO = "acme/big-llama"
HEADER = 8


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A running Hub that huggingface_hub and memplan talk to, and empty caches."""
    constants = pytest.importorskip("huggingface_hub.constants")
    utils = pytest.importorskip("huggingface_hub.utils")
    with serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.setattr(ranges, "RETRY_WAITS_S", (0.0, 0.0))
        utils.close_session()
        yield server
        utils.close_session()


def published(path):
    """Return (size, header) of a sparse file: what a server needs to hold of it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(HEADER))
        file.seek(0)
        return size, file.read(HEADER + length)


def publish_llama(hub, tmp_path, name=REPO, config=LLAMA_7B):
    """Put a 7B model of two shards and 13 GB on the server."""
    tensors = llama_tensors(config)
    names = list(tensors)
    parts = {"model-1.safetensors": names[:100], "model-2.safetensors": names[100:]}
    weight_map = {tensor: file for file, own in parts.items() for tensor in own}
    for file, own in parts.items():
        path = write_safetensors(tmp_path / "made" / file, {x: tensors[x] for x in own})
        hub[name][file] = published(path)
    index = json.dumps({"weight_map": weight_map}).encode()
    (tmp_path / "made" / "model.safetensors.index.json").write_bytes(index)
    (tmp_path / "made" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    hub[name].update(
        {
            "model.safetensors.index.json": index,
            "config.json": json.dumps(config).encode(),
            "README.md": b"# A model",
        }
    )
    return tmp_path / "made"


def plan_model(argument, **options):
    return load_model(argument, dtype=None, options={}, **options)


def test_a_model_on_the_hub_is_what_it_is_in_a_folder(hub, tmp_path):
    """The same tensors and layers, by a few ranges of 13 GB."""
    folder = publish_llama(hub, tmp_path)
    spec = plan_model(REPO)
    local = resolve(str(folder))
    assert spec.tensors == local.tensors
    assert spec.layers == local.layers
    assert (spec.source, spec.name) == ("hub", "big-llama")
    assert spec.path == f"{REPO}@{COMMIT}"
    assert spec.weight_bytes == 13_476_831_232
    assert hub.sent < 500_000
    assert len(hub.requests) == 5  # the list of files, config, index, two headers


def test_the_second_time_nothing_is_asked(hub, tmp_path):
    """Headers of a commit never change; a branch is looked up once a day."""
    publish_llama(hub, tmp_path)
    first = plan_model(REPO)
    asked = len(hub.requests)
    again = plan_model(REPO)
    assert again.tensors == first.tensors
    assert len(hub.requests) == asked
    assert "from the cache of" in again.origin
    assert "cache" not in first.origin


def test_a_branch_is_asked_for_again_after_a_day(hub, tmp_path, monkeypatch):
    """A new commit is found, and its headers are read."""
    publish_llama(hub, tmp_path)
    plan_model(REPO)
    hub.commit = "b" * 40
    now = time.time()
    monkeypatch.setattr(repo.time, "time", lambda: now + repo.FRESH_S + 1)
    assert plan_model(REPO).path == f"{REPO}@{'b' * 40}"


def test_offline_the_cache_answers_and_says_so(hub, tmp_path, monkeypatch):
    """Neither a dead server nor the offline switch matter after the first time."""
    publish_llama(hub, tmp_path)
    first = plan_model(REPO)
    now = time.time()
    monkeypatch.setattr(repo.time, "time", lambda: now + repo.FRESH_S + 1)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    again = plan_model(REPO)
    assert again.tensors == first.tensors
    assert "which cannot be reached: from the cache of 20" in again.origin


def test_offline_without_a_cache_is_one_clear_error(hub, monkeypatch):
    """It says what to do."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFoundError, match="offline mode is on") as caught:
        plan_model("acme/never-seen")
    assert "once with a connection" in caught.value.hint
    assert "no file or folder of that name" in str(caught.value)


def test_what_huggingface_hub_has_downloaded_is_used(hub, tmp_path, monkeypatch):
    """Its cache answers offline, headers and all."""
    folder = publish_llama(hub, tmp_path)
    root = tmp_path / "hf" / "models--acme--big-llama"
    snapshot = root / "snapshots" / COMMIT
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    spec = plan_model(REPO)
    assert spec.weight_bytes == 13_476_831_232
    assert spec.origin.endswith("which cannot be reached: from the cache")
    assert hub.requests == []


def test_a_revision_can_be_a_commit(hub, tmp_path):
    """A commit that was read once is never asked for again; an unknown one is refused."""
    publish_llama(hub, tmp_path)
    plan_model(f"{REPO}@{COMMIT}")
    asked = len(hub.requests)
    plan_model(f"{REPO}@{COMMIT}")
    assert len(hub.requests) == asked
    with pytest.raises(ModelNotFoundError, match="no such revision"):
        plan_model(f"{REPO}@v9")


def test_a_config_alone_is_built(hub):
    """A repository with pickles only: they are not read."""
    hub["acme/tiny"].update(
        {"config.json": json.dumps(TINY).encode(), "pytorch_model.bin": b"\x80"}
    )
    spec = plan_model("acme/tiny")
    assert (spec.source, spec.exact_modules) == ("hub", True)
    assert spec.origin.startswith("config.json of acme/tiny@aaaaaaa")
    assert not any("pytorch_model" in path for path, _, _ in hub.requests)


def gguf(tmp_path, kind="q8_0", name="x.gguf", **extra):
    path = write_gguf(tmp_path / name, *llama(layers=2, vocab=3000, kind=kind, **extra))
    data = path.read_bytes()
    return data if len(data) < 10_000_000 else (path.stat().st_size, data[:2_000_000])


def test_a_gguf_repository_asks_which_one(hub, tmp_path):
    """By its quantization or its file name, shards included; the rest is listed."""
    files = {"m-Q8_0.gguf": "q8_0", "m-Q4_0.gguf": "q4_0", "mmproj-F16.gguf": "f16"}
    for name, kind in files.items():
        hub["acme/m-GGUF"][name] = gguf(tmp_path, kind, name)
    with pytest.raises(ModelNotFoundError, match=r"has 2 GGUF models: Q4_0, Q8_0$") as caught:
        plan_model("acme/m-GGUF")
    assert caught.value.hint == "name one: acme/m-GGUF:Q4_0"
    small, large = plan_model("acme/m-GGUF:q4_0"), plan_model("acme/m-GGUF:m-Q8_0.gguf")
    assert small.dtype == "q4_0"
    assert large.weight_bytes > small.weight_bytes
    assert small.path == f"acme/m-GGUF@{COMMIT}:m-Q4_0.gguf"
    assert plan_model(small.path).tensors == small.tensors
    with pytest.raises(ModelNotFoundError, match="no file 'Q9_X'"):
        plan_model("acme/m-GGUF:Q9_X")


def test_a_gguf_header_is_all_that_is_kept(hub, tmp_path):
    """Offline it is there again."""
    hub["acme/one"]["one-Q8_0.gguf"] = gguf(tmp_path)
    first = plan_model("acme/one")
    asked = len(hub.requests)
    assert plan_model("acme/one").tensors == first.tensors
    assert len(hub.requests) == asked


@pytest.mark.parametrize("trouble", ["ranges", "redirect", "busy", "compress"])
def test_servers_differ(hub, tmp_path, trouble):
    """Ignored ranges cost one start of a file; redirects and a busy answer cost nothing."""
    publish_llama(hub, tmp_path)
    if trouble == "ranges":
        hub.ranges = False
    elif trouble == "redirect":
        hub.redirect_to = f"http://localhost:{hub.port}"
    elif trouble == "busy":
        hub.failures = [503, 429]
    else:
        hub.compress = True
        with pytest.raises(BadModelError, match="does not give the bytes"):
            plan_model(REPO)
        return
    assert plan_model(REPO).weight_bytes == 13_476_831_232


def test_the_token_is_sent_to_the_hub_and_to_nobody_else(hub, tmp_path):
    """A redirect to another host goes without it."""
    publish_llama(hub, tmp_path)
    hub.private[REPO] = "hf_secret"
    hub.redirect_to = f"http://localhost:{hub.port}"
    plan_model(REPO)
    tokens = {path.startswith("/cdn"): token for path, _, token in hub.requests}
    assert tokens == {False: "hf_secret", True: ""}


def test_a_private_model_without_a_token_says_how_to_log_in(hub, tmp_path, monkeypatch):
    """The answer of the Hub does not say whether it exists."""
    publish_llama(hub, tmp_path)
    hub.private[REPO] = "another"
    with pytest.raises(ModelNotFoundError, match="not on the Hub, or private") as caught:
        plan_model(REPO)
    assert "hf auth login" in caught.value.hint


def test_a_gated_model_says_so_and_a_listed_one_is_planned_from_the_catalogue(hub, tmp_path):
    """With the reason in the plan."""
    publish_llama(hub, tmp_path)
    publish_llama(hub, tmp_path, "meta-llama/Llama-3.1-8B")
    hub.gated |= {REPO, "meta-llama/Llama-3.1-8B"}
    with pytest.raises(ModelNotFoundError, match="access is refused") as caught:
        plan_model(REPO)
    assert "accept a gated model's terms" in caught.value.hint
    listed = plan_model("meta-llama/Llama-3.1-8B")
    assert listed.source == "catalog"
    assert listed.origin == "catalogue's llama-3.1-8b, since the Hub refuses it"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cut_short": True}, "ended early|cannot be reached"),
        ({"lying_range": True}, "does not give the bytes"),
        ({"failures": [500] * 9}, "the Hub answered 500"),
        ({"api_answer": b"<html>log in to this wifi</html>"}, "not one of a Hugging Face Hub"),
        ({"api_answer": b'{"id": 3}'}, "not one of a Hugging Face Hub"),
        ({"api_answer": b'{"id": "x/y", "sha": "zz", "siblings": []}'}, "not one of a Hugging"),
    ],
)
def test_a_server_that_misbehaves_is_one_error(hub, tmp_path, change, message):
    """Each with a hint."""
    publish_llama(hub, tmp_path)
    for name, value in change.items():
        setattr(hub, name, value)
    with pytest.raises(ModelError, match=message) as caught:
        plan_model(REPO)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"adapter_config.json": b"{}"}, "is an adapter"),
        ({"model_index.json": b"{}"}, "pipeline of several models"),
        ({"model.onnx": b""}, "neither config.json nor safetensors"),
        ({"config.json": b"{", "model.safetensors": b""}, "not valid JSON"),
        ({"config.json": b"{}", "model.safetensors": b"12"}, "truncated"),
        ({"config.json": (10**10, b"{}")}, "too large for a config"),
        ({"model.safetensors": (10**12, struct.pack("<Q", 10**11))}, "header claims"),
        ({"model.safetensors.index.json": b'{"weight_map": {"a": "../x"}}'}, "outside its folder"),
        ({"model.safetensors.index.json": b'{"weight_map": {"a": "no"}}'}, "not on the Hub"),
        ({"x.gguf": b"GGUF" + struct.pack("<IQQ", 3, 2**63, 1)}, "claims"),
        ({"a.safetensors": b"", "b.safetensors": b""}, "2 safetensors files and no index"),
    ],
)
def test_hostile_repositories_are_refused(hub, files, message):
    """In one line with a hint, and nothing large is read."""
    hub["evil/repo"].update(files)
    with pytest.raises(ModelError, match=message) as caught:
        plan_model("evil/repo")
    assert caught.value.hint
    assert hub.sent < 1_000_000


def test_remote_code_is_fetched_only_when_the_user_says_so(hub):
    """Without the option the model is refused and no file of code is asked for."""
    config = {**TINY, "model_type": "acme_odd", "auto_map": {"AutoConfig": "code.Odd"}}
    hub["acme/odd"].update(
        {"config.json": json.dumps(config).encode(), "code.py": b"raise SystemExit"}
    )
    with pytest.raises(UnsupportedModelError, match="needs Python code"):
        plan_model("acme/odd")
    assert not any("code.py" in path for path, _, _ in hub.requests)


def test_a_damaged_cache_is_read_anew(hub, tmp_path):
    """Never an error."""
    publish_llama(hub, tmp_path)
    first = plan_model(REPO)
    folder = HubStore(REPO)._folder
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(b"\0" * 3)
    assert plan_model(REPO).tensors == first.tensors


def test_a_cache_that_cannot_be_written_is_no_reason_to_fail(hub, tmp_path, monkeypatch):
    """It is only slower the next time."""
    publish_llama(hub, tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEMPLAN_CACHE", str(tmp_path / "file"))
    assert plan_model(REPO).weight_bytes == 13_476_831_232


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", ("org/name", "main", None)),
        ("hf:org/name.gguf", ("org/name.gguf", "main", None)),
        ("https://huggingface.co/org/name/", ("org/name", "main", None)),
        ("org/na.me-1@refs/pr/3", ("org/na.me-1", "refs/pr/3", None)),
        ("org/name@v1:Q4_K_M", ("org/name", "v1", "Q4_K_M")),
        ("org/name:sub/x-00001-of-00002.gguf", ("org/name", "main", "sub/x-00001-of-00002.gguf")),
        ("name", None),
        ("./org/name", None),
        ("/org/name", None),
        ("a/b/c", None),
        ("../b", None),
        ("models/x.gguf", None),
        ("models/config.json", None),
        ("org/na--me", None),
        ("org/name@../..", None),
        ("org/name@", None),
    ],
)
def test_names_of_the_hub(text, expected):
    """What looks like a file is none."""
    name = parse_name(text)
    assert (name and (name.repo, name.revision, name.file)) == expected


def test_the_program_plans_from_the_hub(hub, tmp_path):
    """As a user types it, and offline the second time; without torch."""
    publish_llama(hub, tmp_path)
    command = [sys.executable, "-X", "importtime", "-m", "memplan", "plan", REPO]
    command += ["--device", "24GiB"]
    environ = os.environ | {"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hfhome")}
    online = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    assert online.returncode == 0, online.stderr[-2000:]
    assert " torch" not in online.stderr
    assert "headers of acme/big-llama@aaaaaaa on the Hub, float16" in online.stdout
    environ["HF_HUB_OFFLINE"] = "1"
    offline = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    assert offline.returncode == 0
    assert "from the cache of 20" in offline.stdout
    assert "huggingface_hub" not in offline.stderr
