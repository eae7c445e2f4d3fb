"""The Lightning side of training: the module that learns, its batches, and what watches it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import Strategy
from torch import nn
from torch.nn import functional

from dropserve.training.augment import augmented
from dropserve.training.batches import batch_sizes
from dropserve.training.recipe import AugmentationTable, OptimiserTable, Recipe
from dropserve.training.team import ALONE, Team

MONITORED = "monitored"
_BETA = 0.5
_LEAST = 1e-6  # variance of the standardised target: torch's own guard against a likelihood without bound
_HALVES = frozenset({torch.float16, torch.bfloat16})


@dataclass(frozen=True)
class Epoch:
    """One row of the learning curve.

    Attributes:
        number: from 1.
        train_loss: mean over the epoch's batches, dropout on.
        validation_loss: after the epoch, dropout off.
        score: validation accuracy, or RMSE in the target's own unit.
        learning_rate: of the epoch.
        seconds: wall time of the epoch.
    """

    number: int
    train_loss: float
    validation_loss: float
    score: float
    learning_rate: float
    seconds: float


def monitored(loss: float, score: float, recipe: Recipe) -> float:
    """What the best epoch has least of; no number where the loss is none.

    Args:
        loss: of the validation rows.
        score: their accuracy or RMSE.
        recipe: says which of them counts.
    """
    if recipe.training.monitor == "score" and math.isfinite(loss):
        return -score if recipe.task == "classification" else score
    return loss


def is_better(row: Epoch, best: Epoch | None, recipe: Recipe) -> bool:
    """Whether an epoch takes the place of the best one so far."""
    figure = monitored(row.validation_loss, row.score, recipe)
    if not math.isfinite(figure):
        return False
    return (
        recipe.training.monitor == "nothing"
        or best is None
        or figure < monitored(best.validation_loss, best.score, recipe)
    )


class Batches:
    """Rows in memory, in a fresh order each epoch; a DataLoader costs more than such models' arithmetic.

    Of each batch a process takes its share, every ``size``-th row, so that all of them together take the
    steps that one would. A last batch too small for two rows each joins its neighbour: BatchNorm cannot learn
    from one row.

    Args:
        rows: ``[N, ...]``.
        target: ``[N]``.
        size: rows a batch.
        seed: of the order; None keeps the rows as they are.
        augmentation: what is done to each batch that is drawn in a fresh order.
        team: whose share is taken; each draws the whole batch, so that all of them draw alike.
    """

    def __init__(
        self,
        rows: torch.Tensor,
        target: torch.Tensor,
        size: int,
        seed: int | None = None,
        augmentation: AugmentationTable | None = None,
        team: Team = ALONE,
    ) -> None:
        self._rows, self._target, self._augmentation, self._team = rows, target, augmentation, team
        self._sizes = batch_sizes(len(rows), size, least=2 * team.size)
        self._generator = None if seed is None else torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self._sizes)

    def order_state(self) -> torch.Tensor | None:
        """Where the generator of the order stands; None if there is none."""
        return None if self._generator is None else self._generator.get_state()

    def set_order_state(self, state: torch.Tensor | None) -> None:
        """Put it back there."""
        if self._generator is not None and state is not None:
            self._generator.set_state(state)

    def weight(self, place: int) -> float:
        """What the share's mean weighs, so that the average over processes is the mean over the batch."""
        whole = self._sizes[place]
        return len(range(self._team.rank, whole, self._team.size)) * self._team.size / whole

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The share of each batch."""
        if self._team.alone:
            return self._whole()
        share = slice(self._team.rank, None, self._team.size)
        return ((rows[share].clone(), target[share]) for rows, target in self._whole())

    def _whole(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        if self._generator is None:
            for rows, target in zip(
                self._rows.split(self._sizes), self._target.split(self._sizes), strict=True
            ):
                yield rows.clone(), target  # a model may work in place on its input
            return
        order = torch.randperm(len(self._rows), generator=self._generator).to(self._rows.device)
        for chosen in order.split(self._sizes):
            rows = self._rows[chosen]
            if self._augmentation is not None:
                rows = augmented(rows, self._augmentation, self._generator)
            yield rows, self._target[chosen]


class Learner(pl.LightningModule):
    """Loss, validation and optimiser of a recipe.

    Args:
        model: the user's module.
        recipe: says which loss and which optimiser.
        unit: regression: what one standardised step of the target is in its own unit.

    Attributes:
        weight: what the loss of a batch is multiplied by, where this process has but a share of it.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, unit: float = 1.0) -> None:
        super().__init__()
        self.model = model
        self._recipe, self._classifies = recipe, recipe.task == "classification"
        self._pair = recipe.training.noise == "heteroscedastic"
        self._smoothing = recipe.training.label_smoothing
        self._optimiser, self._epochs = recipe.optimiser, recipe.training.epochs
        self._unit = unit
        self.train_sum, self.validation_sum = _Sum(), _Sum()
        self.weight: Callable[[int], float] | None = None

    def _answer(self, rows: torch.Tensor) -> torch.Tensor:
        """What the model answers; losses are computed in 32 bits at least."""
        output: torch.Tensor = self.model(rows)
        return output.float() if output.dtype in _HALVES else output

    def loss(self, output: torch.Tensor, target: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
        """Cross entropy; or of the standardised target the mean squared error or Gaussian likelihood loss."""
        if self._classifies:
            return functional.cross_entropy(output, target, label_smoothing=smoothing)
        if self._pair:
            return gaussian_nll(output, target).mean()
        return functional.mse_loss(output, target.reshape(output.shape))

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], place: int) -> torch.Tensor:
        """One batch with dropout on."""
        rows, target = batch
        output = self._answer(rows)
        loss = self.loss(output, target, self._smoothing)
        self.train_sum.add(len(rows), loss.detach())
        followed = beta_nll(output, target).mean() if self._pair else loss
        return followed if self.weight is None else followed * self.weight(place)

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> None:
        """One batch with dropout off."""
        rows, target = batch
        output = self._answer(rows)
        loss = self.loss(output, target)
        hit = loss
        if self._classifies:
            hit = (output.argmax(1) == target).float().mean()
        elif self._pair:
            hit = functional.mse_loss(output[:, 0], target)
        self.validation_sum.add(len(rows), loss, hit)

    def on_validation_epoch_end(self) -> None:
        """Log what early stopping watches; every process knows the sums of all."""
        if self.trainer.world_size > 1:
            for each in (self.train_sum, self.validation_sum):
                each.gather(self.trainer.strategy)
        self.log(MONITORED, monitored(self.validation_sum.mean(0), self.score(), self._recipe))

    def score(self) -> float:
        """Validation accuracy, or RMSE in the target's unit, of the epoch that ended."""
        mean = self.validation_sum.mean(1)
        return mean if self._classifies else math.sqrt(mean) * self._unit

    def configure_optimizers(self) -> Any:
        """The recipe's optimiser, with a cosine schedule if it asks for one."""
        optimiser = build_optimiser(self._optimiser, self.model)
        if self._optimiser.schedule == "constant":
            return optimiser
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self._epochs)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}


