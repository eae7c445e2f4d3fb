"""Many trainings of one architecture at once, as one batched model.

Small networks on small tables spend their time between operations, not in them. Members differ in seed,
dropout rates, learning rate, weight decay and rows; each ends with the weights that it would have alone with
the same batches and masks (tests/training/stack holds it against ``torch.optim`` and a plain loop).
"""

from dropserve.training.stack.batches import Rows
from dropserve.training.stack.group import Outcome
from dropserve.training.stack.losses import cross_entropy, smoothed_cross_entropy, squared_error
from dropserve.training.stack.member import Member, StackSettings
from dropserve.training.stack.net import Loss
from dropserve.training.stack.samples import mask_block, sample_outputs
from dropserve.training.stack.train import Stack, stacked_net, train_stack

__all__ = [
    "Loss",
    "Member",
    "Outcome",
    "Rows",
    "Stack",
    "StackSettings",
    "cross_entropy",
    "mask_block",
    "sample_outputs",
    "smoothed_cross_entropy",
    "squared_error",
    "stacked_net",
    "train_stack",
]
