"""One training step by Megatron's schedules on gloo ranks, many cases in one start of the ranks."""

import gc
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed import distributed_c10d

from tests.distributed.step_cases import SEED, TEACHER, Case, objective, samples, stacked


def steps(
    rank: int, world_size: int, cases: list[Case], folder: Path, dtype: torch.dtype
) -> list[dict[str, float]]:
    """For each case: means of the terms, and the relative error of every gradient."""
    from ekd_nemo.backend import cpu

    cpu.install()
    found: list[dict[str, float]] = []
    for case in cases:
        found.append(_step(case, folder, dtype))
        _forget_groups()
    return found


def _forget_groups() -> None:
    """Megatron forgets its groups and leaves their threads: dozens a case, in every rank."""
    dist.barrier()
    gc.collect()  # models and buffers hold groups, in circles
    for group in list(distributed_c10d._world.pg_map):
        if group is not dist.group.WORLD:
            dist.destroy_process_group(group)


def _step(case: Case, folder: Path, dtype: torch.dtype) -> dict[str, float]:
    from megatron.core import parallel_state
    from megatron.core.distributed import finalize_model_grads
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    parallel_state.initialize_model_parallel(
        case.tensor,
        case.pipeline,
        virtual_pipeline_model_parallel_size=case.virtual,
        create_gloo_process_groups=False,  # these are gloo's already
    )
    model_parallel_cuda_manual_seed(1234)
    try:
        chunks = _student(case, folder, dtype)
        config = chunks[0].config
        config.finalize_model_grads_func = finalize_model_grads
        means = _run(case, chunks, folder, dtype)
        return means | _errors(case, chunks, folder)
    finally:
        parallel_state.destroy_model_parallel()


def _student(case: Case, folder: Path, dtype: torch.dtype) -> list[Any]:
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig

    from ekd_nemo.models.config import decoder_config
    from ekd_nemo.models.distill import METHODS
    from ekd_nemo.models.terms import loss_plan
    from ekd_nemo.models.weights import FolderSource

    goal = objective(case.objective)
    families = goal.families
    method = "sft" if not families else families[0] if len(families) == 1 else "combined"
    config = decoder_config(case.student, case.parallel, 16, dtype, recompute=case.recompute)
    first = METHODS[method](config, None, loss_plan(goal, case.student, TEACHER), SEED)
    first.source = FolderSource(folder / case.student_folder)
    chunks = [first, *(first.reinit() for _ in range(1, case.virtual or 1))]
    for stage, chunk in enumerate(chunks):
        chunk.configure_model(stage if case.virtual else None)
        chunk.module = DistributedDataParallel(
            config, DistributedDataParallelConfig(grad_reduce_in_fp32=True), chunk.module
        )
        chunk.module.zero_grad_buffer()
        chunk.train()
    return chunks


def _teacher(case: Case, folder: Path, dtype: torch.dtype) -> Any:
    import torch.distributed as dist

    from ekd_nemo.models.frozen import shared_teacher
    from ekd_nemo.models.weights import FolderSource
    from ekd_nemo.teacher.layout import Layout

    layout = Layout.of(case.parallel, dist.get_world_size())
    precision = "fp32" if dtype == torch.float32 else "bf16"
    return shared_teacher(FolderSource(folder / "teacher"), layout, precision, 16)


def _run(case: Case, chunks: list[Any], folder: Path, dtype: torch.dtype) -> dict[str, float]:
    from megatron.core import parallel_state
    from megatron.core.pipeline_parallel import get_forward_backward_func

    from ekd_nemo.models.preparing import Preparing
    from ekd_nemo.parallel.batch import Microbatch
    from ekd_nemo.parallel.normalise import on_last_stage_once, sum_over_ranks

    rows, place = samples(), parallel_state.get_data_parallel_rank()
    mine = rows[place :: case.data]  # the loss must not care which rank gets which sample
    batches = [
        Microbatch.of(stacked(mine[i : i + case.microbatch]), torch.device("cpu"))
        for i in range(0, len(mine), case.microbatch)
    ]
    plan = chunks[0].plan
    preparing = Preparing(plan, SEED, _Phases())  # type: ignore[arg-type]
    prepared = preparing.step(chunks, batches, _teacher(case, folder, dtype))
    by_part = {id(chunk.module): chunk for chunk in chunks}

    def forward(data: Any, part: Any) -> tuple[Tensor, Any]:
        item, chunk = next(data), by_part[id(part)]
        reduce = chunk.training_loss_reduction
        return chunk.forward_step(item), lambda out: reduce.forward(item, out)

    outputs = get_forward_backward_func()(
        forward_step_func=forward,
        data_iterator=[iter(prepared.inputs) for _ in chunks]
        if case.virtual
        else iter(prepared.inputs),
        model=[chunk.module for chunk in chunks] if case.virtual else chunks[0].module,
        num_microbatches=len(batches),
        seq_length=16,
        micro_batch_size=case.microbatch,
        forward_only=False,
    )
    sums = dict(prepared.sums)
    if outputs and on_last_stage_once():
        reduced = chunks[-1].training_loss_reduction.reduce(outputs).tolist()
        sums |= dict(zip(plan.last_stage_terms, reduced, strict=True))
    for chunk in chunks:
        sums |= preparing.feature_sums(chunk)
    local = torch.tensor([sums.get(t.name, 0.0) for t in plan.terms], dtype=torch.float64)
    means = plan.means(sum_over_ranks(local).tolist(), prepared.counts)
    return means | {"loss": plan.total(means)}


class _Phases:
    """Marks are not what is tested here."""

    def phase(self, _name: str) -> Any:
        from contextlib import nullcontext

        return nullcontext()


@torch.no_grad()
def _errors(case: Case, chunks: list[Any], folder: Path) -> dict[str, float]:
    """Norm-wise relative error over all parameters of all ranks, and over the projectors."""
    from megatron.core import parallel_state
    from megatron.core.utils import unwrap_model

    from ekd_nemo.models.weights import FolderSource, load_weights

    projectors = load_file(folder / case.reference / "projectors")
    squares = torch.zeros(4, dtype=torch.float64)  # gap and size of weights, of projectors
    rank = parallel_state.get_tensor_model_parallel_rank()
    for chunk in chunks:
        model = unwrap_model(chunk.module)
        made = getattr(model, "projectors", None)
        if made is not None:
            for key, linear in made.items():
                expected = projectors[key].double()
                squares[2] += (linear.weight.main_grad - expected).square().sum()
                squares[3] += expected.square().sum()
            del model.projectors
        # The gradient of the reference, cut up as the weights are: each rank gets what it should have.
        found = {p: p.main_grad.double() for p in model.parameters()}
        load_weights([model], FolderSource(folder / case.reference), rank, case.tensor)
        for parameter, gradient in found.items():
            squares[0] += (gradient - parameter.double()).square().sum()
            squares[1] += parameter.double().square().sum()
    if dist.get_world_size() > 1:
        dist.all_reduce(squares)
    gap, size, projector_gap, projector_size = squares.sqrt().tolist()
    errors = {"gradient": gap / size}
    if projector_size:
        errors["projector"] = projector_gap / projector_size
    return errors
