"""How much memory a training run takes, before anything of it is loaded: arithmetic, no PyTorch.

Not everything is alive at every moment of a step. What a run needs is the largest of them:

    forward           kept activations grow; in mixed precision, 16-bit copies of the weights
    loss              all kept activations, a piece of the logits, the head's gradient
    backward begins   all kept activations, and the gradients inside one block
    backward ends     all weight gradients, the tied head's twice
    step              all weight gradients, and what the update computes with

The formulas follow the modules as they are written, and the tests hold them against saved-tensor
hooks and against the memory of real runs. (Hooks on a meta device know no autocast and no fused
attention.) Not counted: the allocator's fragments, the driver, what torch.compile changes.

Letters: N tokens of a micro-batch, T of a row, L layers, C width, I of the MLP, H heads, V words.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import List, Optional

from minigpt.model.config import GPTConfig, LoRAConfig
from minigpt.optim.execution import SLICE, WIDE_SLICE

LOGITS_ALIVE = {True: 1 << 24, False: 1 << 27}  # on a CPU, a GPU: as in training/fast_loss.py
_ROW_MULTIPLE = 64  # of the logits, likewise
_WIDE_COPIES = 7  # float32 copies of a slice of bfloat16 weights while it is stepped


@dataclass(frozen=True)
class Job:
    """A training run, as far as memory and time depend on it."""

    shape: GPTConfig
    rows: int  # sequences per micro-batch
    batch: int  # sequences per optimizer step
    block: int  # tokens per sequence
    precision: str = "fp32"
    recompute: bool = False
    fused_backward: bool = False
    lora: Optional[LoRAConfig] = None
    freeze_layers: Optional[int] = None
    explicit: bool = False  # attention as a formula, which keeps the (T, T) weights
    whole_logits: bool = False  # the loss is the plain formula, as on MoAI
    compiled_update: bool = False  # AdamW's step, which then makes no copies
    shards: int = 1  # processes among which model and optimizer are divided
    on_cpu: bool = False  # there, dropout keeps its mask in full width, and updates go by slices

    @property
    def tokens(self) -> int:
        return self.rows * self.block

    @property
    def weight_bytes(self) -> int:
        """Bytes of a weight, of its gradient, and of a number in the residual stream."""
        return 2 if self.precision == "bf16" else 4

    @property
    def product_bytes(self) -> int:
        """Bytes of a number that goes into or comes out of a matrix product."""
        return 4 if self.precision == "fp32" else 2

    @property
    def mixed(self) -> bool:
        """Whether weights are wider than what is multiplied."""
        return self.product_bytes != self.weight_bytes

    @property
    def whole_batch(self) -> bool:
        """Whether there can be no micro-batches."""
        return self.fused_backward or self.whole_logits

    @property
    def fused(self) -> bool:
        """Whether attention is one kernel. PyTorch has none with dropout on the CPU."""
        return not self.explicit and not (self.on_cpu and self.shape.dropout > 0)

    @property
    def trained_layers(self) -> int:
        """Blocks with something to learn."""
        return max(0, self.shape.n_layer - (self.freeze_layers or 0))

    @property
    def head_learns(self) -> bool:
        """Whether the head gets a gradient. A tied head is frozen with the embeddings."""
        return self.lora is None and (self.freeze_layers is None or not self.shape.tied_head)

    @property
    def head_bytes(self) -> int:
        """Bytes of the head, or of its gradient."""
        return self.shape.vocab_size * self.shape.n_embd * self.weight_bytes


@dataclass(frozen=True)
class Memory:
    """Bytes alive at one moment of a step."""

    moment: str
    weights: int = 0
    copies: int = 0  # of the weights, in 16 bits
    gathered: int = 0  # of weights that are divided among processes: those in use
    gradients: int = 0
    states: int = 0  # of the optimizer
    activations: int = 0  # kept for the backward pass
    loss: int = 0  # logits, the head's copy and gradient
    work: int = 0  # what is computed with and let go

    @property
    def total(self) -> int:
        return sum(value for name, value in vars(self).items() if name != "moment")


def memory(job: Job) -> Memory:
    """The largest moment of an optimizer step (from the second on: the first has no states yet)."""
    return max(moments(job), key=lambda moment: moment.total)


def moments(job: Job) -> List[Memory]:
    """The moments of a step, in order; of several micro-batches, those of the last."""
    if job.shards == 1:
        return _moments(job)
    alone, shape = _moments(replace(job, shards=1)), job.shape
    ends = shape.parameter_count() - shape.n_layer * block_count(shape)
    in_use = ends * job.weight_bytes + 2 * block_count(shape) * job.product_bytes
    return [
        replace(
            m,
            weights=m.weights // job.shards,
            states=m.states // job.shards,
            copies=0,
            gradients=m.gradients // job.shards,
            gathered=0 if m.moment == "step" else in_use,
        )
        for m in alone
    ]


def _moments(job: Job) -> List[Memory]:
    shape, stream, learn = job.shape, job.weight_bytes, trained_count(job)
    C, N = shape.n_embd, job.tokens
    weights = (shape.parameter_count() + (learn if job.lora else 0)) * stream
    kept = {"weights": weights, "states": states(job)}
    all_gradients = 0 if job.fused_backward else learn * stream
    earlier = all_gradients if job.batch > job.rows else 0  # of the micro-batches before
    last = N * C * stream  # the final norm's input, and its output
    of_block = N * block_bytes(job)
    activations = job.trained_layers * (N * C * stream if job.recompute else of_block)
    forward = last + (N * (2 * shape.inner + C) * job.product_bytes if job.recompute else 0)
    largest = 0 if job.lora else C * shape.inner * stream  # gradient inside a block
    begins = N * _inside_block(job) + largest
    if job.recompute and job.trained_layers:
        begins += of_block
    ends = last + (job.head_bytes if job.head_learns and shape.tied_head else 0)
    if earlier or job.fused_backward:
        ends += job.head_bytes if job.head_learns else largest
    update = _update(job)
    inside = update if job.fused_backward else 0
    return [
        Memory("forward", copies=_copies(job, "forward"), gradients=earlier,
               activations=activations + last, work=forward, **kept),
        Memory("loss", copies=_copies(job, "loss"), gradients=earlier,
               activations=activations + last, loss=loss_bytes(job), **kept),
        Memory("backward begins", copies=_copies(job, "backward"), gradients=earlier,
               activations=activations, loss=_after_loss(job), work=begins + inside, **kept),
        Memory("backward ends", gradients=all_gradients, work=ends + inside, **kept),
        Memory("step", gradients=all_gradients, work=update - inside, **kept),
    ]  # fmt: skip


def matrices(shape: GPTConfig) -> int:
    """Weights in the four matrices of a block."""
    return 4 * shape.n_embd * shape.n_embd + 2 * shape.n_embd * shape.inner


def trained_count(job: Job) -> int:
    """Parameters that learn."""
    shape = job.shape
    C, I = shape.n_embd, shape.inner
    if job.lora is not None:
        ends = {"qkv": 4 * C, "out": 2 * C, "up": C + I, "down": C + I}  # in + out
        return shape.n_layer * job.lora.rank * sum(ends[name] for name in set(job.lora.targets))
    if job.freeze_layers is None:
        return shape.parameter_count()
    embeddings = (shape.vocab_size + shape.n_positions) * C
    return shape.parameter_count() - embeddings - job.freeze_layers * block_count(shape)


def block_count(shape: GPTConfig) -> int:
    """Parameters of a block, with biases and both norms."""
    return matrices(shape) + 9 * shape.n_embd + shape.inner


def states(job: Job) -> int:
    """AdamW's: mean and square in fp32, or mean, square and carry in bfloat16."""
    return trained_count(job) * (6 if job.precision == "bf16" else 8)


