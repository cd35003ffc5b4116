"""What a set of shards is built from: sources, tokenizer, sequence length, split and seed.

Paths are relative to the folder in which `ekd` is called. Everything here is part of the shards'
identity: shards built with other settings are never taken for these.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ekd_nemo.config.base import Count, PositiveFloat, PositiveInt, Strict

Name = Annotated[str, Field(min_length=1)]


class _Source(Strict):
    """What every source shares.

    `weight`: the share of the documents drawn from this source; given for all sources or for none.
    `max_documents`: a seeded sample of that many documents (from streams: of the first documents,
    through a shuffle buffer).
    """

    weight: PositiveFloat | None = None
    max_documents: PositiveInt | None = None


class HubSource(_Source):
    """A Hugging Face data set: a hub id, or a local folder of Parquet or JSON files."""

    kind: Literal["hub"] = "hub"
    name: Name
    config: Name | None = None
    split: Name = "train"
    revision: Name | None = None  # pin it where a build must be repeatable
    streaming: bool = False

    @property
    def label(self) -> str:
        """How messages and the manifest name the source."""
        return f"hub:{self.name}"


class JsonlSource(_Source):
    """Local files with one JSON object a line."""

    kind: Literal["jsonl"] = "jsonl"
    paths: Annotated[tuple[Name, ...], Field(min_length=1)]

    @property
    def label(self) -> str:
        """How messages and the manifest name the source."""
        return f"jsonl:{self.paths[0]}" + (
            f" and {len(self.paths) - 1} more" if self.paths[1:] else ""
        )


class PythonDocsSource(_Source):
    """The text of the Python language reference that CPython ships as `pydoc_data.topics`."""

    kind: Literal["python-docs"] = "python-docs"

    @property
    def label(self) -> str:
        """How messages and the manifest name the source."""
        return "python-docs"


Source = Annotated[HubSource | JsonlSource | PythonDocsSource, Field(discriminator="kind")]


class DataBuild(Strict):
    """The build of one folder of shards.

    `template`: `none` joins prompt and answer with a blank line; `chat` renders conversations with
    the tokenizer's chat template. `loss_on`: the tokens that are learned in conversations; by
    default the answers under `chat`, all under `none`. Plain texts are always learned whole.
    `max_documents` caps all sources together.
    """

    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    tokenizer: Name  # a folder or hub id
    sequence_length: Annotated[int, Field(ge=2, le=1_048_576)] = 512
    template: Literal["none", "chat"] = "none"
    loss_on: Literal["all", "answers"] | None = None
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    max_documents: PositiveInt | None = None
    seed: Count = 1234

    @property
    def learns_answers_only(self) -> bool:
        """Whether the tokens of prompts are left out of the loss."""
        return (self.loss_on or ("answers" if self.template == "chat" else "all")) == "answers"

    @model_validator(mode="after")
    def _weights_for_all_or_none(self) -> "DataBuild":
        given = [source.weight is not None for source in self.sources]
        if any(given) and not all(given):
            raise ValueError("give weight for every source or for none")
        return self
