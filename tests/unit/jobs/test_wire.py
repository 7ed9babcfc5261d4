from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from shared.jobs.wire import BATCH_EXAMPLE, EXAMPLE, Batch, Job


def test_the_documented_examples_show_all_that_there_is() -> None:
    assert astray(EXAMPLE, Job) == set()
    assert astray(BATCH_EXAMPLE, Batch) == set()


def test_an_example_that_lacks_an_inner_field_is_noticed() -> None:
    params: Any = EXAMPLE["params"]
    assert astray({**EXAMPLE, "params": {name: params[name] for name in params if name != "vae"}}, Job) == {
        "params.vae"
    }


def astray(example: Any, model: type[BaseModel]) -> set[str]:
    """The fields, at any depth, that an example lacks, or has beyond those of its model."""
    return set(paths(model.model_validate(example).model_dump(mode="json"))) ^ set(paths(example))


def paths(body: Any, prefix: str = "") -> Iterator[str]:
    for name, value in body.items():
        yield f"{prefix}{name}"
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, dict):
                yield from paths(one, f"{prefix}{name}.")
