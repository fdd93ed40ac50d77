"""The rule as a FlexAttention block mask, built from bounds of blocks instead of from pairs of positions."""

import torch
from einops import rearrange
from jaxtyping import Bool, Int, Shaped
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from moteur.masks.rule import Blocks, Positions, each, visible, visible_blocks


def block_mask(queries: Positions, keys: Positions, block_size: int) -> BlockMask:
    """Block mask for positions of shape (batch, query) and (batch, key).

    Pairs of blocks that see each other entirely skip the rule inside the kernel; in the other pairs that hold anything
    to see, the rule decides exactly, for each sample.

    Raises:
        ValueError: if `block_size` is not positive.
    """
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    rows, columns = _bounds(queries, block_size, axis=-1), _bounds(keys, block_size, axis=-2)
    full, partial = visible_blocks(rows, columns)
    kv_num_blocks, kv_indices = _ordered(partial)
    full_kv_num_blocks, full_kv_indices = _ordered(full)
    q_num_blocks, q_indices = _ordered(partial.mT)
    full_q_num_blocks, full_q_indices = _ordered(full.mT)
    return BlockMask(
        seq_lengths=(queries.rank.shape[-1], keys.rank.shape[-1]),
        kv_num_blocks=kv_num_blocks,
        kv_indices=kv_indices,
        full_kv_num_blocks=full_kv_num_blocks,
        full_kv_indices=full_kv_indices,
        # Both directions at once: `BlockMask.from_kv_blocks` would work the second out of the first in twice the time.
        q_num_blocks=q_num_blocks,
        q_indices=q_indices,
        full_q_num_blocks=full_q_num_blocks,
        full_q_indices=full_q_indices,
        BLOCK_SIZE=(block_size, block_size),
        # FlexAttention counts the arguments of this function, and the run-time shape checker hides those of a `def`.
        mask_mod=lambda batch, _head, query, key: visible(_at(queries, batch, query), _at(keys, batch, key)),
    )


def _at(positions: Positions, batch: Tensor, index: Tensor) -> Positions:
    """Positions at `index`; what is held once for all samples is not indexed by `batch`."""
    return each(lambda held: held[batch if held.shape[0] > 1 else 0, index], positions)


def _bounds(positions: Positions, block_size: int, axis: int) -> Blocks:
    """Bounds over blocks, shaped to broadcast: (batch, 1, blocks, 1) for axis -1, (batch, 1, 1, blocks) for -2."""
    valid = positions.valid
    if valid is None:
        valid = torch.ones_like(positions.rank, dtype=torch.bool)
    rank = _blocked(positions.rank, block_size).aminmax(dim=-1)
    document = None if positions.document is None else _blocked(positions.document, block_size).aminmax(dim=-1)
    return Blocks(
        (_placed(rank.min, axis), _placed(rank.max, axis)),
        None if document is None else (_placed(document.min, axis), _placed(document.max, axis)),
        _placed(_blocked(valid, block_size).any(dim=-1), axis),
        # A last block that is not whole is never certain: positions beyond the end count as padding.
        _placed(_blocked(valid, block_size, filler=False).all(dim=-1), axis),
    )


def _placed(bound: Shaped[Tensor, "batch block"], axis: int) -> Shaped[Tensor, "batch 1 ..."]:
    return bound[:, None].unsqueeze(axis)


def _blocked(
    held: Shaped[Tensor, "batch seq"], block_size: int, *, filler: bool | None = None
) -> Shaped[Tensor, "batch block token"]:
    """Cut into blocks; the last is filled up with `filler`, or with its own last position."""
    missing = -held.shape[-1] % block_size
    last = held[:, -1:] if filler is None else torch.full_like(held[:, -1:], filler)
    filled = torch.cat([held, last.expand(-1, missing)], dim=-1)
    return rearrange(filled, "batch (block token) -> batch block token", token=block_size)


def _ordered(
    chosen: Bool[Tensor, "batch 1 row column"],
) -> tuple[Int[Tensor, "batch 1 row"], Int[Tensor, "batch 1 row column"]]:
    """How many columns each row has chosen, and all columns with the chosen ones first, both in order."""
    order = torch.argsort(chosen.to(torch.uint8), dim=-1, descending=True, stable=True)
    return chosen.sum(dim=-1, dtype=torch.int32), order.to(torch.int32)
