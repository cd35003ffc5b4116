"""What is asked of the energy-per-token worker, and what it answers: the contract between both processes.

The worker measures time and counts tokens; energy is added afterwards from the sampler's records, by the windows.
"""

from typing import Annotated, Literal

from pydantic import Field

from ekd_nemo.config.base import Count, PositiveInt, Strict

Seconds = Annotated[float, Field(gt=0)]


class EptSettings(Strict):
    """Settings that all models share.

    Attributes:
        dtype: `float32`, `bfloat16`, or `auto`: float32 on a CPU, bfloat16 on a GPU.
        requests: prompts of one pass.
        seconds: least length of each measured block.
        warmup_s: least length of the warm-up before the first block of a point.
        tensor: GPUs that hold one copy of the model, for vLLM; transformers spreads a model that one GPU cannot hold.
    """

    engine: Literal["transformers", "vllm"] = "transformers"
    dtype: str = "auto"
    device: str = "auto"
    requests: PositiveInt = 16
    repeats: PositiveInt = 3
    seconds: Seconds = 5.0
    warmup_s: Annotated[float, Field(ge=0)] = 2.0
    seed: Count = 1234
    tensor: PositiveInt = 1
    apart: bool = True
    chat_template: bool = False
    trust_remote_code: bool = False


class EptPoint(Strict):
    """One workload at one batch size.

    Attributes:
        mode: `fixed`: every request has `input_tokens` in and `new_tokens` out; `natural`: prompts keep their length
            and answers end where the model ends them, at `new_tokens` at the latest.
    """

    mode: Literal["fixed", "natural"]
    batch_size: PositiveInt
    input_tokens: PositiveInt | None
    new_tokens: PositiveInt

    @property
    def words(self) -> str:
        """In a few words, for the console."""
        asked = f"{self.input_tokens} in" if self.input_tokens else "prompts as they are"
        least = "" if self.mode == "fixed" else "at most "
        return f"{self.mode}, batch {self.batch_size}, {asked}, {least}{self.new_tokens} out"


class EptJob(Strict):
    """One model and what it still has to do."""

    name: str
    model: str
    points: tuple[EptPoint, ...]


class EptRequest(Strict):
    """The content of the file that the worker reads.

    Attributes:
        texts: the prompts of one pass, in order; None: `hub` names a data set and its split.
        marks: of the run, where the worker marks phase `ept`.
        uuids: accelerators that the sampler measures; those that a model occupies are among them.
    """

    settings: EptSettings
    jobs: tuple[EptJob, ...]
    texts: tuple[str, ...] | None
    hub: tuple[str, str] | None = None
    marks: str
    uuids: tuple[str, ...]
    attempt: PositiveInt


class EptWindow(Strict):
    """A stretch of nothing but the measured work, on CLOCK_MONOTONIC; padding is not counted."""

    start_ns: Count
    end_ns: Count
    input_tokens: Count
    output_tokens: Count
    requests: Count


class EptMeasured(Strict):
    """What the worker found of one model at one point.

    Attributes:
        uuids: devices that the model occupied.
        boot_id: of the clock of the windows.
        prefill, decode: measured apart; None where they were not, `flags` or `why_not_apart` say so.
        details: cut and empty prompts, warm-up, attention and the like, by name.
    """

    job: str
    point: EptPoint
    engine: str
    engine_version: str
    dtype: str
    uuids: tuple[str, ...]
    boot_id: str
    prompts_sha256: str
    repeats: tuple[EptWindow, ...]
    prefill: EptWindow | None = None
    decode: EptWindow | None = None
    details: dict[str, int | float | str | None] = Field(default_factory=dict)
    flags: tuple[str, ...] = ()
