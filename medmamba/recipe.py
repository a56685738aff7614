"""Recipe files: the options of a verb by name, in YAML or JSON.

# medmamba train RUN --recipe recipe.yaml
epochs: 200
learning_rate: 0.001
class_weights: {tumour: 3}
"""

from __future__ import annotations

import json
from collections.abc import Collection
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from medmamba.errors import ConfigError
from medmamba.options import Options

Record = TypeVar("Record", bound=Options)
LARGEST_BYTES = 2**20


def read_recipe(path: str | Path, kind: type[Record]) -> Record:
    """The record that a recipe file describes; raises ConfigError that names file, key and cure."""
    return kind.checked(recipe_values(path, kind.model_fields), lambda name: f"{path}: {name}")


def recipe_values(path: str | Path, known: Collection[str]) -> dict[str, Any]:
    """The entries of a recipe file, unchecked but for their names.

    Args:
        known: the keys that it may have.
    """
    try:
        with Path(path).open("rb") as file:
            raw = file.read(LARGEST_BYTES + 1)
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read as a recipe ({error.strerror}). Check --recipe.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}). Save the recipe as UTF-8.") from None
    if len(raw) > LARGEST_BYTES:
        raise ConfigError(f"{path}: larger than 1 MiB, so it is no recipe. Check --recipe.")
    values = _parsed(text, path)
    if not isinstance(values, dict):
        found = "empty" if values is None else f"a {type(values).__name__}"
        raise ConfigError(f"{path}: is {found}, not a table of options. Write lines such as `epochs: 100`.")
    for key in values:
        if key not in known:
            near = get_close_matches(str(key).replace("-", "_"), known, n=1, cutoff=0.3)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{path}: unknown key {key!r}.{hint} The keys are the options' names in --help.")
    return values


def _parsed(text: str, path: str | Path) -> Any:
    import yaml

    try:
        if Path(path).suffix.lower() == ".json":
            return json.loads(text, object_pairs_hook=lambda pairs: _unique(pairs, path))
        _refuse_duplicates(yaml.compose(text, Loader=yaml.SafeLoader), path)
        return yaml.safe_load(text)
    except json.JSONDecodeError as error:
        where, what = f"line {error.lineno}, column {error.colno}", error.msg
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "an unknown place" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}"
        what = str(getattr(error, "problem", None) or error).splitlines()[0]
    except RecursionError:
        where, what = "its deepest level", "nested too deeply"
    raise ConfigError(f"{path}: not a recipe: {what} at {where}. Correct it there.")


def _unique(pairs: list[tuple[str, Any]], path: str | Path) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"{path}: the key {key!r} occurs twice. Keep one.")
    return dict(pairs)


def _refuse_duplicates(node: Any, path: str | Path) -> None:
    """Of equal keys safe_load takes the last without a word."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                line = max(k.start_mark.line for k, _ in node.value if k.value == key) + 1
                raise ConfigError(f"{path}: the key {key!r} occurs twice, again in line {line}. Keep one.")
        for _, value in node.value:
            _refuse_duplicates(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _refuse_duplicates(value, path)
