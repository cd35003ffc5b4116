"""What a scenario costs: memory a device, time of a step, throughput, energy."""

from dataclasses import dataclass, replace
from typing import Final

from ekd_nemo.config.cluster import Cluster, Device
from ekd_nemo.planner.assumptions import Assumptions
from ekd_nemo.planner.devices import device_memory
from ekd_nemo.planner.flops import forward_flops, model_flops
from ekd_nemo.planner.memory import GIB, Memory
from ekd_nemo.planner.scenario import Scenario
from ekd_nemo.planner.timing import GIGA, StepTime, Work, step_time
from ekd_nemo.units import J_PER_KWH

S_PER_DAY: Final = 86_400


@dataclass(frozen=True)
class CacheCost:
    """Making a cache once, by the teacher on all devices of the cluster.

    Attributes:
        hours: wall time.
        energy_kwh: of the devices.
        size_tb: on disk, 10^12 bytes.
    """

    hours: float
    energy_kwh: float
    size_tb: float


@dataclass(frozen=True)
class Estimate:
    """What one scenario costs.

    Attributes:
        scenario: what runs.
        memory: bytes of a device, by kind of rank: `student` (with a shared teacher) and, in a split, `teacher`.
        available_gib: memory of a device.
        time: of a step, as the student's ranks see it.
        flops_per_token: model FLOP of a token, both models.
        mfu: share of the devices' peak, each model's FLOP counted at the peak of its precision.
        energy_kwh: of all devices over all steps.
        cache: for cached outputs; None otherwise.
    """

    scenario: Scenario
    memory: dict[str, Memory]
    available_gib: float
    time: StepTime
    flops_per_token: float
    mfu: float
    energy_kwh: float
    cache: CacheCost | None

    @property
    def step_s(self) -> float:
        """Seconds of a step."""
        return self.time.total

    @property
    def tokens_per_s(self) -> float:
        """Tokens that the student trains on, of all devices."""
        return self.scenario.tokens / self.step_s

    @property
    def tokens_per_s_device(self) -> float:
        """The same, of one device, those of a split teacher counted."""
        return self.tokens_per_s / self.scenario.ranks

    @property
    def days(self) -> float:
        """Of all steps; validation and checkpoints are not counted."""
        return self.step_s * self.scenario.recipe.train.steps / S_PER_DAY

    @property
    def missing_gib(self) -> float:
        """By how much the fullest device is too small; 0 or less: it fits."""
        return max(memory.total for memory in self.memory.values()) / GIB - self.available_gib

    @property
    def fits(self) -> bool:
        """Whether every device holds what it must."""
        return self.missing_gib <= 0


def estimate(
    found: Scenario, cluster: Cluster, a: Assumptions, slower: float = 1.0, fuller: float = 1.0
) -> Estimate:
    """Work out a scenario.

    Args:
        found: what runs.
        cluster: on which machine.
        a: efficiencies and powers.
        slower: measured over planned time of calibration runs; 1 without.
        fuller: measured over planned memory of the fullest device of calibration runs; 1 without.
    """
    device, per_node = cluster.nodes.device, cluster.nodes.devices_per_node
    own = step_time(_with_teacher_head(found), device, per_node, a)
    time = _scaled(_waiting(found, own, device, per_node, a), slower)
    flops, at_peak_s = _model_work(found, device)
    steps = found.recipe.train.steps
    return Estimate(
        scenario=found,
        memory={
            who: memory.scaled(fuller) for who, memory in device_memory(found, cluster, a).items()
        },
        available_gib=device.memory_gib,
        time=time,
        flops_per_token=flops / found.tokens,
        mfu=at_peak_s / (time.total * found.ranks),
        energy_kwh=_step_energy_j(found, time, slower, cluster, a) * steps / J_PER_KWH,
        cache=_cache_cost(found, cluster, a, slower),
    )


def _with_teacher_head(found: Scenario) -> Work:
    """The student's work, and the teacher's head where the loss runs it: as a share of the student's head."""
    work = found.student
    if not found.dense:
        return work
    # A forward pass of a head that is wider by the ratio of the widths, beside three passes of the student's.
    passes = 3.0 if work.trained == "full" else 2.0
    more = found.teacher_width / work.arch.hidden_size / passes
    return replace(work, head_share=work.head_share * (1 + more))


