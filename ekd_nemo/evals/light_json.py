"""What lighteval's JSON says, brought into the shape of lm-eval's, so that one reader serves both.

Task names are `name|few-shot`; a suite's mean is a row `suite:_average|n`; the row `all` mixes tasks and is left out.
The file holds neither lighteval's version nor the number of items.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, cast

from ekd_nemo.evals.harness_json import HarnessResult
from ekd_nemo.evals.request import LIGHTEVAL

_AVERAGE: Final = ":_average"
_STDERR: Final = "_stderr"
Json = dict[str, Any]


class LightResult(HarnessResult):
    """One results file of lighteval.

    Args:
        path: the file.
        version: of lighteval.
        num_items: logged items by task.

    Raises:
        DataError: if it is not a results file of lighteval.
    """

    harness: ClassVar[str] = LIGHTEVAL

    def __init__(self, path: Path, version: str, num_items: Mapping[str, int]) -> None:
        """Read and convert it."""
        super().__init__(path)
        counts = {name: {"effective": count} for name, count in num_items.items()}
        self.raw = {**_converted(self.raw), "lm_eval_version": version, "n-samples": counts}


def _converted(raw: Json) -> Json:
    rows = {
        _name(key): _dict(row) for key, row in _dict(raw.get("results")).items() if key != "all"
    }
    configs = {_name(key): _dict(config) for key, config in _dict(raw.get("config_tasks")).items()}
    hashes = {
        _name(key): _dict(found).get("hashes")
        for key, found in _dict(raw.get("summary_tasks")).items()
    }
    model = _dict(_dict(raw.get("config_general")).get("model_config"))
    return {
        "results": {name: _figures(row) for name, row in rows.items()},
        "group_subtasks": _groups(list(rows)),
        "configs": {
            name: {"metric_list": config.get("metrics")} for name, config in configs.items()
        },
        "versions": {name: config.get("version") for name, config in configs.items()},
        "n-shot": {name: config.get("num_fewshots") for name, config in configs.items()},
        "higher_is_better": {name: _directions(config) for name, config in configs.items()},
        "task_hashes": hashes,
        "config": {
            "model_dtype": model.get("dtype"),
            "gen_kwargs": model.get("generation_parameters"),
        },
        "chat_template_sha": model.get("override_chat_template"),
        "system_instruction_sha": model.get("system_prompt"),
    }


def _name(key: str) -> str:
    return key.rpartition("|")[0] or key


def _dict(value: object) -> Json:
    return cast("Json", value) if isinstance(value, dict) else {}


def _figures(row: Mapping[str, Any]) -> Json:
    """`acc_stderr` -> `acc_stderr,none`: lighteval has no filters."""
    return {f"{key},none": value for key, value in row.items()}


def _groups(names: list[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        if name.endswith(_AVERAGE):
            prefix = name.removesuffix(_AVERAGE) + ":"
            groups[name] = [part for part in names if part.startswith(prefix) and part != name]
    return groups


def _directions(config: Mapping[str, Any]) -> dict[str, bool | None]:
    metrics = cast("list[Json]", config.get("metrics") or [])
    return {str(metric.get("metric_name")): metric.get("higher_is_better") for metric in metrics}
