"""Hugging Face's Trainer, made exact, safe and quiet.

What it adds: a loss that skips the ends of documents and weighs every token alike over micro-batches, the
recipe's parameter groups and schedule, evaluation on fixed windows, checkpoints without pickle.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler, SequentialSampler
from transformers import DefaultFlowCallback, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import SaveStrategy

from kvshift.errors import UsageError
from kvshift.tasks.text import TextData
from kvshift.training import checkpoint
from kvshift.training.cores import usable_cores
from kvshift.training.data import IGNORED, Batch, EvaluationWindows, TrainingWindows
from kvshift.training.evaluation import cross_entropy, evaluate, token_losses
from kvshift.training.graphed import Cuda, GraphedPass, can_be_graphed
from kvshift.training.meters import Clock
from kvshift.training.model import build_model, compile_layers, dropout, parameter_groups
from kvshift.training.recipe import Recipe
from kvshift.training.schedule import learning_rate_factor

TRAINER_STATE = "trainer_state.json"  # the Trainer looks for this name
_LOOKED_AT = 64  # batches, for both forms


class RunTrainer(Trainer):
    """One run's Trainer. A callback decides, after each step, whether to evaluate and to save.

    Args:
        recipe: the run.
        data: its text.
        output: folder for checkpoints; it exists.
        callback: told what happens.

    Attributes:
        clock: training time; evaluation and checkpoints are left out.
        loss_sum: float64 scalar on the device: the steps' losses in nats a token, added up until
            `take_loss`.
        extra_state: what `run.json` in a checkpoint shall hold, asked for at each checkpoint.
        between: called after each batch of an evaluation.
        graphed: forward and backward as CUDA graphs; None where every kernel is launched by itself.
    """

    model: Any
    optimizer: Any
    lr_scheduler: Any
    control: Any
    loss_is_scaled_for_ga = True  # `compute_loss` divides by the tokens of the whole step

    def __init__(self, recipe: Recipe, data: TextData, output: Path, callback: TrainerCallback) -> None:
        self.recipe = recipe
        micro = recipe.micro_batch_size or recipe.batch_size
        arguments = _arguments(recipe, output, micro)
        model = build_model(recipe, data.vocab_size, data.end_token)
        super().__init__(
            model=model,
            args=arguments,
            data_collator=lambda batch: batch,  # the windows come as a batch
            train_dataset=TrainingWindows(data.train, recipe),
            callbacks=[callback],
        )
        for unwanted in (DefaultFlowCallback, PrinterCallback):
            self.remove_callback(unwanted)
        self.model_accepts_loss_kwargs = True  # with transformers 5.17: the loss is scaled already
        self.token_loss = cross_entropy
        if recipe.compile:
            compile_layers(self.model)
            self.token_loss = torch.compile(cross_entropy, dynamic=False)
        self.evaluation_windows = EvaluationWindows(data, recipe, micro).to(arguments.device)
        self.clock = Clock(arguments.device)
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=arguments.device)
        self.extra_state: Callable[[], dict[str, Any]] = dict
        self.between: Callable[[], None] = lambda: None
        self.graphed: GraphedPass | None = None
        if is_graphed(recipe, self.model, arguments.device):
            self.graphed = GraphedPass(self._forward_and_backward, self.model, Cuda())

    # Loss and data

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The micro-batch's share of the step's mean loss: its tokens' losses over the step's targets."""
        loss = token_losses(model, inputs, self.token_loss).sum() / num_items_in_batch
        return (loss, None) if return_outputs else loss

    def training_step(
        self, model: nn.Module, inputs: Batch, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward; the loss is added up on the device."""
        if self.graphed is None:
            loss = super().training_step(model, inputs, num_items_in_batch)
        else:
            assert isinstance(num_items_in_batch, Tensor)
            if not self.graphed.knows(inputs):  # a form that `warm_up` did not meet
                with self.clock.paused():
                    self.graphed.record(self._prepare_inputs(inputs), num_items_in_batch)
            loss = self.graphed(inputs, num_items_in_batch)
        self.loss_sum += loss
        return loss

    def _forward_and_backward(self, batch: Batch, count: Tensor) -> Tensor:
        return super().training_step(self.model_wrapped, batch, count)

    def take_loss(self) -> float:
        """The losses added up since the last call."""
        total = float(self.loss_sum)
        self.loss_sum.zero_()
        return total

    def warm_up(self) -> None:
        """Forward and backward passes whose gradient is thrown away: what is compiled, recorded and set up at
        first use on a GPU is start-up, not training. Of each form that the run's first batches have."""
        before = torch.get_rng_state(), torch.cuda.get_rng_state()
        for batch in self._forms():
            batch = self._prepare_inputs(batch)
            count = self._get_num_items_in_batch([batch], self.args.device)
            assert count is not None
            if self.graphed is not None:
                self.graphed.record(batch, count)
            else:
                self._forward_and_backward(batch, count)
                self.model_wrapped.zero_grad()
        torch.set_rng_state(before[0])
        torch.cuda.set_rng_state(before[1])

    def _forms(self) -> list[Batch]:
        """The first batch in which a document begins inside a row, and the first in which none does."""
        micro = self.args.per_device_train_batch_size
        found: dict[bool, Batch] = {}
        for first in range(0, min(_LOOKED_AT * micro, len(self.train_dataset)), micro):
            batch = self.train_dataset.__getitems__(list(range(first, first + micro)))
            found.setdefault("position_ids" in batch, batch)
            if len(found) == 2:
                break
        return list(found.values())

    @property
    def idle_bytes(self) -> int:
        """What a step uses on the device beside what is allocated between steps."""
        return 0 if self.graphed is None else self.graphed.idle_bytes

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> Tensor | None:
        if not batch_samples:
            return None
        return torch.stack([(batch["labels"] != IGNORED).sum() for batch in batch_samples]).sum().to(device)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)

    def floating_point_ops(self, inputs: Batch) -> int:
        """Not counted: the Trainer would walk through all parameters at each step."""
        return 0

    # Optimizer

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW over the recipe's parameter groups."""
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(
                parameter_groups(self.model if model is None else model, self.recipe),
                lr=self.recipe.learning_rate,
                betas=self.recipe.betas,
                fused=True,
            )
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Warm-up and cosine over the recipe's steps, each group from its own peak."""
        if self.lr_scheduler is None:
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                self.optimizer if optimizer is None else optimizer,
                lambda step: learning_rate_factor(step, self.recipe),
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    # Evaluation

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluates on the fixed windows; tells the callback; returns `nats_per_token`, `bits_per_byte`."""
        with self.clock.paused():
            result = evaluate(self.model_wrapped, self.evaluation_windows, self.between, self.token_loss)
            metrics = result._asdict()
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Nothing: the record is the run's log."""

    # Checkpoints

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with self.clock.paused():
            checkpoint.write_checkpoint(Path(self.args.output_dir), self.state.global_step, self._fill)

    def _fill(self, folder: Path) -> None:
        self._save(str(folder))
        self._save_optimizer_and_scheduler(str(folder))
        self._save_rng_state(str(folder))
        self.state.save_to_json(str(folder / TRAINER_STATE))
        state = {"loss_sum": float(self.loss_sum), **self.extra_state()}
        checkpoint.write_json(folder / checkpoint.RUN, state)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        checkpoint.save_weights(self.model, Path(output_dir or self.args.output_dir) / checkpoint.WEIGHTS)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        folder = Path(output_dir)
        checkpoint.save_optimizer(self.model, self.optimizer, folder / checkpoint.OPTIMIZER)
        checkpoint.write_json(folder / checkpoint.SCHEDULER, self.lr_scheduler.state_dict())

    def _save_rng_state(self, output_dir: str) -> None:
        checkpoint.save_rng(Path(output_dir))

    def _save_scaler(self, output_dir: str) -> None:
        """bfloat16 needs no gradient scaler."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        checkpoint.load_weights(self.model, Path(resume_from_checkpoint) / checkpoint.WEIGHTS)

    def _load_optimizer_and_scheduler(self, checkpoint_folder: str | None) -> None:
        if checkpoint_folder is None:
            return
        folder = Path(checkpoint_folder)
        checkpoint.load_optimizer(self.model, self.optimizer, folder / checkpoint.OPTIMIZER)
        self.lr_scheduler.load_state_dict(checkpoint.read_json(folder / checkpoint.SCHEDULER))
        for group, rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
        self.loss_sum.fill_(checkpoint.read_json(folder / checkpoint.RUN)["loss_sum"])

    def _load_rng_state(self, checkpoint_folder: str | None) -> None:
        if checkpoint_folder is not None:
            checkpoint.load_rng(Path(checkpoint_folder))

    def _load_scaler(self, checkpoint_folder: str | None) -> None:
        """bfloat16 needs no gradient scaler."""


def check_hardware(recipe: Recipe) -> None:
    """Raises UsageError unless this machine and this process can run the recipe."""
    micro = recipe.micro_batch_size or recipe.batch_size
    if recipe.batch_size % micro:
        raise UsageError(
            f"micro_batch_size is {micro}; expected a divisor of the batch size {recipe.batch_size}, so that "
            "every micro-batch has the same shape."
        )
    if recipe.tokens < recipe.step_tokens:
        raise UsageError(
            f"tokens is {recipe.tokens:,}, less than the {recipe.step_tokens:,} of one step (batch size "
            f"{recipe.batch_size} × sequence length {recipe.sequence_length}). Train longer or take smaller "
            "batches."
        )
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device is 'cuda', but PyTorch sees no CUDA GPU here. Use 'auto' or 'cpu'.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "A run uses one device; start it without a distributed launcher (WORLD_SIZE is set)."
        )


def is_graphed(recipe: Recipe, model: nn.Module, device: torch.device) -> bool:
    """Whether the recipe's forward and backward are replayed: on a GPU, where a batch is one pass.

    Not where the model drops something: a warm-up draws, too, and a run that goes on, which records anew,
    would draw otherwise than one that was not interrupted.
    """
    whole = recipe.micro_batch_size in (None, recipe.batch_size)
    return device.type == "cuda" and whole and can_be_graphed(model) and dropout(model.config) is None


def run_device(recipe: Recipe) -> torch.device:
    """Where the recipe runs on this machine."""
    cuda = recipe.device == "cuda" or (recipe.device == "auto" and torch.cuda.is_available())
    return torch.device("cuda", 0) if cuda else torch.device("cpu")


def run_precision(recipe: Recipe) -> str:
    """`bfloat16` (autocast; the weights stay float32) or `float32`."""
    if recipe.precision != "auto":
        return recipe.precision
    return "bfloat16" if run_device(recipe).type == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def run_threads(recipe: Recipe) -> int:
    """CPU threads of the run."""
    if recipe.threads is not None:
        return recipe.threads
    return len(usable_cores())


def _arguments(recipe: Recipe, output: Path, micro: int) -> TrainingArguments:
    cuda = run_device(recipe).type == "cuda"
    arguments = TrainingArguments(
        output_dir=str(output),
        seed=recipe.seed,
        data_seed=recipe.seed,
        max_steps=recipe.steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=recipe.batch_size // micro,
        max_grad_norm=recipe.clip,
        bf16=run_precision(recipe) == "bfloat16",
        tf32=True if cuda and torch.cuda.get_device_capability()[0] >= 8 else None,
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
        dataloader_num_workers=0,
        accelerator_config={"non_blocking": cuda},
        remove_unused_columns=False,
        eval_strategy="no",
        save_strategy=SaveStrategy.NO,
        logging_strategy="no",
        logging_nan_inf_filter=False,  # the record must see a loss that is not finite
        report_to="none",
        disable_tqdm=True,
        push_to_hub=False,
    )
    _ = arguments.n_gpu  # sets up the devices; then one GPU only, never nn.DataParallel over all
    arguments._n_gpu = min(arguments._n_gpu, 1)
    return arguments


def trained_steps(folder: Path) -> int:
    """The steps a checkpoint has behind it."""
    return int(TrainerState.load_from_json(str(folder / TRAINER_STATE)).global_step)
