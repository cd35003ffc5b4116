"""One training process: NeMo's trainer and strategy put together from a recipe, and run."""

import importlib.util
import logging
import os
from contextlib import ExitStack, closing
from typing import Any

import fiddle as fdl
import nemo.lightning as nl
import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallelConfig
from nemo.lightning.callback_group import CallbackGroup
from nemo.lightning.pytorch.plugins import MegatronMixedPrecision
from nemo.utils import AppState
from nemo.utils import logging as nemo_logging

from ekd_nemo.backend import cpu
from ekd_nemo.config.architecture import Architecture
from ekd_nemo.config.recipe import Recipe
from ekd_nemo.data.packed import PackedDataset
from ekd_nemo.errors import EXIT_OK, EXIT_SAVED, ConfigError
from ekd_nemo.losses.kernels import check_triton
from ekd_nemo.models.checkpointing import (
    StepCheckpoint,
    checkpoint_step,
    latest_checkpoint,
    remove_unfinished,
    start_writers_helper,
)
from ekd_nemo.models.clocks import MeasureClocks
from ekd_nemo.models.config import decoder_config
from ekd_nemo.models.convert_source import open_source
from ekd_nemo.models.datamodule import PackedDataModule
from ekd_nemo.models.distill import METHODS, DistillModel
from ekd_nemo.models.mlflow_run import continued
from ekd_nemo.models.optimizer import optimizer_module
from ekd_nemo.models.pace import Pace
from ekd_nemo.models.phases import PhaseClock, attempt
from ekd_nemo.models.precision import DTYPES, check_fp8, plugin_settings
from ekd_nemo.models.sides import Sides
from ekd_nemo.models.stepping import Stepping
from ekd_nemo.models.stopping import StopOnSignal
from ekd_nemo.models.teachers import release_teacher, split_teacher, teacher_source
from ekd_nemo.models.terms import loss_plan
from ekd_nemo.models.training_log import TrainingLog
from ekd_nemo.models.weights import FolderSource, LayerSubsetSource, RandomSource, TensorSource
from ekd_nemo.records.rundir import RunDir
from ekd_nemo.sources.manifest import sequence_length
from ekd_nemo.teacher.source import TeacherSource


def train(
    run: RunDir,
    recipe: Recipe,
    student: Architecture,
    teacher: Architecture | None,
    phases: PhaseClock,
    sides: Sides | None = None,
) -> int:
    """Train to the recipe's last step, from the newest checkpoint if there is one.

    Args:
        run: where everything is read from and written to.
        recipe: resolved and checked.
        student: the student's decoder.
        teacher: the teacher's, if the recipe names one.
        phases: this rank's marks, in phase `prerun`.
        sides: of a split run.

    Returns:
        0 when the last step is done, 75 when a signal ended the run before.
    """
    prepare_engine(recipe, student, teacher)
    stop = StopOnSignal()
    rank = int(os.environ.get("RANK", "0"))
    if rank == 0:
        remove_unfinished(run.checkpoints)
    latest = latest_checkpoint(run.checkpoints)
    first = 0 if latest is None else checkpoint_step(latest)
    log = training_log(run, recipe, speaks=rank == 0)
    with closing(log), ExitStack() as ending:
        if first >= recipe.train.steps:
            log.say(f"step {first} of {recipe.train.steps} is done: nothing left to train")
            if sides is not None:
                release_teacher(sides, run, first)
            return EXIT_OK
        log.begin(first)
        start_writers_helper()
        model = student_model(recipe, student, teacher, sequence_length(recipe.data.path))
        if latest is None:
            model.source = student_source(recipe, student)

        def make_teacher() -> TeacherSource:
            assert teacher is not None
            if sides is not None:
                return split_teacher(recipe, student, teacher, sides, run, first, ending)
            return teacher_source(recipe, student, teacher, first)

        made = None if teacher is None else make_teacher
        held_out = PackedDataset(recipe.data.path, "validation")
        pace = Pace(run, recipe, student, teacher)
        stepping = Stepping(model, made, held_out, recipe.train, log, phases, pace)
        trainer = make_trainer(run, recipe, [MeasureClocks(run), stepping, stop], phases)
        data = PackedDataModule(PackedDataset(recipe.data.path, "train"), recipe.train, recipe.seed)
        trainer.fit(model, data, ckpt_path=None if latest is None else str(latest / "weights"))
        if stop.stopped_at is not None and trainer.global_step < recipe.train.steps:
            log.say(f"stopped by a signal: step {stop.stopped_at} is saved, launch again to go on")
    dist.barrier()
    dist.destroy_process_group()
    return EXIT_OK if trainer.global_step >= recipe.train.steps else EXIT_SAVED


def prepare_engine(recipe: Recipe, student: Architecture, teacher: Architecture | None) -> None:
    """Put NeMo into the state that training needs, and refuse what this device cannot do.

    Raises: ConfigError in one line.
    """
    cpu.install()
    if os.environ.get("EKD_DEBUG", "") in ("", "0"):
        nemo_logging.setLevel(logging.ERROR)
    # NVIDIA's OneLogger: NeMo switches it on where RANK is 0 and only its own recipes configure it;
    # without that, rank 0 fails at its first checkpoint (nemo/lightning/one_logger_callback.py).
    CallbackGroup.get_instance().callbacks.clear()
    _check_device(recipe)
    if recipe.objective.kernels == "triton":
        check_triton("cuda" if torch.cuda.is_available() else "cpu")
    check_fp8(
        recipe, student, teacher, sequence_length(recipe.data.path) * recipe.train.micro_batch_size
    )


