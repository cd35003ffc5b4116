"""From a recipe's name to a validated recipe: search, composition by `base`, overrides."""

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


@dataclass(frozen=True)
class ResolvedRecipe:
    """A recipe, the file it came from, and where each of its values was given; the rest are defaults."""

    recipe: Recipe
    source: Path
    origins: dict[KeyPath, str]

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
        name: a recipe's name, or the path of a `.yaml` file.
        overrides: texts `a.b=c`, applied in order before validation.
        folders: where names are looked for; None means `recipe_folders()`.
    Raises: ConfigError in one line, with file and line or the override at fault.
    """
    path = find_recipe(name, folders)
    data, origins = _compose(path, folders, ())
    for text in overrides:
        apply_override(data, origins, text)
    recipe = validate(Recipe, data, _place(path, origins), "the recipe")
    if recipe.name != path.stem:
        place = _place(path, origins)(("name",))
        raise ConfigError(
            f"{place}: name is {recipe.name}; accepted: {path.stem}, as the file is called"
        )
    return ResolvedRecipe(recipe, path, origins)


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
    if base is None:
        return document.data, {
            key: place for key, place in places.items() if key and key[0] != "base"
        }
    chain = (*seen, path.resolve())
    base_path = _base_path(base, path, places[("base",)], folders)
    if base_path.resolve() in chain:
        names = " -> ".join(each.stem for each in (*chain, base_path))
        raise ConfigError(f"{places[('base',)]}: base goes in a circle: {names}")
    data, origins = _compose(base_path, folders, chain)
    _merge(data, document.data, (), origins, places)
    return data, origins


def _base_path(base: Any, path: Path, place: str, folders: Sequence[Path] | None) -> Path:
    """A base stands beside its recipe, or is looked up as any recipe is."""
    if not isinstance(base, str):
        raise ConfigError(f"{place}: base must be the name of another recipe")
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
