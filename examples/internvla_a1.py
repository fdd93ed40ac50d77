"""InternVLA-A1 in one screen: pictures and an instruction in; a loss, an action chunk and an imagined picture out.

The weights are random and the sizes tiny, so nothing here means anything yet; `preset("3B")` is the released model.
"""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from moteur.recipes import InternVLAA1, Processor, Targets, preset

words = ["<pad>", "<start>", "<end>", "<image>", "<unk>", "put", "the", "red", "block", "in", "bin"]
tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))  # noqa: S106 - text
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()

torch.manual_seed(0)
config = preset("tiny")
model = InternVLAA1(config, decoder=True)
processor = Processor(config, PreTrainedTokenizerFast(tokenizer_object=tokenizer))

# (batch, time, channel, height, width); the times are t-15, t and, for training, t+15
camera = torch.randint(0, 256, (2, 3, 3, 120, 160), dtype=torch.uint8)
views = [camera, camera, None]  # the third camera is missing
inputs = processor(
    [view if view is None else view[:, :2] for view in views],
    state=torch.randn(2, 7),
    instructions=["put the red block in the bin", "the red block"],
)
future = processor.pictures(
    ["front", "side", "wrist"], [view if view is None else view[:, 2:] for view in views], batch=2
)
real = torch.arange(config.action_dim) < 7
targets = Targets(
    actions=torch.randn(2, config.chunk, config.action_dim) * real,
    valid_dims=real.expand(2, -1),
    future_frames=future[:, :, 0],
)

losses = model(inputs, targets, generator=torch.Generator().manual_seed(0))
weight = config.foresight_weight
print(f"loss {losses.total:.3f} = action {losses.action:.3f} + {weight} * foresight {losses.foresight:.3f}")

actions = model.act(inputs, generator=torch.Generator().manual_seed(0))
print("actions", tuple(actions.shape), "of which the first 7 dimensions are real")

imagined = model.imagine(inputs, decode=True)
assert imagined.images is not None
print("imagined pictures of t+15", tuple(imagined.images.shape))
