"""From a recipe's name to a validated recipe: search, composition by `base`, variants, overrides.

A file lies over its `base`, the name of another or a list of names, the later over the earlier: mappings are merged,
lists and values replaced. Files whose names begin with an underscore are parts for others and are no recipes.
`variants` names bundles of overrides: `NAME+cached+lora` is recipe NAME with two of them put on, in that order, and is
called `NAME-cached-lora`. Variants are merged through the bases as everything is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ekd_nemo.config.loader import KeyPath, load_document
from ekd_nemo.config.overrides import apply_override, set_origins
from ekd_nemo.config.recipe import Recipe
from ekd_nemo.config.render import render
from ekd_nemo.config.validation import validate
from ekd_nemo.errors import ConfigError

PACKAGED_RECIPES = Path(__file__).parent.parent / "recipes"
SUFFIX = ".yaml"
PART = "_"  # begins the names of files that are no recipes by themselves
VARIANT = "+"


@dataclass(frozen=True)
class ResolvedRecipe:
    """A recipe, the file it came from, and where each of its values was given; the rest are defaults.

    Attributes:
        recipe: the recipe.
        source: its file.
        origins: the place of every value that was given.
        variants: the names that may be put on with `NAME+VARIANT`.
    """

    recipe: Recipe
    source: Path
    origins: dict[KeyPath, str]
    variants: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The resolved recipe as YAML, every default written out."""
        return recipe_text(self.recipe)

    def place(self, key: str) -> str:
        """Where a value was given, or the section around it, for messages: `recipes/x.yaml:12`."""
        return _place(self.source, self.origins)(tuple(key.split(".")))


def recipe_folders(user: Path = Path("recipes")) -> tuple[Path, ...]:
    """Where recipes are looked for: the user's `./recipes`, then those that ship with ekd; one folder once."""
    if not user.is_dir():
        return (PACKAGED_RECIPES,)
    return (user,) if user.resolve() == PACKAGED_RECIPES.resolve() else (user, PACKAGED_RECIPES)


def list_recipes(folders: Sequence[Path] | None = None) -> dict[str, Path]:
    """Recipe names and files, sorted by name; a name in an earlier folder hides the same name in a later one."""
    found: dict[str, Path] = {}
    for folder in recipe_folders() if folders is None else folders:
        for path in folder.glob(f"*{SUFFIX}"):
            if not path.name.startswith(PART):
                found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def find_recipe(name: str, folders: Sequence[Path] | None = None) -> Path:
    """The file of a recipe, given by name or as a path to a `.yaml` file.

    Raises: ConfigError that lists the known recipes.
    """
    if name.endswith(SUFFIX):
        if not Path(name).is_file():
            raise ConfigError(
                f"{name}: no such file; give a recipe's file or one of the names of `ekd recipe list`"
            )
        return Path(name)
    known = list_recipes(folders)
    if name not in known:
        raise ConfigError(
            f"recipe {name} is not known; accepted: {', '.join(known) or 'none is there'}"
        )
    return known[name]


def resolve_recipe(
    name: str, overrides: Sequence[str] = (), folders: Sequence[Path] | None = None
) -> ResolvedRecipe:
    """Read, compose, override and validate a recipe.

    Args:
        name: a recipe's name, or the path of a `.yaml` file; either may be followed by `+VARIANT`s.
        overrides: texts `a.b=c`, applied in order before validation, after the variants.
        folders: where names are looked for; None means `recipe_folders()`.
    Raises: ConfigError in one line, with file and line or the override at fault.
    """
    plain, *chosen = [name] if Path(name).is_file() else name.split(VARIANT)
    path = find_recipe(plain, folders)
    data, origins = _compose(path, folders, ())
    known = _put_on(data, origins, chosen, path)
    for text in overrides:
        apply_override(data, origins, text)
    recipe = validate(Recipe, data, _place(path, origins), "the recipe")
    if recipe.name != path.stem:
        place = _place(path, origins)(("name",))
        raise ConfigError(
            f"{place}: name is {recipe.name}; accepted: {path.stem}, as the file is called"
        )
    if chosen:
        recipe = recipe.model_copy(update={"name": "-".join([path.stem, *chosen])})
    return ResolvedRecipe(recipe, path, origins, known)


