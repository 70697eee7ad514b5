"""Layers: which room may import which, read from the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {
    "memplan": "memplan",
    "memplan_daemon": "daemon",
    "memplan_tui": "tui",
    "memplan_migrations": "migrations",
}

BASE = {
    "memplan",
    "memplan.types",
    "memplan.units",
    "memplan.errors",
    "memplan.serialize",
    "memplan.versions",
    "memplan.wire",
}
PURE = BASE | {
    f"memplan.{name}"
    for name in (
        "formats",
        "footprint",
        "runtimes",
        "parallel",
        "placement",
        "emit",
        "compare",
        "report",
        "chart",
        "chart_scale",
        "explain",
        "page",
    )
}
STORE = BASE | {"memplan.config", "memplan.store", "memplan_migrations"}
ALLOWED = {
    **dict.fromkeys(sorted(BASE), BASE),
    "memplan.config": BASE | {"memplan.config"},
    **dict.fromkeys(sorted(PURE - BASE), PURE),
    "memplan.search": PURE | {"memplan.search"},
    "memplan.hub": BASE | {"memplan.hub", "memplan.config"},
    "memplan.models": PURE | {"memplan.models", "memplan.hub", "memplan.config"},
    "memplan.devices": PURE | {"memplan.devices", "memplan.config"},
    "memplan.trace": PURE | {"memplan.trace", "memplan.models", "memplan.config"},
    "memplan.validate": PURE | {"memplan.validate", "memplan.models", "memplan.trace"},
    "memplan.measure": STORE | {"memplan.measure"},
    "memplan.demo": BASE | {"memplan.demo", "memplan.measure"},
    "memplan.store": STORE,
    "memplan.testing": BASE | {"memplan.testing"},
    "memplan_migrations": STORE,
    "memplan_daemon": STORE | {"memplan_daemon"},
    "memplan_tui": STORE
    | {"memplan_tui"}
    | {f"memplan.{name}" for name in ("chart", "report", "compare", "explain")},
}
FOREIGN = {
    "memplan.store": {"sqlalchemy", "alembic"},
    "memplan_migrations": {"sqlalchemy", "alembic"},
    "memplan_daemon": {"psutil", "pynvml", "amdsmi", "prometheus_client", "opentelemetry"},
    "memplan_tui": {"textual", "rich"},
    "memplan.cli": {"click", "pyarrow"},
    "memplan.config": {"platformdirs"},
    "memplan.placement": {"scipy", "numpy"},
    "memplan.devices": {"psutil", "pynvml", "torch", "transformers"},
    "memplan.hub": {"huggingface_hub"},
    "memplan.models": {"torch", "transformers", "accelerate", "safetensors", "regex"},
    "memplan.measure": {"torch", "transformers", "accelerate"},
    "memplan.trace": {"torch", "transformers", "peft"},
    "memplan.demo": {"torch", "transformers"},
}
INSIDE_FUNCTIONS = {
    "torch",
    "transformers",
    "accelerate",
    "safetensors",
    "huggingface_hub",
    "peft",
    "scipy",
    "numpy",
}
OURS = set(FOLDERS)


def sources():
    for package, folder in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            yield ".".join((package, *(part for part in parts if part != "__init__"))), path


def room_of(module):
    if module.startswith("memplan."):
        return ".".join(module.split(".")[:2])
    return module.split(".")[0]


def imports(path):
    """Yield (module, is it at the top of the file) for each import."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            rooms = [f"{node.module}.{alias.name}" for alias in node.names]
            names = rooms if node.module == "memplan" else [node.module]
        for name in names:
            yield name, id(node) in top


MODULES = list(sources())


@pytest.mark.parametrize(("module", "path"), MODULES, ids=[name for name, _ in MODULES])
def test_imports_point_down_only(module, path):
    """Each room imports what its layer allows, and heavy packages inside functions."""
    room = room_of(module)
    allowed = None if room in {"memplan.cli", "memplan.__main__"} else ALLOWED[room]
    for name, at_top in imports(path):
        package = name.split(".")[0]
        if package in OURS:
            target = room_of(name)
            target = "memplan" if target == "memplan.__version__" else target
            assert allowed is None or target in allowed, f"{module} imports {name}"
        elif package in INSIDE_FUNCTIONS:
            assert not at_top, f"{module} imports {name} at the top"
            assert allowed is None or package in FOREIGN.get(room, ()), f"{module}: {name}"
        elif package not in _standard():
            assert allowed is None or package in FOREIGN.get(room, ()), f"{module}: {name}"


def test_every_room_has_a_rule():
    """A new folder must say where it stands."""
    rooms = {room_of(name) for name, _ in MODULES} - {"memplan.cli", "memplan.__main__"}
    assert rooms <= ALLOWED.keys()


def test_no_module_is_longer_than_400_lines():
    """Small pieces: a newcomer reads one at a sitting."""
    for name, path in MODULES:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, name


def _standard():
    import sys

    return sys.stdlib_module_names
