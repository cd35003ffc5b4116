"""NVIDIA's published H100 runs of Llama 3 that the planner is held against; figures as the sources print them."""

from dataclasses import dataclass

from ekd_nemo.config.architecture import Architecture
from ekd_nemo.config.recipe import Precision
from ekd_nemo.planner.flops import Trained
from ekd_nemo.planner.layout import Layout
from tests.unit.planner.models import LLAMA_8B, LLAMA_70B

# github.com/NVIDIA/dgxc-benchmarking at 85380ff (9 June 2025): llama3.1/README.md and ft_llama3/README_{8b,70b}.md,
# NeMo 25.04, seconds a step at a batch. github.com/NVIDIA/Megatron-LM, examples/llama/README.md at core_r0.12.0.
# github.com/NVIDIA-NeMo/Megatron-Bridge at 067f987, docs performance-summary-archive, container 25.11.
DGXC = "dgxc-benchmarking 85380ff"
MEGATRON_LM = "Megatron-LM examples/llama"
BRIDGE = "Megatron-Bridge 25.11"


@dataclass(frozen=True)
class Row:
    """One published run: its layout, and tokens a second and GPU."""

    source: str
    name: str
    arch: Architecture
    precision: Precision
    layout: Layout
    samples: int
    sequence: int
    tokens_per_s: float  # a GPU
    trained: Trained = "full"
    segment: int | None = None  # tokens of a packed segment; None: the whole sequence

    @property
    def label(self) -> str:
        """For the test's name."""
        return f"{self.name} {self.precision} {self.layout.ranks} GPUs ({self.source})"


def _step(samples: int, sequence: int, seconds: float, gpus: int) -> float:
    return samples * sequence / seconds / gpus


def _pretrain(
    name: str,
    arch: Architecture,
    precision: Precision,
    layout: Layout,
    samples: int,
    seconds: float,
) -> Row:
    speed = _step(samples, 8192, seconds, layout.ranks)
    return Row(DGXC, name, arch, precision, layout, samples, 8192, speed)


def _tune(
    name: str,
    arch: Architecture,
    precision: Precision,
    layout: Layout,
    samples: int,
    seconds: float,
    trained: Trained = "full",
) -> Row:
    # SQuAD packed to 4096; its questions with their passages are about 200 tokens each.
    speed = _step(samples, 4096, seconds, layout.ranks)
    return Row(DGXC, name, arch, precision, layout, samples, 4096, speed, trained, 200)


CP2_8B = [Layout(data=n, context=2) for n in (4, 64)]
BF16_70B = [Layout(4, 4, n, 5, 2, sequence_parallel=True) for n in (2, 32)]
FP8_70B = [Layout(4, 8, n, 5, sequence_parallel=True) for n in (2, 32)]

ROWS = [
    _pretrain("8B", LLAMA_8B, "bf16", CP2_8B[0], 128, 12.27),
    _pretrain("8B", LLAMA_8B, "bf16", CP2_8B[1], 2048, 12.33),
    _pretrain("8B", LLAMA_8B, "fp8", CP2_8B[0], 128, 9.33),
    _pretrain("8B", LLAMA_8B, "fp8", CP2_8B[1], 2048, 9.54),
    _pretrain("70B", LLAMA_70B, "bf16", BF16_70B[0], 128, 14.66),
    _pretrain("70B", LLAMA_70B, "bf16", BF16_70B[1], 2048, 14.65),
    _pretrain("70B", LLAMA_70B, "fp8", FP8_70B[0], 128, 9.86),
    _pretrain("70B", LLAMA_70B, "fp8", FP8_70B[1], 2048, 10.08),
    _tune("8B SFT", LLAMA_8B, "bf16", Layout(data=8), 32, 1.32),
    _tune("8B SFT", LLAMA_8B, "fp8", Layout(data=8), 32, 0.95),
    _tune("70B SFT", LLAMA_70B, "bf16", Layout(4, 4, 2, 5, sequence_parallel=True), 32, 3.36),
    _tune("70B SFT", LLAMA_70B, "fp8", Layout(4, 4, 2, 5, sequence_parallel=True), 32, 2.26),
    _tune("8B LoRA", LLAMA_8B, "bf16", Layout(data=8), 32, 0.92, "lora"),
    _tune("8B LoRA", LLAMA_8B, "fp8", Layout(data=8), 32, 0.68, "lora"),
    _tune(
        "70B LoRA",
        LLAMA_70B,
        "bf16",
        Layout(2, 4, 1, 20, sequence_parallel=True),
        32,
        9.118,
        "lora",
    ),
    _tune(
        "70B LoRA", LLAMA_70B, "fp8", Layout(2, 4, 1, 20, sequence_parallel=True), 32, 6.5, "lora"
    ),
    Row(MEGATRON_LM, "8B", LLAMA_8B, "fp8", CP2_8B[0], 128, 8192, 13_812),
    Row(MEGATRON_LM, "70B", LLAMA_70B, "fp8", FP8_70B[0], 128, 8192, 1_621),
    Row(BRIDGE, "70B", LLAMA_70B, "fp8", FP8_70B[0], 128, 8192, 1_602),
]