def read_resolved(path: Path) -> Recipe:
    """Read the resolved recipe of a run directory; defaults that were added since are filled in.

    Raises: ConfigError in one line.
    """
    document = load_document(path)
    origins = {key: f"{path}:{line}" for key, line in document.lines.items()}
    return validate(Recipe, document.data, _place(path, origins), "the recipe")


def recipe_text(recipe: Recipe) -> str:
    """The recipe as YAML with every default written out; equal recipes give equal text."""
    return render(recipe.model_dump(mode="json"))


def _compose(
    path: Path, folders: Sequence[Path] | None, seen: tuple[Path, ...]
) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """The recipe's own data over that of its `base`, with the place of every value."""
    document = load_document(path)
    places = {key: f"{path}:{line}" for key, line in document.lines.items()}
    base = document.data.pop("base", None)
    data: dict[str, Any] = {}
    origins: dict[KeyPath, str] = {}
    chain = (*seen, path.resolve())
    for each in _bases(base):
        base_path = _base_path(each, path, places[("base",)], folders)
        if base_path.resolve() in chain:
            names = " -> ".join(step.stem for step in (*chain, base_path))
            raise ConfigError(f"{places[('base',)]}: base goes in a circle: {names}")
        under, under_places = _compose(base_path, folders, chain)
        _merge(data, under, (), origins, under_places)
    _merge(data, document.data, (), origins, places)
    return data, origins


def _bases(base: Any) -> list[Any]:
    """The names below `base`: none, one, or a list."""
    if base is None:
        return []
    return cast("list[Any]", base) if isinstance(base, list) else [base]


def _put_on(
    data: dict[str, Any], origins: dict[KeyPath, str], chosen: Sequence[str], path: Path
) -> tuple[str, ...]:
    """Take `variants` out of `data`, lay the chosen ones over the rest, and give the names of all."""
    variants = data.pop("variants", None)
    places = {key: place for key, place in origins.items() if key[:1] == ("variants",)}
    for key in places:
        del origins[key]
    place = _place(path, places)
    known = cast("dict[str, Any]", variants if isinstance(variants, dict) else {})
    if variants is not None and not (
        known and all(isinstance(each, dict) for each in known.values())
    ):
        raise ConfigError(
            f"{place(('variants',))}: variants is a mapping of names to mappings of keys"
        )
    for name in chosen:
        if name not in known:
            raise ConfigError(
                f"{path}: variant {name} is not known; accepted: {', '.join(known) or 'none, it has no variants'}"
            )
        inner = {key[2:]: each for key, each in places.items() if key[:2] == ("variants", name)}
        _merge(data, known[name], (), origins, inner)
    return tuple(known)


def _base_path(base: Any, path: Path, place: str, folders: Sequence[Path] | None) -> Path:
    """A base stands beside its recipe, or is looked up as any recipe is."""
    if not isinstance(base, str):
        raise ConfigError(f"{place}: base must be the name of another recipe, or a list of names")
    beside = path.parent / f"{base}{SUFFIX}"
    if beside.is_file():
        return beside
    try:
        return find_recipe(base, folders)
    except ConfigError as error:
        raise ConfigError(f"{place}: base: {error}") from error


def _merge(
    under: dict[str, Any],
    over: dict[str, Any],
    path: KeyPath,
    origins: dict[KeyPath, str],
    places: dict[KeyPath, str],
) -> None:
    """Put `over` on `under`, in place: mappings are merged, everything else is replaced."""
    for key, value in over.items():
        here = (*path, key)
        if isinstance(value, dict) and isinstance(under.get(key), dict):
            _merge(under[key], cast("dict[str, Any]", value), here, origins, places)
            continue
        under[key] = value
        set_origins(origins, here, value, places[here])
        origins.update({each: place for each, place in places.items() if each[: len(here)] == here})


def _place(path: Path, origins: dict[KeyPath, str]) -> Callable[[KeyPath], str]:
    """Where a key was given; for one that was not, where the section around it was."""

    def place(key: KeyPath) -> str:
        for length in range(len(key), 0, -1):
            if key[:length] in origins:
                return origins[key[:length]]
        return str(path)

    return place
