"""How an instruction and its answer become tokens, and which of them are learned.

    ids         [INST] {instruction} [/INST]\\n {answer} EOS
    supervised     0        0           0         1      1

Both are built together, here and nowhere else: a mask that is made apart from the text it masks
is the commonest silent fault of fine-tuning. The prompt is not learned, because it will be given.
The EOS is, because otherwise the model never learns to stop.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

from minigpt.base.errors import CheckpointError, require_known
from minigpt.base.files import as_dataclass, read_object, write_json
from minigpt.data.tokenizer import Tokenizer

FILE = "template.json"

UNLEARNED = "unlearned"
# (instruction, answer), several in a conversation; a third, UNLEARNED, behind an answer that is
# there to be read and not to be learned.
Turns = Sequence[Tuple[str, ...]]


@dataclass(frozen=True)
class Template:
    """The text around instruction and answer, and what is learned of it all."""

    name: str
    before: str = "[INST] "
    between: str = " [/INST]\n"
    after: str = ""  # text behind the answer
    eos: bool = True  # whether the tokenizer's own EOS ends the answer
    whole: bool = False  # prompt and answer are one text, all of it learned, cut at the block

    def prompt(self, instruction: str) -> str:
        """The text that an answer follows."""
        return self.before + instruction + self.between

    def render(self, tokenizer: Tokenizer, turns: Turns) -> Tuple[List[int], List[bool]]:
        """The ids of a conversation, and for each whether it is to be learned."""
        if self.whole:
            return _whole("".join(self.prompt(t[0]) + t[1] + self.after for t in turns), tokenizer)
        ids = [*tokenizer.begin]
        learned = [False] * len(ids)
        for instruction, answer, *unlearned in turns:
            prompt = tokenizer.encode_array(self.prompt(instruction)).tolist()
            reply = tokenizer.encode_array(answer + self.after).tolist()
            reply += [tokenizer.eos_id] * self.eos
            ids += prompt + reply
            learned += [False] * len(prompt) + [not unlearned] * len(reply)
        return ids, learned

    @property
    def stop(self) -> Tuple[str, ...]:
        """Texts at which an answer has ended, beside the EOS."""
        return (self.after,) if self.after else ()


def _whole(text: str, tokenizer: Tokenizer) -> Tuple[List[int], List[bool]]:
    """A text as the tutorial's tokenizer and masking have it: the name of the EOS, where a text
    contains it, is the EOS, and that is padding and so not learned.
    """
    ids: List[int] = []
    for part in text.split("<|endoftext|>"):
        ids += [tokenizer.eos_id, *tokenizer.encode_array(part).tolist()]
    return ids[1:], [token != tokenizer.eos_id for token in ids[1:]]


TEMPLATES = {
    "instruct": Template("instruct"),
    # The MoAI tutorial to the token: a text `</s>` that is no token of GPT-2's vocabulary, no EOS
    # learned, the prompt learned with the answer, rows padded to the block.
    "moai": Template("moai", after="</s>", eos=False, whole=True),
}


def find_template(name: str) -> Template:
    """The template called `name`; UsageError with the nearest name otherwise."""
    require_known("template", name, TEMPLATES)
    return TEMPLATES[name]


def save_template(directory: Path, template: Template) -> None:
    """Writes what `load_template` needs into a checkpoint."""
    write_json(directory / FILE, asdict(template))


def load_template(directory: Path) -> Optional[Template]:
    """The template a checkpoint was tuned with; None when it was not."""
    path, fix = directory / FILE, "use another checkpoint"
    if not path.exists():
        return None
    try:
        return as_dataclass(Template, read_object(path, CheckpointError, fix))
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be read: {error}", fix) from None
