"""What the graph of imports and the names of classes must keep to."""

import re
from collections import defaultdict
from collections.abc import Mapping

import grimp
import pytest

from tests.support.parts import ROOT

PACKAGES = ("api", "worker", "shared", "deploy")
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path.read_text()
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}
# The schema's own history, run by `farm migrate`, the standalone farm and the containers, none of which is the worker.
FOR_ONE_SIDE = ("shared.migrations",)


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    # Named to the library that loads it instead of imported.
    for module, source in SOURCES.items():
        for named in graph.modules:
            if f'"{named}:' in source:
                graph.add_import(importer=module, imported=named)
    return graph


def one_sided(graph: grimp.ImportGraph) -> Mapping[str, set[str]]:
    """Modules of `shared` that not both the api and the worker reach, with the packages that do."""
    sides = {
        module: {one.split(".")[0] for one in graph.find_downstream_modules(module)} - {"shared"}
        for module in graph.modules
        if module.startswith("shared.") and not module.startswith(FOR_ONE_SIDE) and not graph.find_children(module)
    }
    return {module: reached_by for module, reached_by in sides.items() if len(reached_by & {"api", "worker"}) < 2}


def test_what_is_in_shared_is_for_both_sides(graph: grimp.ImportGraph) -> None:
    for module, reached_by in one_sided(graph).items():
        pytest.fail(f"{module} is reached from {reached_by or 'nowhere'} alone: it belongs there, not in shared")


def test_a_module_for_one_side_is_noticed(graph: grimp.ImportGraph) -> None:
    try:
        graph.add_import(importer="api.main", imported="shared.jobs.guesses")
        assert one_sided(graph) == {"shared.jobs.guesses": {"api"}}
        graph.add_import(importer="worker.gpu", imported="shared.jobs.guesses")
        assert not one_sided(graph)
    finally:
        graph.remove_module("shared.jobs.guesses")


def test_no_public_class_name_means_two_things() -> None:
    assert not {name: places for name, places in classes(SOURCES).items() if len(places) > 1}


def test_a_class_name_with_two_meanings_is_noticed() -> None:
    sources = {
        "api.farm": "class Farm: ...",
        "deploy.farm": "def make():\n    class Farm: ...",
        "worker": "class _Farm: ...",
    }
    assert classes(sources) == {"Farm": ["api.farm", "deploy.farm"]}


def classes(sources: Mapping[str, str]) -> Mapping[str, list[str]]:
    """The modules that define each public class name."""
    found = defaultdict(list)
    for module, source in sources.items():
        for name in re.findall(r"^ *class ([A-Za-z]\w*)[(:]", source, re.MULTILINE):
            found[name].append(module)
    return found
