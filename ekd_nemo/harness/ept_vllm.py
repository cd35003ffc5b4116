"""vLLM as the benchmark's engine, where it is installed. Written by its documentation, not yet run on a GPU.

Its scheduler mixes prefill and decode, so decode is not measured apart; prefix caching is off, because every pass asks
the same prompts.
Source: https://docs.vllm.ai/en/v0.10.0/api/vllm/entrypoints/llm.html and .../vllm/sampling_params.html
"""

import importlib
from collections.abc import Sequence
from typing import Any

from ekd_nemo.errors import UserError
from ekd_nemo.evals.ept_request import EptSettings
from ekd_nemo.harness.ept_engine import Counted, Rows


def llm_arguments(
    folder: str, settings: EptSettings, batch_size: int, max_tokens: int | None
) -> dict[str, Any]:
    """What `vllm.LLM` is made with: at most `batch_size` sequences at once, nothing cached between passes."""
    return {
        "model": folder,
        "dtype": settings.dtype,
        "seed": settings.seed,
        "tensor_parallel_size": settings.tensor,
        "trust_remote_code": settings.trust_remote_code,
        "max_num_seqs": batch_size,
        "max_model_len": max_tokens,
        "enable_prefix_caching": False,
        "disable_log_stats": True,
    }


def sampling_arguments(new_tokens: int, *, fixed: bool) -> dict[str, Any]:
    """What `vllm.SamplingParams` is made with: greedy; `fixed`: exactly `new_tokens`, end-of-sequence ignored."""
    return {
        "temperature": 0.0,
        "max_tokens": new_tokens,
        "min_tokens": new_tokens if fixed else 0,
        "ignore_eos": fixed,
        "detokenize": False,
    }


class VllmEngine:
    """A model in vLLM; one engine for the largest batch, which gets smaller batches as smaller lists."""

    name = "vllm"

    def __init__(
        self, folder: str, settings: EptSettings, uuids: Sequence[str], batch_size: int
    ) -> None:
        """Load it.

        Raises:
            UserError: if vLLM is not installed.
        """
        try:
            vllm: Any = importlib.import_module("vllm")
        except ImportError as error:
            raise UserError(
                "--engine vllm: vLLM is not installed here; accepted: transformers"
            ) from error
        from vllm import LLM  # pyright: ignore[reportMissingImports]

        self.version = str(vllm.__version__)
        self._make_sampling: Any = vllm.SamplingParams
        self._llm: Any = LLM(**llm_arguments(folder, settings, batch_size, None))
        self._tokenizer: Any = self._llm.get_tokenizer()
        config = self._llm.llm_engine.model_config
        self.dtype = str(config.dtype).removeprefix("torch.")
        self.max_tokens = int(config.max_model_len)
        self.uuids = tuple(uuids[: settings.tensor])
        self.details = {"max_num_seqs": batch_size}
        self._chat = settings.chat_template

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """See `Engine`."""
        return [self._encode(text) or [self._empty_id()] for text in texts]

    def _encode(self, text: str) -> list[int]:
        if self._chat:
            turns = [{"role": "user", "content": text}]
            return list(self._tokenizer.apply_chat_template(turns, add_generation_prompt=True))
        return list(self._tokenizer(text)["input_ids"])

    def _empty_id(self) -> int:
        bos, eos = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        return int(eos if bos is None else bos)

    def generate(self, rows: Rows, new_tokens: int, *, fixed: bool) -> Counted:
        """See `Engine`; vLLM neither pads nor returns anything behind an end of sequence."""
        sampling = self._make_sampling(**sampling_arguments(new_tokens, fixed=fixed))
        prompts = [{"prompt_token_ids": list(row)} for row in rows]
        found = self._llm.generate(prompts, sampling, use_tqdm=False)
        read = sum(len(one.prompt_token_ids) for one in found)
        return Counted(read, sum(len(one.outputs[0].token_ids) for one in found), len(found))

    def prepare_decoding(self, rows: Rows) -> None:
        """Not possible, see the module."""

    def decode(self, state: Any, new_tokens: int) -> Counted:
        """Never called: there is no state to decode from."""
        raise NotImplementedError("vLLM mixes prefill and decode")
