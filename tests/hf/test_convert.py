"""Every dialect in, logits equal to transformers'; and back out, bit for bit."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minigpt.__main__ import convert as convert_command
from minigpt.base.errors import CheckpointError, MinigptError, UsageError
from minigpt.checkpoint.model_files import load_model
from minigpt.data.tokenizer import load_tokenizer
from minigpt.hf import config as hf_config
from minigpt.hf.convert import convert
from minigpt.hf.export import export
from minigpt.model import zoo
from minigpt.model.gpt import GPTConfig
from tests.helpers.dialects import SHAPE, converter_config, saved_config, weights, write
from tests.helpers.reference import assert_close, oracle, tokens
from tests.helpers.runs import ROOT
from tests.helpers.tuning import base
from tests.helpers.warm import warm

DIALECTS = {
    "single bin": {},
    "single safetensors": {"kind": "safetensors"},
    "sharded bin": {"shards": 3},
    "sharded safetensors": {"shards": 2, "kind": "safetensors"},
    "old bin": {"legacy": True},
    "no prefix, bool masks, saved config": {
        "prefix": "", "masks": torch.bool, "config": saved_config(), "shards": 2,
    },
    "uint8 masks": {"masks": torch.uint8},
    "head only": {"embedding": False, "kind": "safetensors"},
    "head and embedding": {"head": True},
}  # fmt: skip


def split(options):
    made = {k: v for k, v in options.items() if k in ("prefix", "head", "embedding", "masks")}
    return made, {k: v for k, v in options.items() if k not in made}


@pytest.fixture()
def theirs():
    return oracle(SHAPE)


@pytest.mark.oracle
@pytest.mark.parametrize("options", DIALECTS.values(), ids=DIALECTS.keys())
def test_logits_equal_theirs_in_every_dialect(tmp_path, theirs, options):
    made, written = split(options)
    source = write(tmp_path / "hf", weights(theirs, **made), **written)
    summary = "\n".join(convert(source, tmp_path / "ours"))
    model = load_model(tmp_path / "ours")
    assert model.config.activation == "gelu" and model.config.n_inner == 70
    ids = tokens()
    assert_close(model(ids), theirs(ids).logits)
    if made.get("masks") is not None:
        assert "dropped  6 mask buffers" in summary
    if made.get("head") or made.get("embedding") is False:
        assert "note     " in summary


@pytest.mark.oracle
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_keep_their_dtype_and_numbers(tmp_path, theirs, dtype):
    state = {k: v.to(dtype) for k, v in weights(theirs).items()}
    convert(write(tmp_path / "hf", state), tmp_path / "ours")
    model = load_model(tmp_path / "ours")
    assert model.final_norm.weight.dtype == dtype
    found = model.blocks[1].attention.out.weight
    assert torch.equal(found, state["transformer.h.1.attn.c_proj.weight"].t())


@pytest.mark.oracle
@pytest.mark.parametrize("name, dtype", [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_casting(tmp_path, theirs, name, dtype):
    convert(write(tmp_path / "hf", weights(theirs)), tmp_path / "ours", dtype=name)
    assert load_model(tmp_path / "ours").token_embedding.weight.dtype == dtype


@pytest.mark.oracle
def test_fp16_refuses_what_overflows(tmp_path, theirs):
    state = weights(theirs)
    state["transformer.h.2.mlp.c_fc.weight"][3, 4] = 1e5
    source = write(tmp_path / "hf", state)
    with pytest.raises(MinigptError, match=r"blocks\.2\.mlp\.up\.weight has numbers beyond"):
        convert(source, tmp_path / "ours", dtype="fp16")
    assert not (tmp_path / "ours").exists()


@pytest.mark.oracle
def test_an_odd_file_name_by_argument(tmp_path, theirs):
    source = write(tmp_path / "hf", weights(theirs), name="checkpoint_to_hf.bin")
    with pytest.raises(MinigptError, match="--weights"):
        convert(source, tmp_path / "ours")
    convert(source, tmp_path / "ours", weights="checkpoint_to_hf.bin")
    assert load_model(tmp_path / "ours")


@pytest.mark.oracle
@pytest.mark.parametrize("place", ["{}", "./{}", "../hf/{}", "{here}/{}", "from here"])
def test_an_odd_file_by_any_path(tmp_path, theirs, place, monkeypatch):
    source = write(tmp_path / "hf", weights(theirs), name="x.bin")
    monkeypatch.chdir(tmp_path)
    named = "hf/x.bin" if place == "from here" else place.format("x.bin", here=source)
    convert(source, tmp_path / "ours", weights=named)
    assert load_model(tmp_path / "ours")
    with pytest.raises(MinigptError, match="there is no "):
        convert(source, tmp_path / "no", weights="y.bin")


@pytest.mark.oracle
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_the_names_of_wrappers_are_seen_through(tmp_path, theirs, prefix, kind):
    state = {prefix + name: tensor for name, tensor in weights(theirs).items()}
    if prefix == "_orig_mod.":  # each block was compiled
        state = {name.replace("h.1.", "h.1._orig_mod."): t for name, t in state.items()}
    convert(write(tmp_path / "hf", state, kind=kind), tmp_path / "ours")
    ids = tokens()
    assert_close(load_model(tmp_path / "ours")(ids), theirs(ids).logits)


@pytest.mark.oracle
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", ["keep", "fp16", "bf16"])
def test_weights_that_are_no_numbers_are_named(tmp_path, theirs, number, dtype):
    state = {name: tensor.half() for name, tensor in weights(theirs).items()}
    state["transformer.h.2.mlp.c_fc.weight"][3, 4] = number
    state["transformer.ln_f.bias"][0] = number
    said = convert(write(tmp_path / "hf", state), tmp_path / "ours", dtype=dtype)
    found = [line for line in said if "nan or infinite" in line]
    assert len(found) == 2 and "transformer.h.2.mlp.c_fc.weight" in found[0]
    assert load_model(tmp_path / "ours")


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["pytorch_model.bin", "config.json", "tokenizer.json"])
def test_a_pointer_of_git_lfs_is_named(tmp_path, theirs, name):
    source = write(tmp_path / "hf", weights(theirs))
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (source / name).write_text(pointer)
    with pytest.raises(MinigptError, match=rf"{name} is git-lfs's pointer.*git lfs pull"):
        convert(source, tmp_path / "ours")


@pytest.mark.oracle
def test_an_adapter_of_peft_is_named(tmp_path, theirs):
    source = write(tmp_path / "hf", weights(theirs))
    (source / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    for _ in range(2):  # beside its base, and alone
        with pytest.raises(MinigptError, match="has an adapter of PEFT"):
            convert(source, tmp_path / "ours")
        for path in (source / "config.json", source / "pytorch_model.bin"):
            path.unlink(missing_ok=True)


@pytest.mark.parametrize(
    "name, ours",
    [("gelu_python", "gelu"), ("gelu_accurate", "gelu_tanh"), ("gelu_fast", "gelu_tanh")],
)
def test_names_of_the_two_activations(name, ours):
    values = converter_config(activation_function=name)
    assert hf_config.read(values, "config.json")[0].activation == ours


@pytest.mark.oracle
def test_an_untied_head_stays_untied(tmp_path):
    theirs = oracle(SHAPE, tied=False)
    source = write(
        tmp_path / "hf", weights(theirs, head=True), converter_config(tie_word_embeddings=False)
    )
    convert(source, tmp_path / "ours")
    ids = tokens()
    assert_close(load_model(tmp_path / "ours")(ids), theirs(ids).logits)


def mup_config(**more):
    return converter_config(
        model_type="btlm", position_embedding_type="learned", alibi_scaling=None,
        mup_embeddings_scale=10, mup_output_alpha=1.0, mup_width_scale=256 / 51,
        mup_scale_qk_dot_by_d=True, **more,
    )  # fmt: skip


def folded(theirs):
    """transformers' GPT-2 that computes what the muP model with the same weights does."""
    scale, C, D = 256 / 51, 51, 17
    model = oracle(SHAPE, tied=False)
    model.load_state_dict(theirs.state_dict(), strict=False)
    with torch.no_grad():
        model.lm_head.weight.copy_(theirs.transformer.wte.weight * scale)
        model.transformer.wte.weight.mul_(10)
        model.transformer.wpe.weight.mul_(10)
        for block in model.transformer.h:
            block.attn.c_attn.weight[:, C : 2 * C].div_(D**0.5)
            block.attn.c_attn.bias[C : 2 * C].div_(D**0.5)
    return model


