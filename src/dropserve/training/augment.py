"""What a recipe's ``[augmentation]`` does to a batch of training images."""

from __future__ import annotations

import torch
from torch import Tensor

from dropserve.errors import RecipeError
from dropserve.training.recipe import AugmentationTable, Recipe


def check_augmentation(recipe: Recipe, shape: tuple[int, ...]) -> None:
    """Refuse augmentation of rows that are no images.

    Args:
        recipe: whose ``[augmentation]`` is held against the rows.
        shape: of a row.

    Raises:
        RecipeError: if rows are not ``[channels, height, width]`` or smaller than the shift.
    """
    table = recipe.augmentation
    if not (table.flip or table.shift):
        return
    if len(shape) != 3:
        problem = (
            f"augmentation: rows are {list(shape)}; expected images [channels, height, width]. Give them "
            "that shape (data.shape), or take [augmentation] out"
        )
        raise RecipeError(recipe.name, [problem])
    height, width = shape[1:]
    if table.shift >= min(height, width):
        problem = (
            f"augmentation.shift: got {table.shift}; allowed: below the size of images, {height} x {width}"
        )
        raise RecipeError(recipe.name, [problem])


def augmented(rows: Tensor, table: AugmentationTable, generator: torch.Generator) -> Tensor:
    """Mirror and move each image by its own draw.

    Args:
        rows: ``[N, channels, height, width]``.
        table: what to do.
        generator: on the CPU, so that every device draws the same.

    Returns:
        The same shape; what a shift uncovers repeats the image's edge.
    """
    if not (table.flip or table.shift):
        return rows
    count, _, height, width = rows.shape
    down, right = torch.arange(height).repeat(count, 1), torch.arange(width).repeat(count, 1)
    if table.flip:
        mirrored = torch.rand(count, 1, generator=generator) < 0.5
        right = torch.where(mirrored, width - 1 - right, right)
    if table.shift:
        steps = torch.randint(-table.shift, table.shift + 1, (2, count, 1), generator=generator)
        down, right = down + steps[0], right + steps[1]
    down, right = down.clamp(0, height - 1).to(rows.device), right.clamp(0, width - 1).to(rows.device)
    each = torch.arange(count, device=rows.device)[:, None, None]
    # Indices around a slice put what they pick first: [N, height, width, channels].
    return rows[each, :, down[:, :, None], right[:, None, :]].movedim(-1, 1).contiguous()
