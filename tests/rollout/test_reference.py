"""The reference of rollout.toml names every key with its default, and its recipes fit the models they are for."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from onnx import parser
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tqs_onnx.rollout.spec.check import check_spec
from tqs_onnx.rollout.spec.completion import wired
from tqs_onnx.rollout.spec.signature import ModelSignature, signature_of
from tqs_onnx.rollout.spec.spec import RolloutSpec, parse_spec

REFERENCE = (Path(__file__).parents[2] / "docs" / "rollout-spec.md").read_text(encoding="utf-8")
#: How the reference calls the table that no key leads to.
WHOLE = "rollout.toml"


def models_in(annotation: object) -> Iterator[type[BaseModel]]:
    """Yield the models that a type is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models_in(part)


def tables_of(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield every TOML table of a spec as (keys that lead to it, its model)."""
    yield path or WHOLE, model
    for key, field in model.model_fields.items():
        for inner in models_in(field.annotation):
            yield from tables_of(inner, f"{path}.{key}".lstrip("."))


def documented() -> dict[str, dict[str, str]]:
    """Return the keys and their defaults, as written, for each table that a heading of the reference names."""
    found: dict[str, dict[str, str]] = {}
    for section in re.split(r"^#+ ", REFERENCE, flags=re.M)[1:]:
        heading, _, body = section.partition("\n")
        if "\n| key |" not in body:
            continue
        table = body.partition("\n| key |")[2].partition("\n\n")[0]
        rows = [row.split("|") for row in table.splitlines() if row.startswith("| `")]
        keys = {key: row[3].strip() for row in rows for key in re.findall(r"`(.+?)`", row[1])}
        for name in re.findall(r"`\[*([\w.]+)\]*`", heading):
            assert name not in found, f"two sections describe {name}"
            found[name] = keys
    return found


def model_of(recipe: str) -> ModelSignature:
    """Return the inputs and outputs that the first line of a recipe gives in ONNX text."""
    ports = recipe.partition("\n")[0].removeprefix("# model: ")
    return signature_of(parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {ports} {{}}'))


def is_default(written: str, field: FieldInfo) -> bool:
    """Tell whether a default, as written in the reference, is that of a field."""
    if written == "required":
        return field.is_required()
    if written == "none":
        return field.default is None
    value = tomllib.loads(f"value = {written.strip('`')}")["value"]
    return field.default in ((tuple(value),) if isinstance(value, list) else (value, (value,)))


TABLES = dict(tables_of(RolloutSpec))
KEYS = [(table, key) for table, model in TABLES.items() for key in model.model_fields]
DOCUMENTED = documented()
DOCUMENTED_KEYS = [(table, key) for table, keys in DOCUMENTED.items() for key in keys]
#: Whole specs; a part of one would be fenced as another language, `toml fragment`.
RECIPES: list[str] = re.findall(r"^```toml\n(.*?)^```$", REFERENCE, re.M | re.S)


@pytest.mark.parametrize(("table", "key"), KEYS)
def test_a_key_of_the_spec_is_in_the_reference(table: str, key: str) -> None:
    assert key in DOCUMENTED.get(table, {})


@pytest.mark.parametrize(("table", "key"), DOCUMENTED_KEYS)
def test_a_key_of_the_reference_is_in_the_spec(table: str, key: str) -> None:
    assert table in TABLES
    assert key in TABLES[table].model_fields


@pytest.mark.parametrize(("table", "key"), KEYS)
def test_the_reference_gives_the_default_of_a_key(table: str, key: str) -> None:
    assert is_default(DOCUMENTED[table][key], TABLES[table].model_fields[key])


def test_the_reference_has_recipes() -> None:
    assert len(RECIPES) >= 6


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_fits_its_model(recipe: str) -> None:
    check_spec(wired(parse_spec(recipe), model_of(recipe)), model_of(recipe))


def test_a_forecaster_of_a_table_takes_twelve_lines() -> None:
    found = [r for r in RECIPES if "\ntargets = " in r or "\nscaler = " in r]
    assert len(found) >= 5
    assert max(len(r.splitlines()) - 1 for r in found) <= 12  # beside the line that gives the model


def test_the_recipes_use_every_table() -> None:
    used = {table for recipe in RECIPES for table in parse_spec(recipe).model_fields_set}
    assert used == RolloutSpec.model_fields.keys()


def test_the_lines_of_the_reference_have_at_most_120_columns() -> None:
    assert [n for n, line in enumerate(REFERENCE.splitlines(), 1) if len(line) > 120] == []
