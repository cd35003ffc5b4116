"""What a Llama or Qwen2 decoder is, by its Hugging Face config; and which layouts fit it.

Covered: dense decoders of the model types `llama` and `qwen2` (Llama 2, 3, SmolLM2, Qwen2.5).
Not covered: mixtures of experts, sliding windows, quantised checkpoints, rotary scaling other than
Llama 3's; each is refused by name.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from ekd_nemo.errors import CheckpointError, LayoutError

Family = Literal["llama", "qwen2"]
FAMILIES: tuple[Family, ...] = ("llama", "qwen2")
HF_CLASSES: dict[Family, str] = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
MAX_POSITIONS: dict[Family, int] = {"llama": 2048, "qwen2": 32768}
# Megatron-Core 0.15 hard-codes these three of Llama 3's rotary scaling (rotary_pos_embedding.py).
LLAMA3_SCALING = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
# Megatron pads the vocabulary to a multiple of this times the tensor-parallel size.
VOCAB_MULTIPLE = 128
CONFIG_FILE = "config.json"
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # owner/name, where there is no such folder
# Where a Megatron checkpoint that was imported here keeps config.json and tokenizer of its model.
CHECKPOINT_ASSETS = Path("context") / "hf"


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's rotary scaling; its other three constants are those of `LLAMA3_SCALING`."""

    factor: float


@dataclass(frozen=True)
class Architecture:
    """The numbers that define a decoder's tensors and arithmetic.

    Attributes:
        family: Hugging Face's `model_type`.
        num_layers: decoder layers.
        hidden_size: width of the residual stream.
        ffn_size: width between gate/up and down projections.
        num_heads: attention heads.
        num_kv_groups: key/value heads.
        head_dim: width of one head.
        vocab_size: rows of the embedding as Hugging Face stores it, without Megatron's padding.
        rope_theta: rotary base.
        rope_scaling: None or Llama 3's scaling.
        norm_eps: epsilon of every RMSNorm.
        tied_embeddings: the head is the embedding.
        qkv_bias: query, key and value projections have a bias (Qwen2).
        max_positions: longest sequence that the model was made for.
        initializer_range: standard deviation of random starts.
    """

    family: Family
    num_layers: int
    hidden_size: int
    ffn_size: int
    num_heads: int
    num_kv_groups: int
    head_dim: int
    vocab_size: int
    rope_theta: float
    rope_scaling: RopeScaling | None
    norm_eps: float
    tied_embeddings: bool
    qkv_bias: bool
    max_positions: int
    initializer_range: float

    def __post_init__(self) -> None:
        """Refuse sizes that no decoder has."""
        sizes = ("num_layers", "hidden_size", "ffn_size", "num_heads", "num_kv_groups", "head_dim")
        for name in (*sizes, "vocab_size", "max_positions"):
            if getattr(self, name) < 1:
                raise CheckpointError(f"{name} is {getattr(self, name)}, accepted is 1 or more")
        if self.num_heads % self.num_kv_groups:
            raise CheckpointError(
                f"{self.num_heads} heads do not divide into {self.num_kv_groups} key/value groups"
            )

    def with_layers(self, num_layers: int) -> "Architecture":
        """The same decoder with another number of layers."""
        return replace(self, num_layers=num_layers)

    def num_parameters(self) -> int:
        """Trained parameters, a tied head counted once, vocabulary padding not counted."""
        q_size, kv_size = self.num_heads * self.head_dim, self.num_kv_groups * self.head_dim
        attention = self.hidden_size * (2 * q_size + 2 * kv_size)
        bias = q_size + 2 * kv_size if self.qkv_bias else 0
        layer = attention + bias + 3 * self.hidden_size * self.ffn_size + 2 * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tied_embeddings else 2)
        return self.num_layers * layer + self.hidden_size + embeddings

    def to_hf_config(self) -> dict[str, Any]:
        """The `config.json` of this decoder, without token ids and dtype."""
        config: dict[str, Any] = {
            "architectures": [HF_CLASSES[self.family]],
            "model_type": self.family,
            "attention_dropout": 0.0,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": self.initializer_range,
            "intermediate_size": self.ffn_size,
            "max_position_embeddings": self.max_positions,
            "num_attention_heads": self.num_heads,
            "num_hidden_layers": self.num_layers,
            "num_key_value_heads": self.num_kv_groups,
            "rms_norm_eps": self.norm_eps,
            "rope_scaling": None,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": self.tied_embeddings,
            "use_cache": True,
            "vocab_size": self.vocab_size,
        }
        if self.rope_scaling is not None:
            config["rope_scaling"] = {"rope_type": "llama3", "factor": self.rope_scaling.factor}
            config["rope_scaling"] |= LLAMA3_SCALING
        if self.family == "llama":
            config |= {"attention_bias": False, "mlp_bias": False, "head_dim": self.head_dim}
        else:
            config |= {"use_sliding_window": False}
            if self.head_dim * self.num_heads != self.hidden_size:
                config["head_dim"] = self.head_dim
        return config

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for run.json and manifests."""
        return asdict(self)


def padded_vocab(vocab_size: int, tensor: int, multiple: int = VOCAB_MULTIPLE) -> int:
    """Embedding rows that Megatron allocates: the next multiple of `multiple * tensor`."""
    unit = multiple * tensor
    return -(-vocab_size // unit) * unit


def read_architecture(folder: Path | str) -> Architecture:
    """Read the decoder's numbers from a Hugging Face folder.

    Args:
        folder: holds `config.json`; nothing else is read. Of a Megatron checkpoint it is the
            config.json in `context/hf`.

    Raises:
        CheckpointError: the folder or file is missing, not JSON, or not a covered decoder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; a Hugging Face model folder is accepted")
    kept = folder / CHECKPOINT_ASSETS / CONFIG_FILE
    file = kept if kept.is_file() else folder / CONFIG_FILE
    return architecture_of(_read_json(file), str(file))


