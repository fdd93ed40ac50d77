"""What a call consists of: operations dispatched, those whose work depends on values, floating-point operations.

Counted as PyTorch dispatches them under `torch.inference_mode`, composite operations taken apart. Views and plain
allocations start no kernel and are counted apart. An RMS norm counts as one operation, as it is on CUDA; on the CPU
PyTorch computes it in six.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

_NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "_unsafe_view"}
_READERS = ("tolist", "numpy")  # by these the host reads values past the dispatcher


def census(run: Callable[[], object]) -> "Census":
    """What one call of `run` consists of."""
    found = Census()
    with ExitStack() as watched:
        for name in _READERS:
            watched.enter_context(patch.object(Tensor, name, _noted(getattr(Tensor, name), found.reads)))
        with torch.inference_mode(), found:  # or composite operations would arrive taken apart
            run()
    return found


class Census(TorchDispatchMode):
    """Counts operations while it is active; `census` makes and uses one.

    Attributes:
        kernels: Operations that compute, by name.
        views: Operations that only look at memory in another way.
        dependent: Operations whose result shape, or whose reader, depends on values, by name: each makes an
            accelerator wait.
        reads: Tensors read by the host as lists or arrays, by method.
        flops: Floating-point operations of matrix products, convolutions and attention, two for a multiply-add.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.dependent: Counter[str] = Counter()
        self.reads: Counter[str] = Counter()
        self.views, self.flops = 0, 0

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 -- an OpOverload, which torch does not type
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 -- whatever the operation returns
        """Take a composite operation apart; count and run any other."""
        del types
        kwargs = dict(kwargs or {})
        if func.overloadpacket not in flop_registry and func is not torch.ops.aten.rms_norm.default:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if func.is_view or name in _NO_KERNEL:
            self.views += 1
            return result
        self.kernels[name] += 1
        if _depends_on_values(func, args):
            self.dependent[name] += 1
        self.flops += _flops(func, name, args, kwargs, result)
        return result

    def summary(self) -> dict[str, Any]:
        """The counts, for a report."""
        return {
            "kernel_operations": self.kernels.total(),
            "views_and_allocations": self.views,
            "data_dependent": dict(self.dependent),
            "host_reads": dict(self.reads),
            "gflop": round(self.flops / 1e9, 1),
            "most_frequent": dict(self.kernels.most_common(12)),
        }


def _noted(method: Callable[..., Any], found: Counter[str]) -> Callable[..., Any]:
    def reading(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 -- stands in for anything
        found[method.__name__] += 1
        return method(*args, **kwargs)

    return reading


def _depends_on_values(func: Any, args: tuple[Any, ...]) -> bool:  # noqa: ANN401 -- an OpOverload
    name, tags = func.overloadpacket.__name__, func.tags
    if name in {"index", "index_put", "index_put_", "_index_put_impl_"}:  # by numbers: no; by a mask: yes
        return any(isinstance(each, Tensor) and each.dtype == torch.bool for each in args[1])
    return torch.Tag.data_dependent_output in tags or torch.Tag.dynamic_output_shape in tags


def _flops(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:  # noqa: ANN401
    if name == "_linear_pointwise":  # oneDNN's inner product; the elementwise step after it is not counted
        return 2 * result.numel() * args[0].shape[-1]
    if name == "_scaled_dot_product_flash_attention_for_cpu":
        return sdpa_flop_count(args[0].shape, args[1].shape, args[2].shape)
    formula = flop_registry.get(func.overloadpacket)
    return formula(*args, **kwargs, out_val=result) if formula is not None else 0