def training_log(run: RunDir, recipe: Recipe, *, speaks: bool) -> TrainingLog:
    """Where steps are recorded: one rank speaks, the others keep silent."""
    loggers = metric_loggers(run, recipe) if speaks else ()
    return TrainingLog(run.train_log, recipe, attempt(), speaks=speaks, loggers=loggers)


def student_source(recipe: Recipe, student: Architecture) -> TensorSource:
    """Where the student's first weights come from; the same on every layout."""
    init = recipe.student.init
    if init.source == "random":
        return RandomSource(student, recipe.seed)
    if init.source == "checkpoint":
        assert init.path is not None
        return open_source(init.path)
    assert recipe.teacher is not None
    assert init.keep_layers is not None
    return LayerSubsetSource(FolderSource(recipe.teacher.path), init.keep_layers)


def student_model(
    recipe: Recipe, student: Architecture, teacher: Architecture | None, seq_length: int
) -> DistillModel:
    """NeMo's model of the recipe's method; built by Lightning, once its groups stand."""
    precision = recipe.student.precision
    model = METHODS[recipe.method](
        decoder_config(
            student,
            recipe.student.parallel,
            seq_length,
            DTYPES[precision],
            recompute=recipe.student.recompute,
        ),
        optimizer_module(recipe.optimizer, recipe.train.steps, bf16=precision != "fp32"),
        loss_plan(recipe.objective, student, teacher),
        recipe.seed,
    )
    model.lora = recipe.student.lora
    return model


class RecipeTrainer(nl.Trainer):
    """NeMo's trainer, without the copy of its arguments that NeMo keeps to make it again.

    The recipe says how to make it; callbacks that hold a model cannot be copied.
    """

    def io_init(self, **kwargs: Any) -> fdl.Config[Any]:
        """Keep no arguments."""
        return fdl.Config(type(self))


def make_trainer(
    run: RunDir, recipe: Recipe, callbacks: list[Any], phases: PhaseClock
) -> RecipeTrainer:
    """NeMo's trainer on Megatron's strategy, with checkpoints in the run directory."""
    parallel, bf16 = recipe.student.parallel, recipe.student.precision != "fp32"
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    app = AppState()
    app.log_dir = run.logs / "nemo"
    app.log_dir.mkdir(parents=True, exist_ok=True)
    strategy = nl.MegatronStrategy(
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline,
        sequence_parallel=parallel.sequence_parallel,
        pipeline_dtype=torch.bfloat16 if bf16 else torch.float32,
        ddp=DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            check_for_nan_in_grad=True,
            use_distributed_optimizer=recipe.optimizer.distributed,
        ),
        ckpt_async_save=False,
        ckpt_optim_fully_reshardable=True,
        replace_progress_bar=False,
    )
    strategy.log_train_loss = False  # ours is gathered over all stages, theirs is not
    return RecipeTrainer(
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        devices=local,
        num_nodes=int(os.environ.get("WORLD_SIZE", "1")) // local,
        strategy=strategy,
        plugins=MegatronMixedPrecision(**plugin_settings(recipe.student.precision)),
        max_steps=recipe.train.steps,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        callbacks=[
            *callbacks,
            StepCheckpoint(run.checkpoints, recipe.train.checkpoint_interval, phases),
        ],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def metric_loggers(run: RunDir, recipe: Recipe) -> list[Any]:
    """TensorBoard, W&B and MLflow, as the recipe asks; rank 0 only.

    Raises: ConfigError if the recipe asks for one that is not installed.
    """
    from lightning.pytorch import loggers

    wanted, found = recipe.logging, list[Any]()
    if wanted.tensorboard:
        found.append(loggers.TensorBoardLogger(run.logs, name="tensorboard", version=""))
    if wanted.wandb_project is not None:
        _require("wandb", "logging.wandb_project")
        found.append(
            loggers.WandbLogger(
                project=wanted.wandb_project, name=run.run_id, id=run.run_id, save_dir=run.logs
            )
        )
    if wanted.mlflow_uri is not None:
        _require("mlflow", "logging.mlflow_uri")
        found.append(
            continued(
                run,
                lambda run_id: loggers.MLFlowLogger(
                    experiment_name=recipe.name,
                    run_name=run.run_id,
                    tracking_uri=wanted.mlflow_uri,
                    run_id=run_id,
                ),
            )
        )
    return found


def _require(module: str, key: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ConfigError(f"{key} is set and {module} is not installed: pip install {module}")


def _check_device(recipe: Recipe) -> None:
    on_cuda = torch.cuda.is_available()
    if on_cuda and recipe.train.micro_batch_size != 1:
        raise ConfigError(
            f"train.micro_batch_size is {recipe.train.micro_batch_size}; with CUDA samples are "
            "packed and run one at a time: accepted is 1"
        )
    if not on_cuda and recipe.optimizer.distributed:
        raise ConfigError("optimizer.distributed is true; without CUDA accepted is false")