@pytest.mark.oracle
@pytest.mark.parametrize("forgotten", [False, True])
def test_mup_with_and_without_its_width_scale(tmp_path, theirs, forgotten):
    config = mup_config()
    if forgotten:
        del config["mup_width_scale"]
    source = write(tmp_path / "hf", weights(theirs, head=True), config)
    summary = "\n".join(convert(source, tmp_path / "ours"))
    assert ("mup_width_scale is missing" in summary) == forgotten
    ids = tokens()
    assert_close(load_model(tmp_path / "ours")(ids), folded(theirs)(ids).logits)


@pytest.mark.oracle
def test_mup_is_exported_folded_or_refused(tmp_path, theirs):
    transformers = pytest.importorskip("transformers")
    convert(write(tmp_path / "hf", weights(theirs, head=True), mup_config()), tmp_path / "ours")
    with pytest.raises(MinigptError, match="--fold-mup"):
        export(tmp_path / "ours", tmp_path / "back")
    export(tmp_path / "ours", tmp_path / "back", fold=True)
    again = transformers.GPT2LMHeadModel.from_pretrained(str(tmp_path / "back"))
    ids = tokens()
    assert_close(again(ids).logits, folded(theirs)(ids).logits, 1e-6)


REFUSED = {
    "another architecture": ({"model_type": "llama"}, "is a llama model"),
    "cross attention": ({"add_cross_attention": True}, "add_cross_attention = True"),
    "an unknown activation": ({"activation_function": "relu"}, "the activation 'relu'"),
    "scaling by layer": ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse"),
    "ALiBi": ({"model_type": "btlm", "position_embedding_type": "alibi"}, "= 'alibi'"),
    "an epsilon that is no number": ({"layer_norm_epsilon": float("nan")}, "'layer_norm_eps' is"),
    "a missing width": ({"n_embd": None}, "lacks or garbles"),
    "another number of layers": ({"n_layer": 2}, "is no tensor of a GPT-2 of 2 layers"),
    "one layer too many": ({"n_layer": 4}, "lacks transformer.h.3"),
    "another inner width": ({"n_inner": 71}, "config.json makes it"),
}