def _waiting(
    found: Scenario, own: StepTime, device: Device, per_node: int, a: Assumptions
) -> StepTime:
    """The student's step with what it waits for the teacher."""
    teacher = found.teacher
    if teacher is None:
        return own
    alone = step_time(teacher, device, per_node, a).total
    moved = found.outputs.bytes_a_token(found.teacher_width, found.transport) * found.tokens
    inside = found.placement == "shared" and found.ranks <= per_node
    speed = (device.link_gb_s if inside else device.network_gb_s) * GIGA * a.link
    if found.placement == "shared":
        # Outputs change hands only where the layouts differ; every rank sends and receives its share.
        same = teacher.layout == found.student.layout
        return replace(own, teacher=alone + (0.0 if same else moved / found.ranks / speed))
    received = moved / found.student.layout.ranks / speed
    behind = alone + moved / teacher.layout.ranks / speed
    return replace(own, teacher=max(received, behind - own.total))


def _scaled(time: StepTime, factor: float) -> StepTime:
    return StepTime(**{name: value * factor for name, value in vars(time).items()})


def _model_work(found: Scenario, device: Device) -> tuple[float, float]:
    """FLOP of a step, and seconds that they would take on one device at its peak."""
    student, teacher = found.student, found.teacher
    flops = model_flops(student.arch, student.context, student.trained, student.head_share)
    if student.extra_forwards:
        once = forward_flops(student.arch, student.context)
        flops += student.extra_forwards * (once.layers + once.attention)
    flops *= found.tokens
    seconds = flops / _peak(device, student)
    if found.dense:
        head = (
            2.0 * found.teacher_width * student.arch.vocab_size * student.head_share * found.tokens
        )
        flops, seconds = flops + head, seconds + head / _peak(device, student)
    if teacher is not None:
        once = forward_flops(teacher.arch, teacher.context)
        taught = (once.layers + once.attention + once.head * teacher.head_share) * found.tokens
        flops, seconds = flops + taught, seconds + taught / _peak(device, teacher)
    return flops, seconds


def _peak(device: Device, work: Work) -> float:
    peaks = {"fp32": device.fp32_tflops, "bf16": device.bf16_tflops, "fp8": device.fp8_tflops}
    peak = peaks[work.precision]
    assert peak is not None
    return peak * 1e12


def _step_energy_j(
    found: Scenario, time: StepTime, slower: float, cluster: Cluster, a: Assumptions
) -> float:
    """Joules of all devices in a step: busy while computing, waiting otherwise."""
    device, per_node = cluster.nodes.device, cluster.nodes.devices_per_node
    busy_w, waiting_w = a.busy_power * device.tdp_w, a.waiting_power * device.tdp_w
    computing = time.compute + time.optimizer
    taught = 0.0
    if found.teacher is not None:
        taught = slower * step_time(found.teacher, device, per_node, a).compute
    if found.placement == "shared":
        computing += taught
    joules = found.student.layout.ranks * (
        computing * busy_w + (time.total - computing) * waiting_w
    )
    if found.placement == "split" and found.teacher is not None:
        joules += found.teacher.layout.ranks * (taught * busy_w + (time.total - taught) * waiting_w)
    return joules


def _cache_cost(
    found: Scenario, cluster: Cluster, a: Assumptions, slower: float
) -> CacheCost | None:
    maker, teacher = found.maker, found.recipe.teacher
    if maker is None or teacher is None or teacher.cache is None:
        return None
    device, steps = cluster.nodes.device, found.recipe.train.steps
    time = _scaled(step_time(maker, device, cluster.nodes.devices_per_node, a), slower)
    joules = time.compute * a.busy_power + (time.total - time.compute) * a.waiting_power
    kwh = joules * device.tdp_w * maker.layout.ranks * steps / J_PER_KWH
    return CacheCost(time.total * steps / 3600, kwh, _cache_bytes(found) * steps / 1e12)


def _cache_bytes(found: Scenario) -> float:
    """Bytes that a global batch takes in a cache; rows of int8 have a scale, which is left out."""
    teacher = found.recipe.teacher
    assert teacher is not None
    assert teacher.cache is not None
    build = teacher.cache.build
    if build is None:
        return float(found.output_bytes)
    if build.kind == "embeddings":
        return float(found.student.samples * found.teacher_width * 4)
    if build.kind != "hidden":
        # An id in three bytes (ids below 2^24) and a probability in two.
        return found.tokens * 5.0 * (build.k if build.kind == "topk" else build.samples)
    size = {"fp32": 4, "bf16": 2, "int8": 1}[build.storage]
    states = max(found.outputs.states, 1)
    return float(found.tokens * states * found.teacher_width * size)
