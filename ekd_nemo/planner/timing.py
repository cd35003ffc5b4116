"""The time of a step by part, for one model on its ranks."""

from dataclasses import dataclass, fields

from ekd_nemo.config.architecture import Architecture
from ekd_nemo.config.cluster import Device
from ekd_nemo.config.recipe import Precision, Recompute
from ekd_nemo.planner.assumptions import BYTES, Assumptions
from ekd_nemo.planner.flops import BACKWARD_PASSES, Trained, forward_flops
from ekd_nemo.planner.layout import Layout, stage_parameters

TERA, GIGA = 1e12, 1e9


@dataclass(frozen=True)
class Work:
    """What one model does in a step.

    Attributes:
        arch: the decoder.
        layout: its ranks.
        precision: of its matrix products.
        sequence: tokens of a sample.
        samples: of the global batch.
        micro_batch: samples of a microbatch.
        context: positions that a token attends to on average.
        trained: what of it is trained.
        head_share: share of the tokens that the head is run for; 0: not at all.
        recompute: what the backward pass makes again.
        extra_forwards: forward passes of the layers beside the one that is trained.
    """

    arch: Architecture
    layout: Layout
    precision: Precision
    sequence: int
    samples: int
    micro_batch: int = 1
    context: float = 1.0
    trained: Trained = "full"
    head_share: float = 1.0
    recompute: Recompute = "none"
    extra_forwards: int = 0

    @property
    def microbatches(self) -> int:
        """Of one copy."""
        return self.samples // (self.layout.data * self.micro_batch)

    @property
    def tokens(self) -> int:
        """Of a microbatch, on one rank of a sequence shard of `context`."""
        return self.sequence * self.micro_batch // self.layout.context


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step.

    Attributes:
        compute: matrix products, attention and what is bound by the memory's bandwidth.
        tensor: tensor-parallel communication that is not hidden.
        pipeline: transfers between stages that are not hidden, and exchange of keys and values.
        bubble: stages that wait for others.
        data: reduction of gradients and gathering of weights that is not hidden.
        optimizer: the update.
        teacher: waiting for the teacher, or for its outputs.
        other: everything else.
    """

    compute: float = 0.0
    tensor: float = 0.0
    pipeline: float = 0.0
    bubble: float = 0.0
    data: float = 0.0
    optimizer: float = 0.0
    teacher: float = 0.0
    other: float = 0.0

    @property
    def total(self) -> float:
        """All parts."""
        return sum(getattr(self, field.name) for field in fields(self))


def step_time(work: Work, device: Device, devices_per_node: int, a: Assumptions) -> StepTime:
    """The step of one model by itself.

    Args:
        work: the model.
        device: what a rank runs on.
        devices_per_node: ranks that share a node's links; beyond it the network is used.
        a: efficiencies.
    """
    layout, passes = work.layout, _passes(work)
    compute = _compute_s(work, device, a)
    layers = work.arch.num_layers / layout.pipeline
    tensor = a.tensor_exposed * passes * layers * _tensor_layer_s(work, device, a)
    context = a.context_exposed * passes * layers * _context_layer_s(work, device, a)
    transfers = a.pipeline_exposed * _transfer_s(work, device, devices_per_node, a)
    one = compute + tensor + context + transfers
    # Interleaving divides the bubble by the chunks of a stage (Narayanan et al. 2021, section 2.2).
    bubble = (layout.pipeline - 1) / layout.virtual * one
    times = work.microbatches
    data, optimizer = 0.0, 0.0
    if work.trained == "full":
        data = a.data_exposed * _data_s(work, device, devices_per_node, a)
        optimizer = _optimizer_s(work, device, a)
    return StepTime(
        compute=times * compute,
        tensor=times * tensor,
        pipeline=times * (transfers + context),
        bubble=bubble,
        data=data,
        optimizer=optimizer,
        other=a.overhead_s if work.trained != "none" else 0.0,
    )


def peak_flops(device: Device, precision: Precision, a: Assumptions) -> float:
    """FLOP/s that matrix products reach.

    Raises: ValueError for a precision that the device lacks.
    """
    peaks = {"fp32": device.fp32_tflops, "bf16": device.bf16_tflops, "fp8": device.fp8_tflops}
    peak = peaks[precision]
    if peak is None:
        raise ValueError(f"{device.name} has no {precision}")
    return peak * TERA * (a.matmul_fp8 if precision == "fp8" else a.matmul)


def _passes(work: Work) -> float:
    """Passes over the layers, in forward passes: communication of a backward pass equals that of a forward pass."""
    again = 1 if work.recompute == "full" and work.trained != "none" else 0
    backward = 0 if work.trained == "none" else 1
    return 1 + work.extra_forwards + again + backward


def _compute_s(work: Work, device: Device, a: Assumptions) -> float:
    """One microbatch on one rank of the slowest stage: the last, which has the head beside its layers."""
    layout, backward = work.layout, BACKWARD_PASSES[work.trained]
    forward = forward_flops(work.arch, work.context)
    again = 1 if work.recompute == "full" and work.trained != "none" else 0
    once = 1 + work.extra_forwards + again
    share = work.tokens / (layout.tensor * layout.pipeline)
    matmul = peak_flops(device, work.precision, a)
    high: Precision = "fp32" if work.precision == "fp32" else "bf16"
    plain = peak_flops(device, high, a) / a.matmul
    seconds = share * forward.layers * (once + backward) / matmul
    attention_back = 0.0 if work.trained == "none" else 2.0 / a.attention_backward
    recomputed = once + (1 if work.recompute == "selective" and work.trained != "none" else 0)
    seconds += share * forward.attention * (recomputed / a.attention + attention_back) / plain
    head = work.tokens / layout.tensor * forward.head * work.head_share
    seconds += head * (1 + backward) / (plain * a.matmul)
    return seconds + share * _traffic_bytes(work, once) / (device.memory_gb_s * GIGA * a.bandwidth)


def _traffic_bytes(work: Work, forwards: int) -> float:
    """Bytes a token that element-wise work moves through memory, over all layers.

    Forward: two norms and two residual sums read and write the width, the rotary embedding and the activation read and
    write theirs; backward twice as much. FP8 adds a cast of every input of a matrix product: two bytes read and two
    written (the copy and its transpose).
    """
    arch, size = work.arch, BYTES[work.precision]
    query, key_value = arch.num_heads * arch.head_dim, arch.num_kv_groups * arch.head_dim
    between = (4 + 6) * arch.hidden_size * work.layout.tensor / work.layout.sequence_shards
    inside = 2 * (query + key_value) + 3 * arch.ffn_size
    passes = forwards + (2 if work.trained != "none" else 0)
    moved = passes * size * (between + inside)
    if work.precision == "fp8":
        inputs = 2 * arch.hidden_size + query + arch.ffn_size
        grads = 2 * arch.hidden_size + query + 2 * key_value + 2 * arch.ffn_size
        moved += 4.0 * (forwards * inputs + (grads if work.trained != "none" else 0))
    return arch.num_layers * moved


def _tensor_layer_s(work: Work, device: Device, a: Assumptions) -> float:
    """One layer's collectives of one pass: each of two all-reduces moves 2 (n - 1) / n of the activations.

    With sequence parallelism it is an all-gather and a reduce-scatter, which move the same.
    """
    n = work.layout.tensor
    if n == 1:
        return 0.0
    payload = work.tokens * work.arch.hidden_size * BYTES[work.precision]
    return 4 * (n - 1) / n * payload / (device.link_gb_s * GIGA * a.link)


def _context_layer_s(work: Work, device: Device, a: Assumptions) -> float:
    """One layer's exchange of keys and values around the ring of context ranks."""
    n, arch = work.layout.context, work.arch
    if n == 1:
        return 0.0
    width = 2 * arch.num_kv_groups * arch.head_dim / work.layout.tensor
    payload = work.tokens * width * BYTES[work.precision]
    return (n - 1) * payload / (device.link_gb_s * GIGA * a.link)


