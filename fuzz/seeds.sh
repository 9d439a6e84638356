#!/usr/bin/env bash
# Fills fuzz/corpus with what the targets start from: the program's own test data and settings.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p fuzz/corpus/{pairs,settings,model,run_folder,template,parquet}
data=tests/data
i=0

while read -r line; do echo "$line" > "fuzz/corpus/pairs/$((i += 1))"; done < $data/pairs/sentences.jsonl
cp $data/pairs/sentences.jsonl fuzz/corpus/pairs/all
cp $data/regressions/pairs/* fuzz/corpus/pairs/ 2> /dev/null || true

cp experiments/*.toml tests/cli/tiny.toml fuzz/corpus/settings/
printf 'seed = 1\0ppo.clip=0.1\0method=token\0reproduce.methods=["bandit"]' > fuzz/corpus/settings/sets

# The first byte names the file that the rest replaces.
prefixed() { printf '%s' "$1" | cat - "$2" > "$3"; }
for pair in c:config.json g:generation_config.json s:model.safetensors t:tokenizer.json t:byte_level.json \
    k:tokenizer_config.json; do
    prefixed "${pair%%:*}" "$data/tiny/${pair#*:}" "fuzz/corpus/model/${pair#*:}"
done
for file in $data/run/*; do
    case "$file" in
        */normalizer*) prefixed n "$file" "fuzz/corpus/run_folder/$(basename "$file")" ;;
        */manifest*) prefixed m "$file" "fuzz/corpus/run_folder/$(basename "$file")" ;;
        */settings*) prefixed s "$file" "fuzz/corpus/run_folder/$(basename "$file")" ;;
    esac
done
cp $data/tokenizer/templates/*.jinja fuzz/corpus/template/
cp $data/pairs/*.parquet fuzz/corpus/parquet/
for target in settings model run_folder template parquet; do
    cp $data/regressions/$target/* fuzz/corpus/$target/ 2> /dev/null || true
done
