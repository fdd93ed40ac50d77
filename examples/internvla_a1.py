"""InternVLA-A1 in one screen: raw frames and an instruction in, a loss, an action chunk and an imagined frame out.

The weights are random and the sizes tiny, so nothing here means anything yet; `preset("3B")` is the released model.
"""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from moteur.recipes import InternVLAA1, Observation, Processor, preset

words = ["<pad>", "<start>", "<end>", "<image>", "<unk>", "put", "the", "red", "block", "in", "bin"]
tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))  # noqa: S106 - text
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()

torch.manual_seed(0)
config = preset("tiny")
model = InternVLAA1(config, decoder=True)
processor = Processor(config, PreTrainedTokenizerFast(tokenizer_object=tokenizer))

camera = torch.randint(
    0, 256, (2, 2, 3, 120, 160), dtype=torch.uint8
)  # batch, time (t-15 and t), channel, height, width
observation = Observation(
    frames=[camera, camera, None],  # the third camera is missing
    state=torch.randn(2, 7),
    instructions=["put the red block in the bin", "the red block"],
)
inputs = processor(observation)
targets = processor.targets(torch.randn(2, config.chunk, 7), future=[camera[:, :1], camera[:, :1], None])

losses = model.loss(inputs, targets, generator=torch.Generator().manual_seed(0))
weight = config.foresight_weight
print(f"loss {losses.total:.3f} = action {losses.action:.3f} + {weight} * foresight {losses.foresight:.3f}")

actions = model.act(inputs, generator=torch.Generator().manual_seed(0))
print("actions", tuple(actions.shape), "of which the first 7 dimensions are real")

imagined = model.imagine(inputs, decode=True)
assert imagined.images is not None
print("imagined frames of t+15", tuple(imagined.images.shape))
