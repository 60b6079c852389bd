"""From and to other layouts. The names that a flag can say stand here: no PyTorch is needed."""

HF, NANOGPT = KINDS = ("hf", "nanogpt")  # whose weights are read
BESIDE, GPT2, NONE = CHOICES = ("beside", "gpt2", "none")  # whose vocabulary is taken