@pytest.mark.oracle
@pytest.mark.parametrize("change, words", REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_represented_is_refused_before_writing(tmp_path, theirs, change, words):
    source = write(tmp_path / "hf", weights(theirs), converter_config(**change))
    with pytest.raises(MinigptError) as caught:
        convert(source, tmp_path / "ours")
    assert words in str(caught.value) and caught.value.fix
    assert [p.name for p in tmp_path.iterdir()] == ["hf"]


@pytest.mark.oracle
def test_two_heads_that_differ_are_refused_when_tied(tmp_path, theirs):
    state = weights(theirs, head=True)
    state["lm_head.weight"][0, 0] += 1
    with pytest.raises(MinigptError, match="differ, yet"):
        convert(write(tmp_path / "hf", state), tmp_path / "ours")


@pytest.mark.oracle
def test_a_tensor_of_something_else_is_refused(tmp_path, theirs):
    state = {**weights(theirs), "transformer.h.0.attn.rotary": torch.zeros(3)}
    with pytest.raises(MinigptError, match="is no tensor of a GPT-2"):
        convert(write(tmp_path / "hf", state), tmp_path / "ours")


@pytest.mark.parametrize("name", ["../outside.bin", "/etc/passwd", "a/b.bin", "..", ""])
def test_an_index_that_names_files_elsewhere_is_refused(tmp_path, name):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(json.dumps(converter_config()))
    index = {"weight_map": {"wte.weight": name}}
    (tmp_path / "hf" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (tmp_path / "outside.bin").write_bytes(b"")
    with pytest.raises(MinigptError, match="is elsewhere"):
        convert(tmp_path / "hf", tmp_path / "ours")


@pytest.mark.oracle
@pytest.mark.parametrize("shard_bytes", [10**9, 40_000])
@pytest.mark.parametrize("tied", [True, False])
def test_out_again_bit_for_bit_and_opened_by_transformers(tmp_path, shard_bytes, tied, caplog):
    transformers = pytest.importorskip("transformers")
    theirs = oracle(SHAPE, tied=tied)
    config = converter_config(tie_word_embeddings=tied)
    source = write(tmp_path / "hf", weights(theirs, head=not tied, masks=torch.uint8), config)
    convert(source, tmp_path / "ours", shard_bytes=shard_bytes)
    export(tmp_path / "ours", tmp_path / "back", shard_bytes=shard_bytes)
    state = {}
    for path in (tmp_path / "back").glob("*.safetensors"):
        state.update(load_file(str(path)))
    expected = weights(theirs, head=not tied)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)
    again, info = transformers.AutoModelForCausalLM.from_pretrained(
        str(tmp_path / "back"), output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = tokens()
    assert torch.equal(again.eval()(ids).logits, again(ids).logits)
    assert_close(load_model(tmp_path / "ours")(ids), again(ids).logits)


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["hf", "bytes", "gpt2"])  # the last two also name tokenizers
def test_the_vocabulary_travels_both_ways(tmp_path, monkeypatch, name):
    """With GPT-2's own 50,257 tokens: transformers' tokenizer of the export gives our ids."""
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, n_positions=32)
    )
    model.save_pretrained(name)
    load_tokenizer("gpt2").save(Path(name))
    said = "\n".join(convert(Path(name), tmp_path / "ours"))
    assert "there is no vocabulary" not in said
    export(tmp_path / "ours", tmp_path / "back")
    for file in ("vocab.json", "merges.txt"):
        assert (tmp_path / "back" / file).read_bytes() == Path(name, file).read_bytes()
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "back"))
    text = "def f(x):\n    return x"
    assert tokenizer(text)["input_ids"] == load_tokenizer(tmp_path / "ours").encode(text)
    assert tokenizer.eos_token_id == 50256


