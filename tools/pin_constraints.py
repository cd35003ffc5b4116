"""Write constraints.txt from the environment that this runs in: what ekd-nemo and its extras reach, and nothing else.

    .venv/bin/python tools/pin_constraints.py

Local labels of a build (`torch 2.13.0+cpu`) are left out, so that the same pin takes the build at hand.
"""

from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
EXTRAS = ("train", "eval", "report", "dev")
HEADER = "# A resolution known to work, for Python 3.11. Made by tools/pin_constraints.py.\n"


def needed(requirement: Requirement, extra: str) -> bool:
    """Whether a requirement holds here, under one extra."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def reach(name: str, extras: frozenset[str], found: dict[str, frozenset[str]]) -> None:
    """Add a package, with the extras asked of it, and all that it needs and that is installed."""
    key = canonicalize_name(name)
    if key in found and extras <= found[key]:
        return
    found[key] = found.get(key, frozenset()) | extras
    for text in requires(name) or []:
        requirement = Requirement(text)
        if not any(needed(requirement, extra) for extra in ("", *found[key])):
            continue
        try:
            version(requirement.name)
        except PackageNotFoundError:
            continue  # an alternative that another package stands in for
        reach(requirement.name, frozenset(requirement.extras), found)


def main() -> None:
    """Write the file beside pyproject.toml."""
    found: dict[str, frozenset[str]] = {}
    reach("ekd-nemo", frozenset(EXTRAS), found)
    names = sorted(set(found) - {"ekd-nemo"})
    pins = [f"{name}=={version(name).partition('+')[0]}\n" for name in names]
    (ROOT / "constraints.txt").write_text(HEADER + "".join(pins))


if __name__ == "__main__":
    main()
