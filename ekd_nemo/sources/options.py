"""A build of shards from a file, options and overrides, as the command line gives them."""

from pathlib import Path
from typing import Any

from ekd_nemo.config.data import DataBuild
from ekd_nemo.config.loader import KeyPath, load_document, load_value
from ekd_nemo.config.overrides import apply_override, set_origins
from ekd_nemo.config.validation import validate
from ekd_nemo.errors import ConfigError

KINDS = ("hub", "jsonl", "python-docs")
ACCEPTED = (
    "python-docs, jsonl:FILE or hub:NAME, then ,key=value as in hub:NAME,split=train,weight=0.5"
)


def build_from_options(
    config: Path | None, sources: list[str], options: dict[str, Any], overrides: list[str]
) -> DataBuild:
    """The build that a file, options and overrides ask for together; later ones win.

    Args:
        config: YAML with the keys of a build, or None.
        sources: texts for `parse_source`; they replace those of the file.
        options: keys of a build; None where not given.
        overrides: texts `a.b=c`.

    Raises:
        ConfigError: in one line that names file and line, or the option.
    """
    data: dict[str, Any] = {}
    origins: dict[KeyPath, str] = {}
    if config is not None:
        document = load_document(config)
        data = document.data
        origins = {key: f"{config}:{line}" for key, line in document.lines.items()}
    given = {key: value for key, value in options.items() if value is not None}
    if sources:
        given["sources"] = [parse_source(text) for text in sources]
    for key, value in given.items():
        data[key] = value
        option = "source" if key == "sources" else key.replace("_", "-")
        set_origins(origins, (key,), value, f"--{option}")
    for text in overrides:
        apply_override(data, origins, text)

    def place(key: KeyPath) -> str:
        known = [key[:n] for n in range(len(key), 0, -1) if key[:n] in origins]
        return origins[known[0]] if known else str(config or "ekd data build")

    return validate(DataBuild, data, place, "the build")


def parse_source(text: str) -> dict[str, Any]:
    """A source as it is written on the command line: `KIND[:NAME][,key=value]...`.

    Raises:
        ConfigError: for an unknown kind, or a part that is not key=value.
    """
    head, *pairs = text.split(",")
    kind, _, name = head.partition(":")
    if kind not in KINDS or (name == "") != (kind == "python-docs"):
        raise ConfigError(f"--source {text}: accepted: {ACCEPTED}")
    source: dict[str, Any] = {"kind": kind}
    if name:
        source |= {"paths": [name]} if kind == "jsonl" else {"name": name}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"--source {text}: '{pair}' is not key=value")
        source[key] = load_value(value, f"--source {text}")
    return source