def block_bytes(job: Job) -> int:
    """What autograd keeps of one block for the backward pass, per token."""
    C, product = job.shape.n_embd, job.product_bytes
    kept = 2 * C * job.weight_bytes  # the inputs of both norms
    kept += (3 * C + job.shape.inner) * product  # q, k and v; the GELU's input
    if job.shape.dropout:
        kept += 2 * C * (product if job.on_cpu else 1)  # the masks of both residual branches
    return kept + _attention_bytes(job) + _input_bytes(job)


def _attention_bytes(job: Job) -> int:
    """Beside q, k and v. Of the explicit form, the (T, T) weights, and under dropout its masks."""
    C, H, product = job.shape.n_embd, job.shape.n_head, job.product_bytes
    pairs = H * job.block
    if job.fused:  # what it gives, and a normalizer for each head
        return C * product + 4 * H
    if not job.explicit:
        # In mixed precision that substitute works in fp32, on copies of q, k and v.
        wide = 4 if job.mixed else product
        return 3 * pairs * wide + 3 * C * (wide - product)
    weights = pairs * product
    if job.mixed and not job.on_cpu:  # autocast takes a softmax in fp32
        weights += pairs * 4
    if job.shape.dropout:
        weights += pairs * (2 * product if job.on_cpu else product + 1)
    return weights


