"""Which rows and keys of a layout an attention call concerns."""

from jaxtyping import Bool, Float
from torch import Tensor

from moteur.masks.layout import Layout
from moteur.masks.ranges import checked_range


def concerned_rows(
    query: Float[Tensor, "batch heads query head_dim"],
    key: Float[Tensor, "batch kv_heads key head_dim"],
    value: Float[Tensor, "batch kv_heads key head_dim"],
    layout: Layout,
    queries: range | None,
) -> range:
    """Positions of the queries: `queries`, or the last ones of the positions that `key` holds.

    Raises:
        ValueError: if query, key and value do not belong together, the keys are more than the layout has positions, the
            queries are not among them, the keys end inside a bidirectional segment that a query should see all of, the
            heads cannot be grouped, or the batch is not the layout's.
    """
    _expect_kin(query, key, value)
    held, count = key.shape[2], query.shape[2]
    if held > layout.length:
        raise ValueError(f"key must hold at most the {layout.length} positions of the layout, got {held}")
    if queries is None and count > held:
        raise ValueError(f"query must be among the {held} positions of key, got {count} positions")
    rows = checked_range("queries", range(held - count, held) if queries is None else queries, held)
    if len(rows) != count:
        raise ValueError(f"queries must be as many as query holds, {count}, got {rows}")
    if query.shape[1] % key.shape[1]:
        raise ValueError(f"query must have a multiple of the {key.shape[1]} heads of key, got {query.shape[1]}")
    if layout.batch not in (1, query.shape[0]):
        raise ValueError(f"query must have the batch size of the layout, {layout.batch}, got {query.shape[0]}")
    for segment, span in zip(layout.segments, layout.spans, strict=True):
        if not segment.causal and span.start < rows.stop and held < span.stop:
            raise ValueError(
                f"key must hold bidirectional segment {segment.name!r} whole, positions {span.start} to "
                f"{span.stop - 1}, because a query of it sees all of it; got {held} positions"
            )
    return rows


def _expect_kin(query: Tensor, key: Tensor, value: Tensor) -> None:
    """One sample and one head size for all three, one value a key: the kernels broadcast some of what differs."""
    if value.shape != key.shape:
        raise ValueError(f"value must have the shape of key, {tuple(key.shape)}, got {tuple(value.shape)}")
    if (query.shape[0], query.shape[3]) != (key.shape[0], key.shape[3]):
        raise ValueError(
            f"key must have the batch size and head size of query, {query.shape[0]} and {query.shape[3]}, got "
            f"{key.shape[0]} and {key.shape[3]}"
        )


def answering(
    mask: Bool[Tensor, "#batch 1 #query key"],
) -> Bool[Tensor, "#batch 1 #query key"]:
    """Let rows that see nothing look at everything: a softmax over nothing is not a number, nor is its gradient.

    Such rows are padding; `silenced` makes zeros of what they return.
    """
    return mask | ~mask.any(dim=-1, keepdim=True)


def silenced(
    output: Float[Tensor, "batch heads query head_dim"], layout: Layout, rows: range
) -> Float[Tensor, "batch heads query head_dim"]:
    """Zeros, in value and gradient, for the rows that are padding: the only ones that see nothing."""
    valid = layout.validity(rows, device=output.device)
    return output if valid is None else output.masked_fill(~valid[:, None, :, None], 0.0)
