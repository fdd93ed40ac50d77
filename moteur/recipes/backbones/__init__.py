"""Understanding backbones: pictures and an instruction to the first stream."""