def _transfer_s(work: Work, device: Device, devices_per_node: int, a: Assumptions) -> float:
    """A microbatch's activations to the next stage and gradients back, once a chunk."""
    layout = work.layout
    if layout.pipeline == 1:
        return 0.0
    copy = layout.tensor * layout.context * layout.pipeline
    speed = device.link_gb_s if copy <= devices_per_node else device.network_gb_s
    payload = work.tokens * work.arch.hidden_size * BYTES[work.precision] / layout.sequence_shards
    directions = (1 if work.trained == "none" else 2) + work.extra_forwards
    return directions * layout.virtual * payload / (speed * GIGA * a.link)


def _data_s(work: Work, device: Device, devices_per_node: int, a: Assumptions) -> float:
    """Reduction of the gradients and gathering of the weights over copies and context ranks."""
    layout = work.layout
    n = layout.data * layout.context
    if n == 1:
        return 0.0
    held = max(stage_parameters(work.arch, layout, stage) for stage in range(layout.pipeline))
    moved = held * (a.grad_bytes + BYTES[work.precision]) * (n - 1) / n
    speed = device.link_gb_s if layout.ranks <= devices_per_node else device.network_gb_s
    return moved / (speed * GIGA * a.link)


def _optimizer_s(work: Work, device: Device, a: Assumptions) -> float:
    """Adam reads and writes master weights and two moments, reads the gradient and writes the weight."""
    held = max(
        stage_parameters(work.arch, work.layout, stage) for stage in range(work.layout.pipeline)
    )
    shards = work.layout.data * work.layout.context
    moved = (
        held / shards * (6 * 4 + 4 + BYTES[work.precision]) + held * 8
    )  # and the gradients' norm and zeroing
    return moved / (device.memory_gb_s * GIGA * a.bandwidth)