@pytest.mark.oracle
@pytest.mark.parametrize("file", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_chat_template_of_its_own_is_not_pretended(tmp_path, theirs, file):
    source = write(tmp_path / "hf", weights(theirs))
    assert "chat template" not in "\n".join(convert(source, tmp_path / "plain"))
    (source / file).write_text('{"chat_template": "{{ messages }}"}')
    said = "\n".join(convert(source, tmp_path / "ours"))
    assert "its chat template is not taken over" in said
    assert not (tmp_path / "ours" / "template.json").exists()


@pytest.mark.oracle
def test_the_command_both_ways(tmp_path, theirs):
    source = write(tmp_path / "hf", weights(theirs))

    def run(*words, code=0):
        command = warm(ROOT / "convert_hf.py", *words)
        done = subprocess.run(command, capture_output=True, text=True, cwd=str(tmp_path))
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    said = run(source, "--verify", "--shard-size", "50kB")
    assert "transposed, all renamed" in said and "logits against transformers': equal" in said
    assert (tmp_path / "checkpoints" / "hf" / "model.safetensors.index.json").exists()
    assert "opens in transformers" in run("--to-hf", "checkpoints/hf", "--out", "back")
    assert "did you mean cerebras-13b" in run("cerebras-31b", code=2)
    assert "--shard-size is 'big'" in run(source, "--shard-size", "big", code=2)
    assert "nothing to convert" in run(code=2)
    assert "config.json is missing" in run("checkpoints", "--out", "x", code=1)


@pytest.mark.parametrize("ignored", ["--dtype=bf16", "--verify", "--revision=x", "--weights=w"])
def test_flags_that_a_direction_does_not_heed_are_refused(tmp_path, ignored):
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="--to-hf takes none of --dtype"):
        convert_command(["--to-hf", str(tmp_path), "--out", str(out), ignored])
    with pytest.raises(UsageError, match="--fold-mup is for --to-hf"):
        convert_command([str(tmp_path), "--out", str(out), "--fold-mup"])
    assert not out.exists()