def _input_bytes(job: Job) -> int:
    """The inputs of the matrices that learn, or of the thin ones in their adapters."""
    C, I, lora = job.shape.n_embd, job.shape.inner, job.lora
    stream, product, kept = job.weight_bytes, job.product_bytes, 0
    inputs = {"qkv": (C, stream), "out": (C, product), "up": (C, stream), "down": (I, product)}
    for name in inputs if lora is None else set(lora.targets):
        width, before = inputs[name]
        if lora is not None and lora.dropout:
            kept += width * (product + (before if job.on_cpu else 1))  # after dropout; its mask
        elif name != "out" or not job.fused:  # fused attention has kept what it gave
            kept += width * product
        kept += lora.rank * product if lora is not None else 0  # between the thin ones
    return kept


def loss_bytes(job: Job) -> int:
    """The largest moment of training/objective.py: features and their gradient, copies for the
    product, the head's gradient in fp32, and a piece of the logits with what is made of it.
    """
    V, C, N = job.shape.vocab_size, job.shape.n_embd, job.tokens
    if job.whole_logits:  # beside the features
        return N * C * 4 + _after_loss(job)
    head, padded = V * C if job.head_learns else 0, V + -V % _ROW_MULTIPLE
    fixed = 2 * N * C * job.weight_bytes + 4 * head
    fixed += N * C * job.product_bytes if job.mixed else 0
    fixed += padded * C * job.product_bytes if job.mixed or padded > V else 0
    piece = min(N, max(1, LOGITS_ALIVE[job.on_cpu] // V)) * padded  # numbers in it
    softmax, slope = 8 * piece, 4 * piece  # its exponentials beside it
    if job.product_bytes == 2:
        # The narrow logits; the product of slope and features, which += widens first on a CPU.
        softmax += 2 * piece
        slope += 2 * head + (4 * head if job.on_cpu else 0)
    return fixed + max(softmax, slope, 2 * head if job.precision == "bf16" else 0)


def _after_loss(job: Job) -> int:
    """What the loss keeps: the head's gradient (the features' turns into the stream's)."""
    if job.whole_logits:  # the normalized logits, and two gradients of them
        return 3 * job.tokens * job.shape.vocab_size * 4
    return job.head_bytes if job.head_learns else 0


def _inside_block(job: Job) -> int:
    """Per token, what the backward pass of a block has at once beside what is kept: the stream's
    gradient, and that of down's input (of its adapter's too) or of the attention weights, twice.
    """
    C, I, product = job.shape.n_embd, job.shape.inner, job.product_bytes
    mlp = (C * product if job.mixed and job.lora is None else 0) + I * product
    if job.lora is not None and "down" in job.lora.targets:
        mlp += I * product
    pairs = 2 * job.shape.n_head * job.block * product if not job.fused else 0
    return C * job.weight_bytes + max(mlp, pairs - 2 * (C + I) * product)


def _update(job: Job) -> int:
    """What AdamW computes with: two copies of a weight; on the CPU, and of bfloat16 weights, which
    need more copies, of a slice of it.
    """
    if job.compiled_update:
        return 0
    shape, narrow = job.shape, job.precision == "bf16"
    at_once = shape.n_embd * max(shape.vocab_size if job.head_learns else 0, shape.inner)
    if job.on_cpu or narrow:
        at_once = SLICE if job.on_cpu else WIDE_SLICE
    return 4 * (_WIDE_COPIES if narrow else 2) * min(at_once, trained_count(job))


def _copies(job: Job, moment: str) -> int:
    """16-bit copies of the blocks' matrices. Autocast holds those of weights that learn to the end
    of the forward pass, and autograd to that of the backward pass if it does not recompute.
    """
    if not job.mixed or (job.recompute and moment == "loss"):
        return 0
    one = matrices(job.shape) * job.product_bytes
    if job.recompute and (moment == "backward" or job.lora):
        return one
    return one * job.trained_layers
