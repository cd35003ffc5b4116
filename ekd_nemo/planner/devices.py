"""Bytes of the fullest device of each kind that a scenario needs: who stands where, and what waits for whom."""

from dataclasses import replace
from typing import Final

from ekd_nemo.config.cluster import Cluster
from ekd_nemo.config.placement import stands_alike
from ekd_nemo.planner.assumptions import BYTES, Assumptions
from ekd_nemo.planner.layout import Layout
from ekd_nemo.planner.memory import GIB, Memory, student_memory, teacher_memory
from ekd_nemo.planner.moments import Features, Kind, Losses, fullest_moment
from ekd_nemo.planner.scenario import Scenario
from ekd_nemo.planner.timing import Work

# Steps whose samples are read and decoded ahead of the student, teacher.cache.source.CachedTeacher.
READ_AHEAD: Final = 2


def device_memory(found: Scenario, cluster: Cluster, a: Assumptions) -> dict[str, Memory]:
    """Bytes by part of the fullest `student` device (a shared teacher's part with it) and `teacher` device."""
    kind: Kind = cluster.nodes.device.kind
    reserve = int(a.reserve_gib * GIB) if kind == "gpu" else 0
    stages = range(found.student.layout.pipeline)
    students = [replace(_student(found, kind, stage), reserve=reserve) for stage in stages]
    if found.teacher is None:
        return {"student": max(students, key=_total)}
    taught, works = found.teacher.layout, _by_microbatch(found)
    if found.placement == "split":
        teachers = [
            replace(
                teacher_memory(works, kind, stage, head=False),
                buffers=_waiting(found, stage),
                reserve=reserve,
            )
            for stage in range(taught.pipeline)
        ]
        return {"student": max(students, key=_total), "teacher": max(teachers, key=_total)}
    own = found.student.layout
    both = {(own.stage_of(rank), taught.stage_of(rank)) for rank in range(own.ranks)}
    shared = [_with_teacher(found, kind, students[first], first, second) for first, second in both]
    return {"student": max(shared, key=_total)}


def _total(memory: Memory) -> int:
    return memory.total


def _student(found: Scenario, kind: Kind, stage: int) -> Memory:
    """A rank of the student with what it gets of the teacher, but without the teacher itself."""
    recipe, work = found.recipe, found.student
    memory = student_memory(
        work, recipe.student.lora, recipe.optimizer.distributed, kind, stage, _losses(found, stage)
    )
    return replace(memory, buffers=_outputs(found, kind, stage) + _head_rows(found, stage))


def _losses(found: Scenario, stage: int) -> Losses:
    objective, work = found.recipe.objective, found.student
    response, feature = objective.response, objective.feature
    features = Features()
    if feature is not None:
        pairs = found.outputs.pairs_at(stage, work.layout, work.arch.num_layers)
        cosine, projected = feature.kind == "cosine", feature.projector == "linear"
        features = Features(pairs, feature.token_ratio, cosine, projected)
    sums = response is not None and not (found.dense and response.kind == "forward_kl")
    return Losses(
        found.teacher_width,
        found.dense,
        response is not None,
        sums,
        objective.chunk_tokens,
        features,
        in_place=objective.kernels == "triton" and (response is None or found.dense),
    )


def _stands_alike(found: Scenario) -> bool:
    """Whether the teacher's own head serves the student's loss."""
    if found.teacher is None or found.placement != "shared":
        return False
    return stands_alike(found.recipe, found.student.arch, found.teacher.arch)


def _outputs(found: Scenario, kind: Kind, stage: int) -> int:
    """Teacher outputs of a step that a rank of the student holds, as its loss takes them."""
    teacher, layout = found.recipe.teacher, found.student.layout
    if teacher is None or not found.teacher_width:
        return 0
    tokens = found.tokens // layout.data
    wanted = found.outputs.wanted_at(stage, layout, found.student.arch.num_layers)
    state = wanted * found.teacher_width * BYTES[teacher.precision]
    last = stage == layout.pipeline - 1
    sparse = found.outputs.sparse if last else 0.0
    held = tokens * (state / layout.sequence_shards + sparse)
    if found.placement == "cached" and kind == "cpu":  # read ahead into the host's memory, whole
        held += READ_AHEAD * tokens * (state + sparse)
    return int(held)


def _head_rows(found: Scenario, stage: int) -> int:
    """The teacher's head cut as the student's vocabulary is, where the teacher's own part is not."""
    last = stage == found.student.layout.pipeline - 1
    teacher = found.teacher or found.maker
    if teacher is None or not (found.dense and last) or _stands_alike(found):
        return 0
    rows = found.student.arch.vocab_size // found.student.layout.tensor
    return rows * teacher.arch.hidden_size * BYTES[teacher.precision]


def _by_microbatch(found: Scenario) -> Work:
    """The teacher as it works: a microbatch of the student at a time."""
    assert found.teacher is not None
    return replace(found.teacher, micro_batch=found.student.micro_batch)


def _with_teacher(found: Scenario, kind: Kind, student: Memory, own: int, stage: int) -> Memory:
    """The rank of the student's stage `own` with its part of a shared teacher, which stands at `stage`."""
    assert found.recipe.teacher is not None
    teacher = teacher_memory(_by_microbatch(found), kind, stage, head=_stands_alike(found))
    # The CPU has no other memory to put weights away to.
    away = found.recipe.teacher.offload and kind == "gpu"
    weights = 0 if away else teacher.teacher_weights
    forward = teacher.teacher_forward + teacher.teacher_weights - weights
    # Nothing of the student's fullest moment is there yet, which may be that of the update.
    update = fullest_moment(found.student, kind, own, _losses(found, own)).optimizer
    freed = student.activations + student.loss + int(update)
    return replace(student, teacher_weights=weights, teacher_forward=max(0, forward - freed))


def _waiting(found: Scenario, stage: int) -> int:
    """Messages of a split teacher's rank until they are taken: of `depth` batches at most (split_server.py)."""
    split = found.recipe.teacher.split if found.recipe.teacher is not None else None
    assert split is not None
    assert found.teacher is not None
    layout, outputs = found.teacher.layout, found.outputs
    made = outputs.made_at(stage, layout, found.teacher.arch.num_layers)
    state = replace(outputs, final=True, pairs=(), sparse=0.0).bytes_a_token(
        found.teacher_width, found.transport
    )
    return int(split.depth * found.tokens // layout.data * made * state * _sent(found))


def _sent(found: Scenario) -> float:
    """Copies of an output that the busiest tensor rank of the teacher sends: one to every tensor rank it serves."""
    assert found.teacher is not None
    student: Layout = found.student.layout
    targets = -(-student.tensor // found.teacher.layout.tensor)
    return targets / student.sequence_shards
