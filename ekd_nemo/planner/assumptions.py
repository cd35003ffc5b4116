"""What a plan assumes that neither the recipe nor the cluster file says, by name."""

from dataclasses import asdict, dataclass, replace

from ekd_nemo.config.recipe import Precision

BYTES: dict[Precision, int] = {
    "fp32": 4,
    "bf16": 2,
    "fp8": 2,
}  # of activations and of stored weights


@dataclass(frozen=True)
class Assumptions:
    """Efficiencies are shares of the peaks and bandwidths of the cluster file.

    Fitted once to NVIDIA's published H100 runs of Llama 3 8B and 70B (tests/unit/planner/published.py), the same for
    all of them. The shares `*_exposed` say what the code at hand hides: by default nothing, as ekd trains today.

    Attributes:
        matmul: reached in matrix products, fp32 and bf16.
        matmul_fp8: reached in matrix products, fp8, casts not counted.
        attention: reached in attention, forward, of the bf16 peak (also under fp8: it stays in bf16).
        attention_backward: as above, backward.
        bandwidth: reached of the memory's bandwidth by norms, activation, residuals, casts and optimiser.
        link: reached of the links between and inside nodes by collectives.
        tensor_exposed: share of the tensor-parallel communication that nothing hides.
        pipeline_exposed: as above, of the transfers between stages.
        data_exposed: as above, of the gradients' reduction and the weights' gathering.
        context_exposed: as above, of the exchange of keys and values.
        grad_bytes: bytes of a gradient when it is reduced.
        overhead_s: of a step, for everything that is in no other part.
        reserve_gib: of a device's memory: driver, communicators, workspaces, fragments.
        segment_tokens: mean tokens of a packed segment; None: one segment fills a sample.
        learned_share: share of the tokens that carry loss.
        busy_power: power while computing, as a share of the power limit.
        waiting_power: power while communicating or waiting, as a share of the power limit.
    """

    matmul: float = 0.64
    matmul_fp8: float = 0.54
    attention: float = 0.60
    attention_backward: float = 0.40
    bandwidth: float = 0.75
    link: float = 0.75
    tensor_exposed: float = 1.0
    pipeline_exposed: float = 1.0
    data_exposed: float = 1.0
    context_exposed: float = 0.1
    grad_bytes: int = 4
    overhead_s: float = 0.05
    reserve_gib: float = 4.0
    segment_tokens: int | None = None
    learned_share: float = 1.0
    busy_power: float = 0.95
    waiting_power: float = 0.45

    def table(self) -> dict[str, float | int | None]:
        """Name and value of each."""
        return asdict(self)

    def with_values(self, **values: float | int | None) -> "Assumptions":
        """A copy with some of them changed."""
        return replace(self, **values)  # type: ignore[arg-type]


# NVIDIA's performance recipes reduce gradients in bf16 and overlap communication with computation.
OVERLAPPED = Assumptions(tensor_exposed=0.35, pipeline_exposed=0.2, data_exposed=0.2, grad_bytes=2)
