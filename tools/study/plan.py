"""A plan of the study: which methods, seeds, sizes and tasks; read strictly from plans.yaml."""

from pathlib import Path
from typing import NamedTuple

from pydantic import Field, model_validator

from ekd_nemo.config.base import Count, PositiveInt, Strict
from ekd_nemo.config.loader import load_document
from ekd_nemo.config.validation import validate
from ekd_nemo.errors import ConfigError

PLANS = Path(__file__).with_name("plans.yaml")
BASELINE = "sft"
LIVE = "-live"


class Cache(Strict):
    """One cache of the teacher's hidden states, which the distilling methods read.

    Attributes:
        made_by: the method whose objective decides what it keeps.
    """

    made_by: str
    path: str
    storage: str


class Live(Strict):
    """A run that repeats a cached one with a live teacher."""

    method: str
    seed: Count


class Variant(Strict):
    """A method with other settings, under a label of its own.

    Attributes:
        set: overrides of its recipe, after the plan's.
    """

    method: str
    set: tuple[str, ...] = Field(min_length=1)


class Tasks(Strict):
    """What `ekd eval lm` is asked; `task_data_tasks` only where their data is given."""

    tasks: tuple[str, ...]
    task_data_tasks: tuple[str, ...] = ()
    limit: PositiveInt
    batch_size: PositiveInt


class Benchmark(Strict):
    """What `ekd eval ept` is asked."""

    batch_sizes: str
    input_tokens: PositiveInt
    new_tokens: PositiveInt
    requests: PositiveInt
    repeats: PositiveInt


class Plan(Strict):
    """One plan.

    Attributes:
        set: overrides of every recipe alike.
        variants: runs beside those of the methods, by label.
        cache: None: the teacher runs live in every run.
        ept: None: no benchmark of inference.
    """

    seeds: tuple[Count, ...] = Field(min_length=1)
    set: tuple[str, ...]
    cache: Cache | None = None
    live: tuple[Live, ...] = ()
    variants: dict[str, Variant] = Field(default_factory=dict)
    evaluation: Tasks
    ept: Benchmark | None = None


class Plans(Strict):
    """The content of plans.yaml."""

    methods: dict[str, str]
    plans: dict[str, Plan]

    @model_validator(mode="after")
    def _names_are_known(self) -> "Plans":
        for name, plan in self.plans.items():
            used = {live.method for live in plan.live}
            used |= {variant.method for variant in plan.variants.values()}
            used |= {plan.cache.made_by} if plan.cache else set()
            if unknown := sorted(used - set(self.methods)):
                raise ValueError(f"plan {name} names {unknown[0]}; accepted: {list(self.methods)}")
            if taken := sorted(set(plan.variants) & set(self.methods)):
                raise ValueError(f"plan {name}: variant {taken[0]} is the name of a method")
        if BASELINE not in self.methods:
            raise ValueError(f"methods lacks {BASELINE}, which the others are compared with")
        return self


class Run(NamedTuple):
    """One run of a plan: a method, `method-live` or a variant's label, and its seed."""

    label: str
    seed: int

    @property
    def method(self) -> str:
        """The method without `-live`."""
        return self.label.removesuffix(LIVE)

    @property
    def run_id(self) -> str:
        """Its run directory's name, the same in every launch."""
        return f"{self.label}-s{self.seed}"


def read_plan(name: str, path: Path = PLANS) -> tuple[dict[str, str], Plan]:
    """The methods (name to recipe) and the plan of a name.

    Raises: ConfigError in one line.
    """
    document = load_document(path)
    plans = validate(Plans, document.data, lambda _: str(path), "the plans of the study")
    if name not in plans.plans:
        raise ConfigError(f"{path}: no plan {name}; accepted: {', '.join(plans.plans)}")
    return plans.methods, plans.plans[name]


def runs_of(methods: dict[str, str], plan: Plan) -> list[Run]:
    """All runs, seed by seed, so that an unfinished study has all methods at equal repeats."""
    runs: list[Run] = []
    for seed in plan.seeds:
        runs += [Run(method, seed) for method in methods]
        runs += [Run(live.method + LIVE, seed) for live in plan.live if live.seed == seed]
        runs += [Run(label, seed) for label in plan.variants]
    return runs
