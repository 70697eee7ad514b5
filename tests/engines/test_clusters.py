"""Kubernetes' schema, Ray's scheduler and SkyPilot's parser take what was written."""

from __future__ import annotations

import json
import sys

import pytest
import yaml
from plans import emitted, needs

pytestmark = [pytest.mark.engines, pytest.mark.filterwarnings("ignore")]  # theirs

TRAIN = ("llama-3.1-8b", "--task", "train", "--device", "h100", "--host-memory", "16GiB")
TWO = (*TRAIN, "--gpus", "2", "--seq", "2048")


def pod(block):
    """Return a pod whose one container has the resources."""
    container = {"name": "model", "image": "example/image:1", **block}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "model"},
        "spec": {"containers": [container]},
    }


def test_kubernetes_schema_takes_the_resources():
    """Of its API server's own OpenAPI; and it refuses a typo in them."""
    needs("kubernetes_validate")
    import kubernetes_validate

    block = yaml.safe_load(emitted("kubernetes", *TWO)["kubernetes.yaml"])
    kubernetes_validate.validate(pod(block), "1.31", strict=True)
    wrong = {"resources": {"limit": block["resources"]["limits"]}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod(wrong), "1.31", strict=True)


RAY = """
import json, sys, ray
from ray.util import placement_group, placement_group_table
group = json.loads(sys.argv[1])
memory = sum(b["memory"] for b in group["bundles"])
ray.init(num_cpus=8, num_gpus=2, _memory=memory, include_dashboard=False, logging_level="ERROR",
         object_store_memory=80 * 2**20)
placed = placement_group(**group)
assert placed.wait(60), "the bundles were not placed"
assert placement_group_table(placed)["name"] == group["name"]
more = placement_group([{"GPU": 1}])
print("placed", not more.wait(1))
ray.shutdown()
"""


def test_ray_places_the_bundles_on_a_local_cluster(run_program):
    """Two pretended GPUs are then taken: a third bundle waits."""
    needs("ray")
    group = emitted("ray", *TWO)["ray.json"]
    assert len(json.loads(group)["bundles"]) == 2
    done = run_program(sys.executable, "-c", RAY, group)
    assert "placed True" in done.stdout


SKY = """
import sys, sky
task = sky.Task.from_yaml(sys.argv[1])
print(task.num_nodes, [r.accelerators for r in task.resources])
"""


def test_skypilot_reads_the_task(run_program, tmp_path):
    """Task.from_yaml; and it refuses a misspelt key."""
    needs("sky")
    path = tmp_path / "sky.yaml"
    text = emitted("skypilot", *TRAIN, "--gpus", "16", "--nodes", "2")["sky.yaml"]
    path.write_text(text)
    done = run_program(sys.executable, "-c", SKY, path)
    assert "2 [{'H100': 8}]" in done.stdout
    path.write_text(text.replace("num_nodes", "num_node"))
    done = run_program(sys.executable, "-c", SKY, path, check=False)
    assert done.returncode != 0
    assert "num_node" in done.stdout + done.stderr
