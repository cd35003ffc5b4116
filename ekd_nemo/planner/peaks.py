"""Peak rates of GPUs by the name that the driver gives them: dense matrix products, TFLOP/s.

Source: NVIDIA's data sheets of the H100, H200, GH200, A100 and B200, without sparsity.
"""

from ekd_nemo.config.recipe import Precision

# The first name that the device's name contains counts; fp32 is TF32.
PEAKS_TFLOPS: tuple[tuple[str, dict[Precision, float]], ...] = (
    ("H100 PCIe", {"fp32": 378.0, "bf16": 756.0, "fp8": 1513.0}),
    ("H100 NVL", {"fp32": 417.5, "bf16": 835.5, "fp8": 1671.0}),
    ("H100", {"fp32": 494.7, "bf16": 989.4, "fp8": 1978.9}),
    ("GH200", {"fp32": 494.7, "bf16": 989.4, "fp8": 1978.9}),
    ("H200 NVL", {"fp32": 417.5, "bf16": 835.5, "fp8": 1671.0}),
    ("H200", {"fp32": 494.7, "bf16": 989.4, "fp8": 1978.9}),
    ("B200", {"fp32": 1125.0, "bf16": 2250.0, "fp8": 4500.0}),
    ("A100", {"fp32": 156.0, "bf16": 312.0}),
)


def peak_tflops(device_name: str, precision: Precision) -> float | None:
    """The peak of a GPU [TFLOP/s]; None for a device or precision that is not listed."""
    for name, peaks in PEAKS_TFLOPS:
        if name in device_name:
            return peaks.get(precision)
    return None