@pytest.mark.oracle
def test_a_conversion_that_computes_something_else_is_an_error(tmp_path, theirs, monkeypatch):
    source = write(tmp_path / "hf", weights(theirs))
    real = load_model

    def spoilt(*words, **named):
        model = real(*words, **named)
        model.final_norm.weight.data[0] += 1.0
        return model

    monkeypatch.setattr("minigpt.commands.convert.load_model", spoilt)
    with pytest.raises(CheckpointError, match="computes something else; do not use it"):
        convert_command([str(source), "--out", str(tmp_path / "out"), "--verify"])


@pytest.mark.oracle
def test_a_single_file_comes_before_the_index_of_older_shards(tmp_path, theirs):
    source = write(tmp_path / "hf", weights(theirs), kind="safetensors")
    older = {name: tensor + 1 for name, tensor in weights(theirs).items()}
    for path in write(tmp_path / "older", older, kind="safetensors", shards=3).glob("model*"):
        path.rename(source / path.name)
    convert(source, tmp_path / "out")
    ids = tokens()
    assert_close(load_model(tmp_path / "out")(ids), theirs(ids).logits)


@pytest.mark.oracle
def test_what_others_read_of_the_config(tmp_path):
    base(tmp_path / "ours", "gpt2", shape=GPTConfig(50257, 24, 1, 1, 8))
    export(tmp_path / "ours", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert not (tmp_path / "out" / "chat_template.jinja").exists()  # it was not tuned
    assert config["n_ctx"] == config["n_positions"] == 24
    assert config["bos_token_id"] == config["eos_token_id"] == 50256
    assert config["scale_attn_by_inverse_layer_idx"] is config["reorder_and_upcast_attn"] is False
    without = hf_config.write(GPTConfig(300, 24, 1, 1, 8), "float32")
    assert without["eos_token_id"] is None  # there is no vocabulary that has one


def test_an_extended_vocabulary_and_a_null_inner_width():
    values = converter_config(vocab_size=50258, n_inner=None, activation_function="gelu_new")
    config, notes = hf_config.read(values, "config.json")
    assert (config.vocab_size, config.inner, config.activation) == (50258, 204, "gelu_tanh")
    assert notes == []


@pytest.mark.parametrize("name", ["gpt2", "cerebras-111m", "cerebras-13b"])
def test_a_published_shape_comes_back_as_the_zoo_has_it(name):
    shape = zoo.find(name).config
    assert hf_config.read(hf_config.write(shape, "float32"), "config.json")[0] == shape


KILLED = """
import sys
from pathlib import Path
from minigpt.hf import config as hf_config
from minigpt.hf.convert import convert
convert(Path(sys.argv[1]), Path(sys.argv[2]), progress=lambda size, total: print(size, flush=True))
"""


@pytest.mark.oracle
@pytest.mark.parametrize("tensors", [1, 7, 20])
def test_killed_at_any_tensor_it_leaves_no_checkpoint_and_can_be_run_again(
    tmp_path, theirs, tensors
):
    source = write(tmp_path / "hf", weights(theirs))
    (tmp_path / "killed.py").write_text(KILLED)
    command = warm(tmp_path / "killed.py", source, tmp_path / "ours", PYTHONPATH=str(ROOT))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=str(ROOT))
    for _ in range(tensors):
        process.stdout.readline()
    process.kill()
    process.stdout.read()  # ends when what converts has ended
    process.wait()
    if (tmp_path / "ours").exists():  # it had been quicker
        assert load_model(tmp_path / "ours")
    convert(source, tmp_path / "ours")
    assert load_model(tmp_path / "ours")
    assert not list(tmp_path.glob(".ours*"))
