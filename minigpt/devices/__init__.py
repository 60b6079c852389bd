"""What computes. The names that a flag can say stand here, where PyTorch is not needed."""

DEVICES = ("auto", "cpu", "cuda", "mps")  # on any machine; and moai
PRECISIONS = ("fp32", "bf16-mixed", "bf16", "fp16-mixed")
