"""Where recipes lie: `./recipes` of the user, then the ones that ship with mmblocks, or any path to a YAML file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mmblocks.errors import ConfigError
from mmblocks.settings import format_suggestion

_PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class RecipeFile:
    """A recipe's file. `name` is its path below its root, without the suffix."""

    name: str
    path: Path

    @property
    def summary(self) -> str:
        """The first comment line of the file."""
        lines = self.path.read_text(encoding="utf-8").splitlines()
        comments = (line.lstrip("# ").strip() for line in lines if line.startswith("#") and "@package" not in line)
        return next(comments, "")


def list_recipe_folders() -> list[Path]:
    """Folders that recipes are looked up in, in this order."""
    folders = [Path("recipes").resolve(), find_shipped_folder()]
    return [folder for i, folder in enumerate(folders) if folder.is_dir() and folder not in folders[:i]]


def find_shipped_folder() -> Path:
    """In a wheel they lie inside the package, in an editable install beside `src`."""
    packed = _PACKAGE / "recipes"
    return (packed if packed.is_dir() else _PACKAGE.parents[1] / "recipes").resolve()


def list_recipes() -> dict[str, str]:
    """Every recipe by name with its one-line description."""
    return {name: recipe.summary for name, recipe in sorted(_find_recipes().items())}


def find_recipe(recipe: str) -> RecipeFile:
    """A recipe by name or by path. Raises `ConfigError` when there is none or when its file is not a recipe."""
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ConfigError(f"no recipe file {recipe!r} (looked in {Path.cwd()}).")
        return _check_recipe(RecipeFile(path.stem, path.resolve()))
    known = _find_recipes()
    if recipe not in known:
        raise ConfigError(f"no recipe is called {recipe!r}.{format_suggestion(recipe, known)}")
    return _check_recipe(known[recipe])


def read_stage_names(recipe: str) -> list[str]:
    """Names of the stages that a recipe's own file writes; none where it writes none, or is no recipe."""
    try:
        content: Any = yaml.safe_load(find_recipe(recipe).path.read_text(encoding="utf-8"))
    except (ConfigError, OSError, UnicodeDecodeError):
        return []
    stages = content.get("stages")
    named = [stage.get("name") for stage in stages if isinstance(stage, dict)] if isinstance(stages, list) else []
    return [name for name in named if isinstance(name, str)]


def _find_recipes() -> dict[str, RecipeFile]:
    found: dict[str, RecipeFile] = {}
    for root in reversed(list_recipe_folders()):  # the user's own come last and win
        for path in root.rglob("*.yaml"):
            name = path.relative_to(root).with_suffix("").as_posix()
            found[name] = RecipeFile(name, path)
    return found


def _check_recipe(recipe: RecipeFile) -> RecipeFile:
    """Refuse a file from which Hydra would compose something that is not a run."""
    try:
        content: Any = yaml.safe_load(recipe.path.read_text(encoding="utf-8"))
    except yaml.YAMLError as cause:
        raise ConfigError(f"{recipe.path}: this is not YAML: {cause}") from cause
    defaults = content.get("defaults") if isinstance(content, dict) else None
    if not isinstance(defaults, list) or not defaults:
        raise ConfigError(f"{recipe.path}: a recipe starts with a list 'defaults:' whose first item is '- /train_run'.")
    return recipe
