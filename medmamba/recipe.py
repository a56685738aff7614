"""Recipe files: the options of a command by name, in YAML or JSON.

# medmamba train RUN --recipe recipe.yaml
epochs: 200
learning_rate: 0.001
class_weights: {tumour: 3}
"""

import json
from collections.abc import Collection
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from medmamba.errors import ConfigError
from medmamba.options import Options, value_text
from medmamba.plans.json_record import SEAL, strict_json

Record = TypeVar("Record", bound=Options)
LARGEST_BYTES = 2**16


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
        if len(raw) > LARGEST_BYTES:
            raise ConfigError(f"{path}: larger than {LARGEST_BYTES // 1024} KiB, so it is no recipe. Check --recipe.")
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read as a recipe ({error.strerror}). Check --recipe.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}). Save the recipe as UTF-8.") from None
    values = _parsed(text, path)
    if not isinstance(values, dict):
        found = "empty" if values is None else f"a {type(values).__name__}"
        raise ConfigError(f"{path}: is {found}, not a table of options. Write lines such as `epochs: 100`.")
    values.pop(SEAL, None)  # of a train.json
    for key in values:
        if key not in known:
            near = _nearest(key, known) if isinstance(key, str) else None
            hint = f" Did you mean {near!r}?" if near else ""
            rule = "A key is an option's name with _ for -; --no-mirror is mirror: false."
            raise ConfigError(f"{path}: unknown key {value_text(key)}.{hint} {rule}")
    return values


def _nearest(key: str, known: Collection[str]) -> str | None:
    """The option that was meant: by spelling, by the initials of its words (``lr``), or by the beginning of one."""
    written = key[:100].replace("-", "_").lower()
    alike = get_close_matches(written, known, n=1, cutoff=0.8)
    initials = [name for name in known if "".join(word[0] for word in name.split("_")) == written]
    begun = [name for name in known for word in name.split("_") if len(written) > 1 and word.startswith(written)]
    within = [name for name in known if len(name) > 3 and (name in written or (len(written) > 3 and written in name))]
    found = [*alike, *initials, *begun, *within]
    return found[0] if found else None


def _parsed(text: str, path: str | Path) -> Any:
    import yaml

    try:
        if Path(path).suffix.lower() == ".json":
            return strict_json(text)
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _refuse_repetitions(node, path, set())
        return loader.construct_document(node)
    except json.JSONDecodeError as error:
        where, what = f"line {error.lineno}, column {error.colno}", error.msg
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "an unknown place" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}"
        what = str(getattr(error, "problem", None) or error).splitlines()[0]
    except RecursionError:
        where, what = "its deepest level", "nested too deeply"
    except (ValueError, LookupError, AttributeError, TypeError) as error:  # a tagged value that is none of its kind
        where, what = "an unknown place", f"a value cannot be read ({error})"
    raise ConfigError(f"{path}: not a recipe: {what} at {where}. Correct it there.")


def _refuse_repetitions(node: Any, path: str | Path, seen: set[int]) -> None:
    """Of equal keys YAML takes the last without a word; aliases let a few lines stand for billions of values."""
    import yaml

    if id(node) in seen:
        line = node.start_mark.line + 1
        raise ConfigError(f"{path}: an alias repeats the value of line {line}. Write the value out instead.")
    seen.add(id(node))
    parts = node.value if isinstance(node, yaml.CollectionNode) else []
    keys = set()
    for part in parts:
        key = part[0] if isinstance(part, tuple) else None
        if isinstance(key, yaml.ScalarNode):
            if key.value in keys:
                line, name = key.start_mark.line + 1, value_text(key.value)
                raise ConfigError(f"{path}: the key {name} occurs twice, again in line {line}. Keep one.")
            keys.add(key.value)
        for inner in part if isinstance(part, tuple) else [part]:
            _refuse_repetitions(inner, path, seen)
