"""Transformers' `generate` as the benchmark's engine: batches in, counted tokens out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.cache_utils import DynamicCache

from ekd_nemo.errors import CheckpointError, RunError, UserError
from ekd_nemo.evals.ept_request import EptSettings
from ekd_nemo.evals.token_count import generated_tokens, left_padded
from ekd_nemo.harness.placing import one_gpu_holds

Rows = Sequence[Sequence[int]]


class OutOfMemoryError(RunError):
    """A batch that the devices cannot hold; smaller ones may fit."""


@dataclass(frozen=True)
class Counted:
    """Tokens of one batch, padding left out."""

    input_tokens: int
    output_tokens: int
    requests: int


@dataclass
class Decoding:
    """Sequences right behind their prefill: `ids` [B, L + 1] and a cache of their first L tokens."""

    ids: torch.Tensor
    cache: DynamicCache


class Engine(Protocol):
    """What the benchmark asks of an engine. Every call returns once the device has done its work."""

    name: str
    version: str
    dtype: str
    max_tokens: int
    uuids: tuple[str, ...]
    details: dict[str, int | float | str | None]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each prompt, as the model reads it; never none, see `empty_id`."""
        ...

    def generate(self, rows: Rows, new_tokens: int, *, fixed: bool) -> Counted:
        """Greedy answers; `fixed`: exactly `new_tokens` each, else up to the end of sequence."""
        ...

    def prepare_decoding(self, rows: Rows) -> Any | None:
        """A state from which `decode` can start over and over; None if the engine cannot."""
        ...

    def decode(self, state: Any, new_tokens: int) -> Counted:
        """`new_tokens` further tokens of each sequence, one step a token; the state is as before afterwards."""
        ...


class HfEngine:
    """A Hugging Face model on the CPU, on a GPU, or spread over those that are visible."""

    name = "transformers"
    version = transformers.__version__

    def __init__(self, folder: str, settings: EptSettings, uuids: Sequence[str]) -> None:
        """Load it.

        Args:
            folder: with config, weights and tokenizer.
            settings: of the benchmark.
            uuids: accelerators that the sampler measures; on a CPU all of them are the model's.

        Raises:
            CheckpointError: if there is no tokenizer.
            UserError: for a device that is not there.
        """
        device = _device(settings.device)
        wanted = settings.dtype if settings.dtype != "auto" else _plain_dtype(device)
        self.dtype = wanted
        self._tokenizer = _tokenizer(folder, settings.trust_remote_code)
        self._chat = settings.chat_template
        self._model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, wanted),
            trust_remote_code=settings.trust_remote_code,
            use_safetensors=True,
            **_placement(folder, device, wanted, settings.trust_remote_code),
        ).eval()
        self.uuids = _occupied(self._model, device, tuple(uuids))
        self.max_tokens = int(getattr(self._model.config, "max_position_embeddings", 2**31))
        self.details = {"attention": self._model.config._attn_implementation, "device": device}
        own: Any = self._model.generation_config
        self._ends = _ids(own.eos_token_id) or _ids(self._tokenizer.eos_token_id)
        self._pad: int = _first(self._tokenizer.pad_token_id, *self._ends, 0)
        self.empty_id: int = _first(self._tokenizer.bos_token_id, *self._ends, 0)
        # Sampling settings of the folder do not belong to a greedy benchmark.
        self._model.generation_config = GenerationConfig()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each prompt; an empty one becomes the beginning-of-sequence token, which the model needs."""
        return [self._encode(text) or [self.empty_id] for text in texts]

    def _encode(self, text: str) -> list[int]:
        if self._chat:
            turns = [{"role": "user", "content": text}]
            return list(self._tokenizer.apply_chat_template(turns, add_generation_prompt=True))
        return list(self._tokenizer(text)["input_ids"])

    def generate(self, rows: Rows, new_tokens: int, *, fixed: bool) -> Counted:
        """See `Engine`."""
        ids, masks = left_padded(rows, self._pad)
        out = self._run(self._tensor(ids), self._tensor(masks), new_tokens, fixed=fixed)
        answers = out.sequences[:, len(ids[0]) :].tolist()
        ends = () if fixed else self._ends
        counts = [generated_tokens(answer, ends) for answer in answers]
        if fixed and set(counts) != {new_tokens}:
            raise RunError(f"asked for exactly {new_tokens} tokens each, got {sorted(set(counts))}")
        return Counted(sum(map(sum, masks)), sum(counts), len(rows))

    def prepare_decoding(self, rows: Rows) -> Decoding | None:
        """See `Engine`; rows of one length. None for a model whose cache cannot be cut back."""
        ids = self._tensor(rows)
        out = self._run(ids, torch.ones_like(ids), 1, fixed=True)
        cache = out.past_key_values
        if not isinstance(cache, DynamicCache) or any(cache.is_sliding):
            return None
        return Decoding(out.sequences, cache)

    def decode(self, state: Decoding, new_tokens: int) -> Counted:
        """See `Engine`."""
        length = state.ids.shape[1]
        state.cache.crop(length - 1)
        mask = torch.ones_like(state.ids)
        out = self._run(state.ids, mask, new_tokens, fixed=True, cache=state.cache)
        written = out.sequences.shape[1] - length
        return Counted(0, written * len(state.ids), len(state.ids))

    def _run(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        new_tokens: int,
        *,
        fixed: bool,
        cache: DynamicCache | None = None,
    ) -> Any:
        config = GenerationConfig(
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens if fixed else None,
            do_sample=False,
            pad_token_id=self._pad,
            eos_token_id=list(self._ends) or None,
            return_dict_in_generate=True,
        )
        try:
            out = self._model.generate(
                input_ids=ids, attention_mask=mask, generation_config=config, past_key_values=cache
            )
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise OutOfMemoryError(f"{len(ids)} sequences do not fit the memory") from error
        if ids.device.type == "cuda":
            torch.cuda.synchronize()
        return out

    def _tensor(self, rows: Rows) -> torch.Tensor:
        return torch.tensor([list(row) for row in rows], device=self._model.device)


def _device(asked: str) -> str:
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU; accepted here: cpu, auto")
    return asked


def _plain_dtype(device: str) -> str:
    return "float32" if device == "cpu" else "bfloat16"


def _placement(folder: str, device: str, dtype: str, trust_remote_code: bool) -> dict[str, Any]:
    """On one device; over all visible GPUs where one cannot hold the weights."""
    if device == "cpu":
        return {"device_map": {"": "cpu"}}
    alone = one_gpu_holds(folder, dtype, trust_remote_code=trust_remote_code)
    return {"device_map": {"": 0} if alone else "auto"}


def _occupied(model: Any, device: str, uuids: tuple[str, ...]) -> tuple[str, ...]:
    """The devices that hold a part of the model, as the sampler names them."""
    if device == "cpu":
        return uuids
    used = {torch.device(place).index or 0 for place in _places(model)}
    return tuple(f"GPU-{torch.cuda.get_device_properties(index).uuid}" for index in sorted(used))


def _places(model: Any) -> list[Any]:
    places = [weight.device for weight in model.parameters()]
    if any(place.type != "cuda" for place in places):
        raise RunError("the model does not fit the visible GPUs; give more of them")
    return places


def _tokenizer(folder: str, trust_remote_code: bool) -> Any:
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{folder}: its tokenizer cannot be read ({reason})") from error


def _ids(value: int | Sequence[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)


def _first(*values: int | None) -> int:
    return next(value for value in values if value is not None)
