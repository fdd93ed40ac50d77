"""Print the layout of InternVLA-A1, then compare the joint attention call with cached calls.

python examples/masks.py
"""

from functools import partial

import torch

from moteur.masks import Layout, Segment, dense_attention, structural_attention

layout = Layout([Segment("und", 246), Segment("gen", 96), Segment("state", 1), Segment("action", 50)])
print(layout)

# Two samples; the instruction of the second is 20 tokens shorter.
words = torch.tensor([[246], [226]])
ragged = layout.with_valid({"und": torch.arange(246) < words})
print(f"\n{ragged}")

generator = torch.Generator().manual_seed(0)
query = torch.randn(2, 16, layout.length, 128, generator=generator)
key, value = torch.randn(2, 2, 8, layout.length, 128, generator=generator).unbind()
attention = partial(structural_attention, layout=ragged)

joint = attention(query, key, value)
difference = (joint - dense_attention(query, key, value, ragged)).abs().max()
print(f"\njoint call, structural against dense: largest difference {difference:.1e}")

# The same call with fewer queries or keys is a prefill, or a denoising step with everything before it cached.
prefix, actions = layout.span("und", "gen"), layout.span("action")
prefill = attention(query[:, :, : prefix.stop], key[:, :, : prefix.stop], value[:, :, : prefix.stop])
step = attention(query[:, :, actions.start :], key, value)
print(
    f"prefill of {len(prefix)} positions: {(prefill - joint[:, :, : prefix.stop]).abs().max():.1e} from the joint call"
)
print(f"denoising step of {len(actions)}: {(step - joint[:, :, actions.start :]).abs().max():.1e} from the joint call")
print(f"padding gives zeros: {not joint[1, :, 226:246].any()}")

blocks = layout.block_mask()
print(f"\nblock mask of the same rule, for FlexAttention:\n{blocks.to_string(grid_size=(4, 4))}")