def architecture_of(config: Mapping[str, Any], where: str = "config.json") -> Architecture:
    """The decoder that a parsed `config.json` describes.

    Args:
        config: the parsed file.
        where: the file's name, for messages.

    Raises:
        CheckpointError: a key is missing, of another type, or names something not covered.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise CheckpointError(
            f"{where}: model_type is {family!r}, accepted are {', '.join(FAMILIES)}"
        )
    _refuse_what_is_not_covered(config, where)
    read = _Reader(config, where)
    hidden, heads = read.integer("hidden_size"), read.integer("num_attention_heads")
    try:
        return Architecture(
            family=family,
            num_layers=read.integer("num_hidden_layers"),
            hidden_size=hidden,
            ffn_size=read.integer("intermediate_size"),
            num_heads=heads,
            num_kv_groups=read.integer("num_key_value_heads", heads),
            head_dim=read.integer("head_dim", hidden // heads if heads else 0),
            vocab_size=read.integer("vocab_size"),
            rope_theta=_rope_theta(config, read),
            rope_scaling=_rope_scaling(config, where),
            norm_eps=read.number("rms_norm_eps", 1e-6),
            tied_embeddings=read.flag("tie_word_embeddings", False),
            qkv_bias=family == "qwen2",
            max_positions=read.integer("max_position_embeddings", MAX_POSITIONS[family]),
            initializer_range=read.number("initializer_range", 0.02),
        )
    except CheckpointError as error:
        text = str(error)
        raise CheckpointError(text if text.startswith(where) else f"{where}: {text}") from None


def check_layout(arch: Architecture, tensor: int, pipeline: int, who: str) -> None:
    """Raise unless Megatron-Core can cut the decoder into this tensor and pipeline parallelism.

    Megatron-Core 0.15 wants the key/value groups to be a multiple of the tensor-parallel size
    (transformer_config.py): it does not repeat groups on ranks when there are fewer of them.
    Stages of unequal depth exist in Megatron and are not supported here.

    Args:
        arch: the decoder.
        tensor: tensor-parallel size.
        pipeline: pipeline-parallel size.
        who: whose layout it is, for the message: "student" or "teacher".

    Raises:
        LayoutError: one line with the size that does not fit and the sizes that do.
    """
    divided = {
        "attention heads": arch.num_heads,
        "key/value groups": arch.num_kv_groups,
        "feed-forward width": arch.ffn_size,
    }
    for what, size in divided.items():
        if tensor < 1 or size % tensor:
            fitting = _fitting_tensor_sizes(arch)
            raise LayoutError(
                f"{who}: tensor={tensor} does not divide its {size} {what}; accepted are {fitting}"
            )
    if pipeline < 1 or arch.num_layers % pipeline:
        raise LayoutError(
            f"{who}: pipeline={pipeline} does not divide its {arch.num_layers} layers; accepted "
            f"are {_listed(_divisors(arch.num_layers))} (stages of unequal depth are not supported)"
        )


def _fitting_tensor_sizes(arch: Architecture) -> str:
    sizes = _divisors(arch.num_kv_groups)
    return _listed([n for n in sizes if arch.num_heads % n == 0 and arch.ffn_size % n == 0])


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _listed(numbers: list[int]) -> str:
    return ", ".join(str(number) for number in numbers)


def _read_json(file: Path) -> Mapping[str, Any]:
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file; a Hugging Face model folder has one")
    try:
        value: object = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: holds {type(value).__name__}, accepted is a JSON object")
    return cast("dict[str, Any]", value)


# Key, the values that are covered (absent counts as the first), and what to call the rest.
_COVERED: tuple[tuple[str, tuple[object, ...]], ...] = (
    ("hidden_act", ("silu",)),
    ("attention_bias", (False, None)),
    ("mlp_bias", (False, None)),
    ("use_sliding_window", (False, None)),
    ("quantization_config", (None,)),
    ("auto_map", (None,)),
)


def _refuse_what_is_not_covered(config: Mapping[str, Any], where: str) -> None:
    for key, accepted in _COVERED:
        value = cast("object", config.get(key, accepted[0]))
        if value not in accepted:
            raise CheckpointError(f"{where}: {key} is {value!r}, accepted is {accepted[0]!r}")


def _rope_parameters(config: Mapping[str, Any]) -> Mapping[str, Any]:
    # transformers 5 writes `rope_parameters`, earlier ones `rope_scaling` and `rope_theta`.
    value: object = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return cast("Mapping[str, Any]", value)


def _rope_theta(config: Mapping[str, Any], read: "_Reader") -> float:
    default = _rope_parameters(config).get("rope_theta", 10000.0)
    return read.number("rope_theta", float(default))


def _rope_scaling(config: Mapping[str, Any], where: str) -> RopeScaling | None:
    found = _rope_parameters(config)
    kind = found.get("rope_type", found.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise CheckpointError(f"{where}: rope_scaling of type {kind!r}, accepted is null or llama3")
    for key, accepted in LLAMA3_SCALING.items():
        if found.get(key) != accepted:
            raise CheckpointError(
                f"{where}: rope_scaling.{key} is {found.get(key)!r}, Megatron-Core has {accepted}"
            )
    return RopeScaling(factor=_Reader(found, where).number("factor", None))


class _Reader:
    """Typed look-ups in a parsed config; an absent key without a default is an error."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self._config = config
        self._where = where

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(key, value, "a whole number")
        return value

    def number(self, key: str, default: float | None) -> float:
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, value, "a number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def _value(self, key: str, default: object) -> object:
        value = self._config.get(key)
        value = default if value is None else value
        if value is None:
            raise CheckpointError(f"{self._where}: {key} is missing")
        return value

    def _wrong(self, key: str, value: object, accepted: str) -> CheckpointError:
        return CheckpointError(f"{self._where}: {key} is {value!r}, accepted is {accepted}")