def gaussian_nll(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood ``[N]`` in nats of targets ``[N]`` under means and log variances ``[N, 2]``."""
    mean, variance = output[:, 0], output[:, 1].exp()
    return functional.gaussian_nll_loss(mean, target, variance, full=True, eps=_LEAST, reduction="none")


def beta_nll(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The loss ``[N]`` that a heteroscedastic head learns by.

    The plain likelihood weights a row's residual by 1 / variance, so that rows which fit badly are soon given
    up as noise. Each row's loss times its own variance to the power beta, held constant, undoes that (Seitzer
    et al., "On the pitfalls of heteroscedastic uncertainty estimation with probabilistic neural networks",
    ICLR 2022; 0.5 is what they advise).
    """
    weight = output[:, 1].detach().exp().clamp_min(_LEAST) ** _BETA
    return weight * gaussian_nll(output, target)


def build_optimiser(table: OptimiserTable, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of a recipe over the parameters that learn.

    A fused step reads each number once. On a CPU torch's own choice goes over all of them again for each
    operation: with six million weights that took six times as long, a third of the whole training. Complex
    parameters have no fused step.
    """
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rate, decay = table.learning_rate, table.weight_decay
    fused = all(parameter.is_floating_point() for parameter in learning)
    match table.name:
        case "adamw":
            return torch.optim.AdamW(learning, lr=rate, weight_decay=decay, fused=fused)
        case "adam":
            return torch.optim.Adam(learning, lr=rate, weight_decay=decay, fused=fused)
        case "sgd":
            return torch.optim.SGD(
                learning, lr=rate, weight_decay=decay, momentum=table.momentum, fused=fused
            )


class _Sum:
    """Sums weighted by rows, kept on the device until they are read."""

    def __init__(self) -> None:
        self._rows = 0
        self._values: list[torch.Tensor] = []

    def add(self, rows: int, *values: torch.Tensor) -> None:
        weighted = [value * rows for value in values]
        self._values = (
            [a + b for a, b in zip(self._values, weighted, strict=True)] if self._rows else weighted
        )
        self._rows += rows

    def gather(self, strategy: Strategy) -> None:
        """Add what the other processes have; all of them call this."""
        own = torch.stack([*self._values, torch.full_like(self._values[0], self._rows)]).double()
        *self._values, rows = strategy.reduce(own, reduce_op="sum")
        self._rows = round(float(rows))

    def mean(self, place: int) -> float:
        return float(self._values[place]) / self._rows

    def clear(self) -> None:
        self._rows, self._values = 0, []


class Recorder(pl.Callback):
    """Keeps the learning curve and the weights of the best epoch, and tells whoever watches.

    Args:
        recipe: says which epoch is the best.
        on_epoch: called after each epoch.
        on_progress: called now and then with the epochs done so far, a fraction of the running one included.
    """

    def __init__(
        self, recipe: Recipe, on_epoch: Callable[[Epoch], None], on_progress: Callable[[float], None]
    ) -> None:
        self._recipe = recipe
        self.curve: list[Epoch] = []
        self.best: Epoch | None = None
        self.weights: dict[str, torch.Tensor] = {}
        self._on_epoch, self._on_progress = on_epoch, on_progress
        self._begin = self._told = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of it; called by Lightning."""
        return {
            "curve": [asdict(row) for row in self.curve],
            "best": self.best.number if self.best else None,
            "weights": self.weights,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self.curve = [Epoch(**row) for row in state_dict["curve"]]
        best = state_dict["best"]
        self.best = None if best is None else self.curve[best - 1]
        self.weights = state_dict["weights"]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002  # Lightning's hook
        """Start the clock of the epoch."""
        self._begin = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Tell how far the epoch is, ten times a second."""
        del pl_module, outputs, batch
        now = time.perf_counter()
        if now - self._told > 0.1:
            self._told = now
            self._on_progress(trainer.current_epoch + (batch_idx + 1) / float(trainer.num_training_batches))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the row of the epoch, and keep the weights if it is the best so far."""
        if not isinstance(pl_module, Learner):
            return
        row = Epoch(
            number=trainer.current_epoch + 1,
            train_loss=pl_module.train_sum.mean(0),
            validation_loss=pl_module.validation_sum.mean(0),
            score=pl_module.score(),
            learning_rate=float(trainer.optimizers[0].param_groups[0]["lr"]),
            seconds=time.perf_counter() - self._begin,
        )
        pl_module.train_sum.clear()
        pl_module.validation_sum.clear()
        self.curve.append(row)
        if is_better(row, self.best, self._recipe):
            self.best = row
            state = pl_module.model.state_dict()
            self.weights = {key: value.detach().clone() for key, value in state.items()}
        self._on_epoch(row)
