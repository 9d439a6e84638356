//! Every error that the program can give: what provokes it, its text, its exit status. The last test compares
//! the table with the errors in the source, so that none is added without a row.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use segment_rlhf::settings::Settings;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    Output, SENTENCES, characters, copy, edit_json, files, finish, llama, output, program,
    program_with_env,
};

/// An error, the exit status, parts of the text, and what provokes it, given a run that is trained up to its
/// normalizer.
type Row = (&'static str, i32, &'static [&'static str], fn(&Path) -> Tried);

/// What the program said, and the run's folder.
struct Tried(TempDir, Output);

/// Runs `arguments` in an empty folder.
fn try_in_empty(arguments: &[&str]) -> Tried {
    try_in(TempDir::new().unwrap(), arguments)
}

fn try_in(run: TempDir, arguments: &[&str]) -> Tried {
    let output = program(run.path(), arguments);
    Tried(run, output)
}

/// Ten sound preference pairs, then `line`.
fn pairs(line: impl AsRef<[u8]>) -> Tried {
    data_file(&[&fs::read(SENTENCES).unwrap(), line.as_ref()].concat(), "train-reward")
}

/// A data file of these bytes.
fn data_file(bytes: &[u8], command: &str) -> Tried {
    data_file_named("data.jsonl", bytes, command)
}

fn data_file_named(name: &str, bytes: &[u8], command: &str) -> Tried {
    let (data, model) = (TempDir::new().unwrap(), llama());
    let path = data.path().join(name);
    fs::write(&path, bytes).unwrap();
    let model = model.path().to_str().unwrap();
    try_in_empty(&[command, "--model", model, "--data", path.to_str().unwrap()])
}

/// A model in which `spoil` has changed something.
fn model(spoil: fn(&Path)) -> Tried {
    model_and(spoil, &[])
}

fn model_and(spoil: fn(&Path), arguments: &[&str]) -> Tried {
    let model = llama();
    spoil(model.path());
    let path = model.path().to_str().unwrap();
    let start = ["train-reward", "--model", path, "--data", SENTENCES];
    try_in_empty(&[&start, arguments].concat())
}

fn config(key: &'static str, value: Value) -> impl Fn(&Path) {
    move |dir| edit_json(&dir.join("config.json"), |config| config[key] = value.clone())
}

/// A shard of [`sharded`].
const SHARD: &str = "model-00002-of-00003.safetensors";

/// Puts a model in three shards in place of the one in `dir`, after `spoil`.
fn sharded(dir: &Path, spoil: fn(&Path)) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/hf/llama_sharded");
    fs::remove_file(dir.join("model.safetensors")).unwrap();
    for path in files(&from) {
        fs::copy(from.join(&path), dir.join(&path)).unwrap();
    }
    edit_json(&dir.join("config.json"), |config| {
        config["vocab_size"] = 96.into(); // those of the tokenizer
        config["max_position_embeddings"] = 512.into();
    });
    spoil(dir);
}

/// The model's tensor `name` filled with `value`.
fn fill(dir: &Path, name: &str, value: f32) {
    let path = dir.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let read = SafeTensors::deserialize(&bytes).unwrap();
    let old = read.tensor(name).unwrap();
    let values: Vec<u8> =
        value.to_le_bytes().iter().copied().cycle().take(old.data().len()).collect();
    let mut tensors: std::collections::BTreeMap<_, _> = read.tensors().into_iter().collect();
    let filled = TensorView::new(Dtype::F32, old.shape().to_vec(), &values).unwrap();
    tensors.insert(name.to_owned(), filled);
    fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
}

/// A settings file of this text.
fn settings(text: &str) -> Tried {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("own.toml");
    fs::write(&path, text).unwrap();
    try_in_empty(&["sft", "--settings", path.to_str().unwrap()])
}

fn set(value: &str) -> Tried {
    try_in_empty(&["sft", "--set", value])
}

/// The trained run after `edit`, and then this command.
fn trained(ready: &Path, edit: impl FnOnce(&Path), arguments: &[&str]) -> Tried {
    let run = copy(ready);
    edit(run.path());
    try_in(run, arguments)
}

/// DRLC's PPO with these spans of a response to the embedded task's prompt for `name`, after a sound row.
fn marked(ready: &Path, name: &str, spans: Value) -> Tried {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("spans.jsonl");
    let prompt =
        |name| format!("write to {name} about the harbor . {name} loves food , not music .");
    let sound = json!({"prompt": prompt("ana"), "response": "dear ben", "spans": []});
    let row = json!({"prompt": prompt(name), "response": "dear ana", "spans": spans});
    fs::write(&path, format!("{sound}\n{row}\n")).unwrap();
    let spans = format!("systems.drlc.spans={}", path.display());
    let mut arguments = vec!["ppo", "--method", "drlc"];
    for set in ["task.reward=verdict", "systems.drlc.annotator=file", &spans] {
        arguments.extend(["--set", set]);
    }
    trained(ready, |_| (), &arguments)
}

/// PPO with a normalizer in which `edit` has changed something.
fn normalizer(ready: &Path, edit: fn(&mut Value)) -> Tried {
    let path = "segment/normalizer/normalizer.json";
    trained(ready, |run| edit_json(&run.join(path), edit), &["ppo"])
}

fn location_aware(w_mean: f64, w_std: f64, std_floor: Option<f64>) -> Value {
    json!({
        "kind": "location_aware", "w_mean": w_mean, "b_mean": 0.0, "w_std": w_std, "b_std": 0.5,
        "std_floor": std_floor,
    })
}

/// The program with a limit on the size of a file, which meets every write as a full disk would.
#[cfg(unix)]
fn limited(run: TempDir, kilobytes: usize, arguments: &[&str]) -> Tried {
    let output = crate::support::program_with_file_limit(run.path(), kilobytes, arguments);
    Tried(run, output)
}

const DATA: &[Row] = &[
    ("DataError::File", 2, &["data.jsonl: cannot read: ", "check the path"], |_| {
        let model = llama();
        let path = model.path().to_str().unwrap();
        try_in_empty(&["train-reward", "--model", path, "--data", "no/data.jsonl"])
    }),
    (
        "DataError::utf8",
        2,
        &["data.jsonl:11: not UTF-8 (byte 13 of the line); save the file as UTF-8"],
        |_| pairs(b"{\"prompt\": \"\xFF\"}"),
    ),
    (
        "DataError::not_json",
        2,
        &["data.jsonl:11: not JSON (", "column 10", "expected one JSON object"],
        |_| pairs("{\"prompt\": "),
    ),
    (
        "DataError::not_parquet",
        2,
        &["data.parquet: not a Parquet file (no PAR1 at its start)"],
        |_| data_file_named("data.parquet", b"\xFF\xFE{}", "train-reward"),
    ),
    #[cfg(feature = "parquet")]
    ("DataError::parquet", 2, &["data.jsonl: not a Parquet file that can be read ("], |_| {
        data_file(b"PAR1, and then nothing", "train-reward")
    }),
    #[cfg(feature = "parquet")]
    (
        "DataError::parquet",
        2,
        &[
            "data.jsonl: not a Parquet file that can be read (a list claims 2147483647 elements in 1",
        ],
        |_| {
            let footer = b"\x15\x02\x19\xFC\xFF\xFF\xFF\xFF\x07\x00\x0A\0\0\0";
            data_file(&[b"PAR1", &footer[..], b"PAR1"].concat(), "train-reward")
        },
    ),
    #[cfg(feature = "parquet")]
    (
        "DataError::compression",
        2,
        &["data.jsonl: compressed with BROTLI", "SNAPPY, GZIP, "],
        |_| data_file(include_bytes!("../data/pairs/brotli.parquet"), "train-reward"),
    ),
    #[cfg(feature = "parquet")]
    (
        "DataError::missing_key",
        2,
        &[
            "data.jsonl:1: the key `chosen` is missing; a row is {\"chosen\", \"rejected\"}",
            "; this one has text, label: --columns says what they are, as in --columns prompt=question,",
        ],
        |_| data_file(include_bytes!("../data/pairs/other_columns.parquet"), "train-reward"),
    ),
    #[cfg(not(feature = "parquet"))]
    ("DataError::without_parquet", 2, &["data.jsonl: a Parquet file", "feature `parquet`"], |_| {
        data_file(b"PAR1", "train-reward")
    }),
    (
        "DataError::wrong_type",
        2,
        &["data.jsonl:11: the line is a list; expected an object"],
        |_| pairs("[1, 2]"),
    ),
    (
        "DataError::wrong_type",
        2,
        &["data.jsonl:11: `chosen` is a number; expected a text or a list of messages"],
        |_| pairs(r#"{"prompt": "p", "chosen": 3, "rejected": "r"}"#),
    ),
    (
        "DataError::missing_key",
        2,
        &["data.jsonl:11: the key `rejected` is missing; a row is", "message lists"],
        |_| pairs(r#"{"prompt": "p", "chosen": "c"}"#),
    ),
    ("DataError::missing_key", 2, &["data.jsonl:11: the key `prompt` is missing"], |_| {
        pairs(r#"{"chosen": "c", "rejected": "r"}"#)
    }),
    (
        "DataError::unknown_role",
        2,
        &[
            "data.jsonl:11: the role of `chosen[0]` is \"robot\"; expected system, user or assistant",
        ],
        |_| {
            pairs(
                r#"{"prompt": "p", "chosen": [{"role": "robot", "content": "c"}], "rejected": "r"}"#,
            )
        },
    ),
    (
        "DataError::no_response",
        2,
        &["data.jsonl:11: `chosen` must end with a message of the assistant"],
        |_| {
            pairs(
                r#"{"prompt": "p", "chosen": [{"role": "user", "content": "c"}], "rejected": "r"}"#,
            )
        },
    ),
    (
        "DataError::empty_prompt",
        2,
        &["data.jsonl:11: the prompt is empty; a model needs at least one token to start from"],
        |_| pairs(r#"{"prompt": [], "chosen": "c", "rejected": "r"}"#),
    ),
    (
        "DataError::prompt_mismatch",
        2,
        &["data.jsonl:11: `prompt` and `chosen` have different prompts; both must answer the same"],
        |_| {
            let prompt = r#"[{"role": "user", "content": "p"}]"#;
            let side =
                r#"[{"role": "user", "content": "q"}, {"role": "assistant", "content": "c"}]"#;
            pairs(format!(r#"{{"prompt": {prompt}, "chosen": {side}, "rejected": {side}}}"#))
        },
    ),
    (
        "DataError::format",
        2,
        &[
            "data.csv: a table in CSV, which this program does not read; write it as JSON Lines: python3",
        ],
        |_| data_file_named("data.csv", b"prompt,chosen,rejected\na,b,c\n", "train-reward"),
    ),
    (
        "DataError::gzip",
        2,
        &["data.jsonl: not a whole gzip file (", "download or compress it"],
        |_| data_file(b"\x1F\x8B\x08\0\0\0\0\0\0\0{", "train-reward"),
    ),
    (
        "DataError::missing_key",
        2,
        &["0.jsonl:1: the key `rejected` (--columns rejected=bad) is missing; a row is"],
        |_| {
            on_files(
                &[r#"{"prompt": "p", "good": "c", "rejected": "r"}"#],
                &[
                    "train-reward",
                    "--model",
                    "MODEL",
                    "--data",
                    "@0",
                    "--columns",
                    "chosen=good,rejected=bad",
                ],
            )
        },
    ),
    (
        "DataError::no_files",
        2,
        &["src: a folder without .parquet, .jsonl or .json files; name"],
        |_| {
            let model = llama();
            let model = model.path().to_str().unwrap();
            let src = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
            try_in_empty(&["train-reward", "--model", model, "--data", src])
        },
    ),
    (
        "DataError::splits",
        2,
        &[": none of its splits is `train`; name one of a, train_b, as in …:train_b"],
        |_| {
            let (data, model) = (TempDir::new().unwrap(), llama());
            for split in ["a", "train_b"] {
                fs::write(data.path().join(format!("{split}-00000-of-00001.jsonl")), "").unwrap();
            }
            let [model, data] = [&model, &data].map(|dir| dir.path().to_str().unwrap());
            try_in_empty(&["train-reward", "--model", model, "--data", data])
        },
    ),
    ("DataError::no_pairs", 2, &["data.jsonl: no preference pairs; expected one a row"], |_| {
        data_file(b"", "train-reward")
    }),
    (
        "DataError::no_pairs",
        2,
        &["data.jsonl: no preference pairs (skipped rows: 1 of equal responses); expected"],
        |_| data_file(br#"{"prompt": "p", "chosen": "c", "rejected": "c"}"#, "train-reward"),
    ),
    (
        "DataError::nothing_to_hold_out",
        2,
        &["data.jsonl: all preference pairs are the same one, so that none can be held out; give"],
        |_| data_file(br#"{"prompt": "p", "chosen": "c", "rejected": "r"}"#, "train-reward"),
    ),
    ("DataError::no_conversations", 2, &["data.jsonl: no conversations; expected one"], |_| {
        data_file(b"\n", "sft")
    }),
    ("DataError::no_prompts", 2, &["prompts.jsonl: no prompts; expected one a row"], |_| {
        let (run, model) = (TempDir::new().unwrap(), llama());
        let input = ["--model", model.path().to_str().unwrap(), "--data", SENTENCES];
        finish(run.path(), &["train-reward", "fit-normalizer"], &input);
        let prompts = model.path().join("prompts.jsonl");
        fs::write(&prompts, "\n").unwrap();
        let prompts = ["ppo", "--prompts", prompts.to_str().unwrap()];
        try_in(run, &[&prompts, &input[..]].concat())
    }),
    (
        "DataError::encode_line",
        2,
        &[
            "sentences.jsonl:1: the tokenizer cannot encode the text (WordLevel error: Missing [UNK]",
        ],
        |_| model(words),
    ),
    ("DataError::encode", 2, &["error: the tokenizer cannot encode the text ("], |_| {
        let model = llama();
        words(model.path());
        let path = model.path().to_str().unwrap();
        try_in_empty(&["segment", "--model", path, "--prompt", "a", "--response", "what"])
    }),
];

/// Gives the model a tokenizer of three words, without one for the unknown.
fn words(dir: &Path) {
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {
            "type": "WordLevel", "unk_token": "<unknown>", "vocab": {"a": 0, "b": 1, "</s>": 2},
        },
    });
    fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let config = json!({"eos_token": "</s>", "role_format": {
        "system": "{}", "user": "{}", "assistant": "{}",
    }});
    fs::write(dir.join("tokenizer_config.json"), config.to_string()).unwrap();
}

/// A model whose chat template is `source`.
fn template(source: &str) -> TempDir {
    let model = llama();
    fs::write(model.path().join("chat_template.jinja"), source).unwrap();
    model
}

/// Reward training of a model whose chat template is `source`.
fn train_with(source: &str) -> Tried {
    let model = template(source);
    let path = model.path().to_str().unwrap();
    try_in_empty(&["train-reward", "--model", path, "--data", SENTENCES])
}

const MODEL: &[Row] = &[
    (
        "CheckpointError::NoBase",
        2,
        &["adapter_config.json: base_model_name_or_path names /no/where, which holds no model"],
        |_| {
            model(|dir| {
                fs::remove_file(dir.join("model.safetensors")).unwrap();
                let config = json!({
                    "peft_type": "LORA", "base_model_name_or_path": "/no/where", "r": 2,
                    "lora_alpha": 4, "target_modules": ["q_proj"],
                });
                fs::write(dir.join("adapter_config.json"), config.to_string()).unwrap();
            })
        },
    ),
    (
        "CheckpointError::File",
        2,
        &["model.safetensors: cannot read:", "a model's folder holds config.json and"],
        |_| model(|dir| fs::remove_file(dir.join("model.safetensors")).unwrap()),
    ),
    (
        "HubError::Refused",
        2,
        &[
            ": no model.safetensors, but the GGUF file q4.gguf: load it with transformers and write it again with",
            "gguf_file=\"q4.gguf\")",
        ],
        |_| {
            model(|dir| {
                fs::rename(dir.join("model.safetensors"), dir.join("q4.gguf")).unwrap();
            })
        },
    ),
    (
        "HubError::Refused",
        2,
        &[
            "pytorch_model.bin: no model.safetensors, but pytorch_model.bin: load it with transformers",
        ],
        |_| {
            let model = llama();
            let path = model.path().join("pytorch_model.bin");
            fs::write(&path, "").unwrap();
            try_in_empty(&["segment", "--model", path.to_str().unwrap()])
        },
    ),
    (
        "CheckpointError::Json",
        2,
        &["config.json: not the expected JSON: missing field", "the file that came with the model"],
        |_| model(|dir| fs::write(dir.join("config.json"), "{}").unwrap()),
    ),
    (
        "CheckpointError::Unsupported",
        2,
        &[
            "config.json: unsupported model_type \"gpt2\"; supported: llama, mistral, qwen2, qwen3, phi3,",
        ],
        |_| model(|dir| config("model_type", "gpt2".into())(dir)),
    ),
    (
        "CheckpointError::Unsupported",
        2,
        &["config.json: unsupported num_attention_heads: 3; expected a divisor of hidden_size 32"],
        |_| {
            model(|dir| {
                config("head_dim", Value::Null)(dir);
                config("num_attention_heads", 3.into())(dir);
            })
        },
    ),
    ("CheckpointError::File", 2, &["model-00002-of-00003.safetensors: cannot read:"], |_| {
        model(|dir| sharded(dir, |dir| fs::remove_file(dir.join(SHARD)).unwrap()))
    }),
    (
        "CheckpointError::Format",
        2,
        &[
            "model-00002-of-00003.safetensors: not a safetensors file, or a truncated one: its header names",
        ],
        |_| {
            model(|dir| {
                sharded(dir, |dir| {
                    let bytes = fs::read(dir.join(SHARD)).unwrap();
                    fs::write(dir.join(SHARD), &bytes[..bytes.len() - 1]).unwrap();
                })
            })
        },
    ),
    (
        "CheckpointError::Tensors",
        2,
        &[
            "model.safetensors.index.json: the tensors are not those of this architecture:",
            "model.extra.weight: the index names model-00002-of-00003.safetensors, which lacks it",
        ],
        |_| {
            model(|dir| {
                sharded(dir, |dir| {
                    let index = dir.join("model.safetensors.index.json");
                    edit_json(&index, |index| {
                        index["weight_map"]["model.extra.weight"] = SHARD.into();
                    });
                })
            })
        },
    ),
    (
        "CheckpointError::Unsupported",
        2,
        &["config.json: unsupported hidden_size: 1000000000000; expected a whole number from 1 to"],
        |_| model(|dir| config("hidden_size", 1_000_000_000_000u64.into())(dir)),
    ),
    (
        "CheckpointError::Unsupported",
        2,
        &["unsupported num_key_value_heads: 3; expected a divisor of the 4 query heads"],
        |_| model(|dir| config("num_key_value_heads", 3.into())(dir)),
    ),
    (
        "CheckpointError::Unsupported",
        2,
        &["config.json: unsupported head_dim: 7; expected an even number for rotary positions"],
        |_| model(|dir| config("head_dim", 7.into())(dir)),
    ),
    (
        "CheckpointError::Format",
        2,
        &["model.safetensors: not a safetensors file, or a truncated one:", "copy the model again"],
        |_| {
            model(|dir| {
                let path = dir.join("model.safetensors");
                let bytes = fs::read(&path).unwrap();
                fs::write(path, &bytes[..bytes.len() - 100]).unwrap();
            })
        },
    ),
    (
        "CheckpointError::Tensors",
        2,
        &[
            "model.safetensors: the tensors are not those of this architecture:",
            ": missing, expected",
        ],
        |_| model(|dir| config("num_hidden_layers", 3.into())(dir)),
    ),
    (
        "CheckpointError::Tensors",
        2,
        &["tensors, but config.json says num_hidden_layers 10000000"],
        |_| {
            let dir = llama();
            config("num_hidden_layers", 10_000_000.into())(dir.path());
            let model = dir.path().to_str().unwrap();
            try_in_empty(&["segment", "--model", model, "--prompt", "a", "--response", "b"])
        },
    ),
    (
        "CheckpointError::Tensors",
        2,
        &["\n  model.norm.weight: holds NaN, expected finite numbers"],
        |_| model(|dir| fill(dir, "model.norm.weight", f32::NAN)),
    ),
    (
        "SegmentationError::NotFinite",
        2,
        &["the entropy of response token 0 is not finite: look at the reference model's logits"],
        |_| model(|dir| fill(dir, "lm_head.weight", f32::MAX)),
    ),
    ("DataError::File", 2, &["tokenizer.json: cannot read: "], |_| {
        model(|dir| fs::remove_file(dir.join("tokenizer.json")).unwrap())
    }),
    ("DataError::not_json", 2, &["tokenizer.json:2: not JSON (", "column 1)"], |_| {
        model(|dir| fs::write(dir.join("tokenizer.json"), "{\n]").unwrap())
    }),
    (
        "DataError::tokenizer",
        2,
        &["tokenizer.json: not a tokenizer (", "expected a Hugging Face tokenizer.json"],
        |_| model(|dir| fs::write(dir.join("tokenizer.json"), "{}").unwrap()),
    ),
    ("DataError::tokenizer", 2, &["not a tokenizer (two tokens have the id 3)"], |_| {
        model(|dir| edit_json(&dir.join("tokenizer.json"), |t| t["model"]["vocab"]["b"] = 3.into()))
    }),
    (
        "DataError::tokenizer_setting",
        2,
        &["tokenizer_config.json: `eos_token` must be a text, or an object with `content`"],
        |_| {
            model(|dir| {
                fs::write(dir.join("tokenizer_config.json"), r#"{"eos_token": 3}"#).unwrap()
            })
        },
    ),
    (
        "DataError::tokenizer_setting",
        2,
        &["tokenizer_config.json: `chat_template` must be a text, or a list of {\"name\""],
        |_| {
            model(|dir| {
                let config = json!({"chat_template": [{"name": "rag", "template": "a"}]});
                fs::write(dir.join("tokenizer_config.json"), config.to_string()).unwrap();
            })
        },
    ),
    (
        "DataError::template",
        2,
        &[
            "chat_template.jinja: the chat template does not compile (",
            ", line 2 of the template); mend it, or give a `role_format` in tokenizer_config.json",
        ],
        |_| train_with("a\n{% if %}"),
    ),
    (
        "DataError::template",
        2,
        &["tokenizer_config.json: the chat template does not compile (unknown statement unheard"],
        |_| {
            model(|dir| {
                let config = json!({"chat_template": "{% unheard %}"});
                fs::write(dir.join("tokenizer_config.json"), config.to_string()).unwrap();
            })
        },
    ),
    (
        "DataError::render",
        2,
        &[
            "sentences.jsonl:1: ",
            "chat_template.jinja: the chat template does not write these messages (No questions, line 1 of",
        ],
        |_| train_with("{{ raise_exception('No questions') }}"),
    ),
    (
        "DataError::render",
        2,
        &[
            "the chat template does not write these messages (it takes more than 4000000 steps, line",
        ],
        |_| {
            let endless = "{% for i in range(99999) %}".repeat(3) + &"{% endfor %}".repeat(3);
            train_with(&endless)
        },
    ),
    (
        "DataError::not_a_prefix",
        2,
        &[
            "the chat template does not begin a conversation with its prompt: after \"say \" the prompt has",
            "\"now\", the conversation \"then\"; give a template or a `role_format` that does",
        ],
        |_| {
            let model = template("say {{ 'now' if add_generation_prompt else 'then' }}");
            let path = model.path().to_str().unwrap();
            try_in_empty(&["segment", "--model", path, "--prompt", "a", "--response", "b"])
        },
    ),
    (
        "DataError::role_format",
        2,
        &[
            "tokenizer_config.json: `role_format` must be",
            "role user is \"User:\"",
            "exactly one {}",
        ],
        |_| {
            model(|dir| {
                let format = json!({"system": "{}", "user": "User:", "assistant": "{}"});
                let config = json!({"eos_token": "</s>", "role_format": format});
                fs::write(dir.join("tokenizer_config.json"), config.to_string()).unwrap();
            })
        },
    ),
    (
        "DataError::unknown_token",
        2,
        &[
            "generation_config.json: `eos_token_id` is 500, which the tokenizer's vocabulary does not",
        ],
        |_| {
            model(|dir| {
                let path = dir.join("generation_config.json");
                edit_json(&path, |config| config["eos_token_id"] = 500.into());
            })
        },
    ),
    ("DataError::no_eos", 2, &["no end-of-sequence token; name one as `eos_token` in"], |_| {
        model(|dir| {
            for name in ["config.json", "generation_config.json"] {
                edit_json(&dir.join(name), |config| config["eos_token_id"] = json!(null));
            }
        })
    }),
    ("Error::Usage", 2, &["tokenizer.json has 200 token ids, but config.json says"], |_| {
        model(|dir| {
            fs::write(dir.join("tokenizer.json"), characters(200).to_string()).unwrap();
        })
    }),
    (
        "TooLong",
        2,
        &[
            "sentences.jsonl: a prompt with its response takes",
            "tokens, but the model was made for 16 (max_position_embeddings): lower",
        ],
        |_| model(|dir| config("max_position_embeddings", 16.into())(dir)),
    ),
    ("Error::Usage", 2, &["the embedded task needs a model of its own vocabulary"], |_| {
        let model = llama();
        try_in_empty(&["train-reward", "--model", model.path().to_str().unwrap()])
    }),
    ("Error::Usage", 2, &["give --prompt TEXT: this model is not the embedded task's"], |_| {
        let model = llama();
        try_in_empty(&["generate", "--model", model.path().to_str().unwrap()])
    }),
    (
        "NormalizerError::NonPositiveStd",
        2,
        &[
            "error: normalizer: the standard deviation is 0, expected more than 0: do the rewards vary?",
        ],
        |_| {
            // A reward model whose head is 0 gives every response one reward.
            let (run, model) = (TempDir::new().unwrap(), llama());
            let model = model.path().to_str().unwrap();
            let input = ["--model", model, "--data", SENTENCES, "--method", "bandit"];
            finish(run.path(), &["train-reward"], &input);
            fill(&run.path().join("bandit/reward/model"), "score.weight", 0.0);
            try_in(run, &[&["fit-normalizer"], &input[..]].concat())
        },
    ),
];

const SETTINGS: &[Row] = &[
    (
        "SettingsError::File",
        2,
        &["own.toml: cannot read:", "--settings expects a TOML file"],
        |_| try_in_empty(&["sft", "--settings", "no/own.toml"]),
    ),
    (
        "SettingsError::Toml",
        2,
        &["own.toml:4: unknown field `ppo.rolouts`: did you mean `ppo.rollouts`?"],
        |_| settings("seed = 1\n\n[ppo]\nrolouts = 3\n"),
    ),
    ("SettingsError::Toml", 2, &["own.toml:4: unknown field `rate`"], |_| {
        settings("[ppo]\nclip = 0.1\n[ppo.actor]\nrate = 1\n")
    }),
    ("SettingsError::Toml", 2, &["own.toml:1: unknown field `pppo`: did you mean `ppo`?"], |_| {
        settings("[pppo]\n")
    }),
    ("SettingsError::Toml", 2, &["own.toml:3: ", "expected usize", "in `ppo.epochs`"], |_| {
        settings("# text\n[ppo]\nepochs = \"x\"\n")
    }),
    ("SettingsError::Toml", 2, &["own.toml:2: unclosed table, expected `]`"], |_| {
        settings("seed = 1\n[ppo\n")
    }),
    (
        "SettingsError::Toml",
        2,
        &["--set ppo.rolouts=3: unknown field `ppo.rolouts`: did you mean"],
        |_| set("ppo.rolouts=3"),
    ),
    (
        "SettingsError::Toml",
        2,
        &["--set seed: expected key=value, such as ppo.iterations=24"],
        |_| set("seed"),
    ),
    ("SettingsError::Toml", 2, &["--set seed=-1: ", "expected u64", "in `seed`"], |_| {
        set("seed=-1")
    }),
    (
        "SettingsError::Toml",
        2,
        &["--set method=sequence: unknown variant `sequence`", "`segment_as_bandit`"],
        |_| set("method=sequence"),
    ),
    (
        "SettingsError::Range",
        2,
        &["own.toml:3: ppo.epochs = 0; expected a whole number from 1 to 100000000"],
        |_| settings("# text\n[ppo]\nepochs = 0\n"),
    ),
    ("SettingsError::Range", 2, &["own.toml:2: ppo.gamma = 1.5; expected in [0, 1]"], |_| {
        settings("[ppo]\ngamma = 1.5\n")
    }),
    (
        "SettingsError::Range",
        2,
        &["own.toml:2: ppo.actor.learning_rate = 0; expected above 0"],
        |_| settings("[ppo]\nactor.learning_rate = 0.0\n"),
    ),
    (
        "SettingsError::Range",
        2,
        &["--set model.kv_heads=3: model.kv_heads = 3; expected a divisor of the 2 query heads"],
        |_| set("model.kv_heads=3"),
    ),
    (
        "SettingsError::Range",
        2,
        &["--set model.head_dim=7: model.head_dim = 7; expected an"],
        |_| set("model.head_dim=7"),
    ),
    (
        "SettingsError::Range",
        2,
        &["model.hidden_size = 10000000; expected a model of at most 1e9 parameters, not 1.22e9"],
        |_| set("model.hidden_size=10000000"),
    ),
    ("SettingsError::Range", 2, &["model.rope_theta = -1; expected above 0"], |_| {
        set("model.rope_theta=-1")
    }),
    ("SettingsError::Range", 2, &["sampling.top_p = 0; expected in (0, 1]"], |_| {
        set("sampling.top_p=0")
    }),
    (
        "SettingsError::Range",
        2,
        &["segmentation.entropy_cutoff = -1; expected 0 or above, or inf"],
        |_| set("segmentation.entropy_cutoff=-1"),
    ),
    ("SettingsError::Range", 2, &["heads.init_std = -1; expected 0 or above"], |_| {
        set("heads.init_std=-1")
    }),
    ("SettingsError::Range", 2, &["data.held_out_share = 1; expected in [0, 1)"], |_| {
        set("data.held_out_share=1")
    }),
    (
        "SettingsError::Range",
        2,
        &["data.response_tokens = 1; expected a whole number from 2"],
        |_| set("data.response_tokens=1"),
    ),
    (
        "SettingsError::Range",
        2,
        &[
            "--set systems.group.size=3: systems.group.size = 3; expected a divisor of ppo.rollouts = 8",
        ],
        |_| try_in_empty(&["ppo", "--method", "grpo", "--set", "systems.group.size=3"]),
    ),
    (
        "SettingsError::Range",
        2,
        &["--set systems.spo.size=3: systems.spo.size = 3; expected a divisor of ppo.rollouts = 8"],
        |_| try_in_empty(&["ppo", "--method", "spo_chain", "--set", "systems.spo.size=3"]),
    ),
    (
        "SettingsError::Range",
        2,
        &["systems.drlc.spans = none; expected the path of a file, since annotator = \"file\""],
        |_| try_in_empty(&["ppo", "--method", "drlc", "--set", "systems.drlc.annotator=file"]),
    ),
    (
        "SettingsError::Range",
        2,
        &["systems.drlc.threshold = NaN; expected a number, inf or -inf"],
        |_| set("systems.drlc.threshold=nan"),
    ),
    ("SettingsError::Range", 2, &["systems.drlc.critic.end = \"\"; expected a text"], |_| {
        set("systems.drlc.critic.end=''")
    }),
    ("SettingsError::Range", 2, &["systems.drlc.recall = 1.5; expected in [0, 1]"], |_| {
        set("systems.drlc.recall=1.5")
    }),
    (
        "SettingsError::Range",
        2,
        &["systems.spo.replay_age = none; expected a number beside the other, 4"],
        |_| try_in_empty(&["ppo", "--method", "spo_tree", "--set", "systems.spo.replay_edges=4"]),
    ),
    (
        "SettingsError::Range",
        2,
        &["systems.spo.branches = [3, 2]; expected a product that divides ppo.rollouts = 8"],
        |_| try_in_empty(&["ppo", "--method", "spo_tree", "--set", "systems.spo.branches=[3,2]"]),
    ),
    (
        "SettingsError::Range",
        2,
        &["systems.spo.branches = 1; expected from 2 to 64 branches a level"],
        |_| set("systems.spo.branches=[1]"),
    ),
    (
        "SettingsError::Range",
        2,
        &["systems.spo.branches = []; expected a number of branches for each level"],
        |_| set("systems.spo.branches=[]"),
    ),
    (
        "Error::Usage",
        2,
        &["train-reward: task.reward = \"verdict\" judges by program and has no reward model"],
        |_| try_in_empty(&["train-reward", "--set", "task.reward=verdict"]),
    ),
    (
        "Error::Usage",
        2,
        &["a reward model's scores: task.reward = \"verdict\" judges by program"],
        |_| {
            let text = ["score", "--prompt", "write .", "--response", "dear ana"];
            try_in_empty(&[&text[..], &["--set", "task.reward=verdict"]].concat())
        },
    ),
    (
        "Error::Usage",
        2,
        &[
            "decode.kind = \"cards\": task.reward = \"verdict\" judges by program and has no reward model",
        ],
        |_| try_in_empty(&["evaluate", "--decode", "cards", "--set", "task.reward=verdict"]),
    ),
    (
        "SettingsError::Range",
        2,
        &["--set decode.beta=-1: decode.beta = -1; expected 0 or above"],
        |_| set("decode.beta=-1"),
    ),
    ("SettingsError::Range", 2, &["decode.alpha = 1.5; expected in [0, 1]"], |_| {
        set("decode.alpha=1.5")
    }),
    ("SettingsError::Toml", 2, &["--set decode.kind=rain:", "`best_of_n`, `args`"], |_| {
        set("decode.kind=rain")
    }),
    (
        "arguments",
        2,
        &["the subcommand 'alpaca-eval' cannot be used with '--decode <KIND>'"],
        |_| try_in_empty(&["evaluate", "--decode", "cards", "alpaca-eval"]),
    ),
    ("SettingsError::Range", 2, &["reproduce.methods = []; expected at least one method"], |_| {
        set("reproduce.methods=[]")
    }),
    (
        "Error::SamplingForPpo",
        2,
        &["PPO samples from the policy itself, since the KL", "(now 0.7, 0 and 1)"],
        |_| try_in_empty(&["ppo", "--set", "sampling.temperature=0.7"]),
    ),
    ("Error::Usage", 2, &["reward.margin_scale is 0.5, but no pair has scores: give"], |_| {
        model_and(|_| (), &["--set", "reward.margin_scale=0.5"])
    }),
    (
        "MemoryError",
        2,
        &[
            "sft needs about ",
            " are free; it takes ",
            " even with --set ",
            ": take a smaller model or more memory",
        ],
        |_| {
            let model = llama();
            let config = model.path().join("config.json");
            let text = fs::read_to_string(&config).unwrap();
            let large = text.replace("\"hidden_size\": 32", "\"hidden_size\": 16000000");
            fs::write(config, large).unwrap();
            let model = model.path().to_str().unwrap();
            try_in_empty(&["sft", "--model", model, "--data", SENTENCES])
        },
    ),
    ("Error::Usage", 2, &["sft on --data needs --model DIR to start from"], |_| {
        try_in_empty(&["sft", "--data", SENTENCES])
    }),
    (
        "Error::Usage",
        2,
        &["--preset small is for a pretrained model and the single stages"],
        |_| try_in_empty(&["reproduce", "--preset", "small"]),
    ),
    (
        "HubError::NotCached",
        2,
        &[
            "org/name@v1: not here, and no model of that name is in the Hub's cache /nowhere/hub; check the name, or",
            "run `hf download org/name --revision v1` (pip install huggingface_hub), or ",
        ],
        |_| try_in_empty(&["segment", "--model", "org/name@v1"]),
    ),
    (
        "HubError::NotCached",
        2,
        &["org/pairs: not here, and no data set", "`hf download org/pairs --repo-type dataset`"],
        |_| {
            let model = llama();
            let model = model.path().to_str().unwrap();
            try_in_empty(&["train-reward", "--model", model, "--data", "org/pairs:test"])
        },
    ),
    ("Error::Usage", 2, &["--model goes with the single stages"], |_| {
        try_in_empty(&["reproduce", "--model", "m"])
    }),
    ("Error::Usage", 2, &["--prompts goes with --data"], |_| {
        try_in_empty(&["ppo", "--prompts", SENTENCES])
    }),
    ("Error::Usage", 2, &["--what names a model of the run: leave it out, or --model"], |_| {
        try_in_empty(&["export", "--hf", "hf", "--what", "reward", "--model", "m"])
    }),
    ("Error::Usage", 2, &["src: holds files already; name a new folder with --hf"], |_| {
        let (model, src) = (llama(), concat!(env!("CARGO_MANIFEST_DIR"), "/src"));
        try_in_empty(&["export", "--hf", src, "--model", model.path().to_str().unwrap()])
    }),
    ("Error::Usage", 2, &["preferences samples pairs of the embedded task"], |_| {
        try_in_empty(&["preferences", "--data", SENTENCES])
    }),
    #[cfg(not(feature = "wgpu"))]
    (
        "DeviceError",
        2,
        &["--device wgpu: this build lacks it", "cargo build --release --features wgpu"],
        |_| try_in_empty(&["sft", "--device", "wgpu"]),
    ),
    #[cfg(feature = "wgpu")]
    ("DeviceError", 2, &["--device cuda: this build lacks it"], |_| {
        try_in_empty(&["sft", "--device", "cuda"])
    }),
    ("arguments", 2, &["'tpu' for '--device", "expected flex, wgpu or cuda"], |_| {
        try_in_empty(&["sft", "--device", "tpu"])
    }),
    ("arguments", 2, &["'flex:1' for '--device", "the CPU is one device; leave out"], |_| {
        try_in_empty(&["sft", "--device", "flex:1"])
    }),
    ("arguments", 2, &["'0GB' for '--shard-size", "a number of KB, MB or GB, such as 5GB"], |_| {
        try_in_empty(&["export", "--hf", "hf", "--shard-size", "0GB"])
    }),
    // What clap says.
    ("arguments", 2, &["unexpected argument '--sed'", "--help"], |_| {
        try_in_empty(&["sft", "--sed", "1"])
    }),
    ("arguments", 2, &["'all' for '--method <METHOD>'", "possible values: bandit,"], |_| {
        try_in_empty(&["sft", "--method", "all"])
    }),
    ("Error::Usage", 2, &["--columns goes with --data"], |_| {
        try_in_empty(&["sft", "--columns", "prompt=question"])
    }),
    (
        "arguments",
        2,
        &[
            "invalid value 'promt=a' for '--columns",
            "no row has the key \"promt\"; expected some of prompt,",
        ],
        |_| try_in_empty(&["sft", "--columns", "promt=a"]),
    ),
    ("arguments", 2, &["invalid value '-1' for '--seed <SEED>'"], |_| {
        try_in_empty(&["sft", "--seed=-1"])
    }),
    ("arguments", 2, &["unrecognized subcommand 'train'"], |_| try_in_empty(&["train"])),
    ("arguments", 2, &["invalid value '0' for '--samples <SAMPLES>'"], |_| {
        try_in_empty(&["generate", "--samples", "0"])
    }),
];

const RUN: &[Row] = &[
    (
        "DataError::unknown_prompt",
        2,
        &["spans.jsonl:2: the prompt is none of the run's"],
        |ready| marked(ready, "hugo and ben", json!([])),
    ),
    (
        "DataError::span_outside",
        2,
        &["spans.jsonl:2: spans[0] is 5 to 9 in a response of 8 characters; expected 0 <= start"],
        |ready| marked(ready, "ana", json!([{"start": 5, "end": 9, "label": 1}])),
    ),
    (
        "DataError::span_label",
        2,
        &["spans.jsonl:2: the label of spans[0] is 3; expected -1, 0 or 1"],
        |ready| marked(ready, "ana", json!([{"start": 5, "end": 8, "label": 3}])),
    ),
    ("DataError::span_overlap", 2, &["spans.jsonl:2: spans[0] and spans[1] overlap"], |ready| {
        let spans = [(0, 6), (5, 8)];
        let spans = spans.map(|(start, end)| json!({"start": start, "end": end, "label": 1}));
        marked(ready, "ana", json!(spans))
    }),
    (
        "DataError::response_again",
        2,
        &[
            "spans.jsonl:3: the same prompt and response as in row 2; put all its spans into one row",
        ],
        |ready| {
            let folder = TempDir::new().unwrap();
            let path = folder.path().join("spans.jsonl");
            let prompt = "write to ana about the lake . ana loves food , not music .";
            let row = json!({"prompt": prompt, "response": "dear ana", "spans": []});
            fs::write(&path, format!("\n{row}\n{row}\n")).unwrap();
            let spans = format!("systems.drlc.spans={}", path.display());
            let sets = ["--set", "task.reward=verdict", "--set", "systems.drlc.annotator=file"];
            let ppo = ["ppo", "--method", "drlc", "--set", &spans];
            trained(ready, |_| (), &[&ppo[..], &sets].concat())
        },
    ),
    (
        "SystemError::Settings",
        2,
        &["systems.drlc.critic.prefix: the tokenizer cannot encode", "the model's vocabulary"],
        |ready| {
            let ppo = ["ppo", "--method", "drlc", "--set", "task.reward=verdict"];
            let critic = ["systems.drlc.annotator=self", "systems.drlc.critic.prefix=zebra"];
            let critic = critic.map(|set| ["--set", set]).concat();
            trained(ready, |_| (), &[&ppo[..], &critic].concat())
        },
    ),
    (
        "SystemError::Settings",
        2,
        &["systems.drlc.annotator = \"program\" knows the clauses of the embedded task alone"],
        |_| {
            let (model, run) = (llama(), TempDir::new().unwrap());
            let given = ["--model", model.path().to_str().unwrap(), "--data", SENTENCES];
            let given = [&given[..], &["--method", "drlc"]].concat();
            finish(run.path(), &["train-reward", "fit-normalizer"], &given);
            try_in(run, &[&["ppo"], &given[..]].concat())
        },
    ),
    (
        "FolderError::Missing",
        2,
        &["sft: not there or not finished; run `segment-rlhf sft`"],
        |_| try_in_empty(&["ppo"]),
    ),
    (
        "FolderError::Missing",
        2,
        &["normalizer.json: not there", "run `segment-rlhf fit-normalizer --method token` first"],
        |ready| {
            let run = copy(ready);
            finish(run.path(), &["train-reward"], &["--method", "token"]);
            try_in(run, &["ppo", "--method", "token"])
        },
    ),
    (
        "FolderError::OtherSettings",
        2,
        &[
            "sft: started with other settings:\n  settings.seed: 0 there, 3 here\n",
            "name another folder with --run, remove this one, or give the same settings",
        ],
        |ready| trained(ready, |_| (), &["sft", "--seed", "3"]),
    ),
    (
        "LockError::Held",
        2,
        &[
            "sft: in use by process 17 on node-3 since 2026-01-02 03:04:05 UTC; wait until that ends, or name \
             another folder with --run",
        ],
        |_| {
            let run = TempDir::new().unwrap();
            let owner =
                json!({"host": "node-3", "process": 17, "since": "2026-01-02 03:04:05 UTC"});
            fs::write(run.path().join("sft.owner.json"), owner.to_string()).unwrap();
            let held = fs::File::create(run.path().join("sft.lock")).unwrap();
            held.lock().unwrap();
            try_in(run, &["sft"])
        },
    ),
    (
        "LockError::File",
        1,
        &[
            "sft.lock: cannot write: ",
            "mend what the system names, then run the same command again",
        ],
        |_| {
            let run = TempDir::new().unwrap();
            fs::create_dir(run.path().join("sft.lock")).unwrap();
            try_in(run, &["sft"])
        },
    ),
    (
        "FolderError::Corrupt",
        2,
        &[
            "normalizer.json: not the expected content: EOF",
            "line 1 column 11; remove the folder of",
        ],
        |ready| {
            let path = "segment/normalizer/normalizer.json";
            trained(ready, |run| fs::write(run.join(path), r#"{"method": "#).unwrap(), &["ppo"])
        },
    ),
    ("FolderError::Corrupt", 2, &["sft/settings.toml: not the expected content"], |ready| {
        trained(ready, |run| fs::write(run.join("sft/settings.toml"), "seed").unwrap(), &["sft"])
    }),
    (
        "FolderError::Corrupt",
        2,
        &[
            "metrics.jsonl: not the expected content: 2 lines, but the checkpoint was written after 4",
        ],
        |_| {
            let run = TempDir::new().unwrap();
            program(run.path(), &["sft", "--stop-after", "4"]).ended_with(130);
            fs::write(run.path().join("sft/metrics.jsonl"), "{}\n{}\n{\"half\": ").unwrap();
            try_in(run, &["sft"])
        },
    ),
    (
        "FolderError::File",
        2,
        &["sft/settings.toml: cannot read:", "check the path and its permissions"],
        |_| {
            let run = TempDir::new().unwrap();
            fs::create_dir_all(run.path().join("sft/settings.toml")).unwrap();
            try_in(run, &["sft"])
        },
    ),
    (
        "FolderError::NoGoodCheckpoint",
        2,
        &[
            "checkpoints: no checkpoint can be used: checkpoint step-00000002 is damaged \
             (policy.adamw: 3 bytes that are not the",
            "remove the folder to start the stage again",
        ],
        |_| {
            let run = TempDir::new().unwrap();
            program(run.path(), &["sft", "--stop-after", "2"]).ended_with(130);
            let path = "sft/checkpoints/step-00000002/policy.adamw";
            fs::write(run.path().join(path), "cut").unwrap();
            try_in(run, &["sft"])
        },
    ),
    (
        "Error::Mismatch",
        2,
        &["normalizer.json: made for the reward model 0123", "segment-rlhf fit-normalizer"],
        |ready| normalizer(ready, |file| file["reward_model"] = "0123456789abcdef".into()),
    ),
    (
        "Error::Mismatch",
        2,
        &["normalizer.json: made for the method token, but this run has segment"],
        |ready| normalizer(ready, |file| file["method"] = "token".into()),
    ),
    (
        "Error::Mismatch",
        2,
        &["normalizer.json: made for the rule Token, but this run has Entropy"],
        |ready| normalizer(ready, |file| file["actions"] = "token".into()),
    ),
    (
        "Error::Mismatch",
        2,
        &["reward.json: made for the rule", "set the same method and segmentation"],
        |ready| trained(ready, |_| (), &["ppo", "--set", "segmentation.entropy_cutoff=2"]),
    ),
    (
        "Error::Mismatch",
        2,
        &["reward.json: made for the EOS policy AsPublished", "set the same segmentation.eos"],
        |ready| trained(ready, |_| (), &["ppo", "--set", "segmentation.eos=included"]),
    ),
    (
        "Error::Mismatch",
        2,
        &[
            "reward.json: made for the reference model",
            "give the --model that the reward model was",
        ],
        |ready| {
            let other = TempDir::new().unwrap();
            finish(other.path(), &["sft"], &["--seed", "1"]);
            let reward = ready.join("segment/reward");
            let reward = ["--reward-model", reward.to_str().unwrap(), "--seed", "1"];
            try_in(other, &[&["fit-normalizer"], &reward[..]].concat())
        },
    ),
    (
        "NormalizerError::StdCrossesZero",
        2,
        // 0.5 + ln p is 0 at p = e^-0.5.
        &["normalizer.json: Std(p) = 1 ln p + 0.5 reaches 0 at p = 0.606531", "set std_floor"],
        |ready| normalizer(ready, |file| file["normalizer"] = location_aware(0.0, 1.0, None)),
    ),
    (
        "Error::UnusableNormalizer",
        2,
        &["normalizer.json: the standard deviation is 0, expected more than 0"],
        |ready| {
            let scalar = |file: &mut Value| {
                file["normalizer"] = json!({"kind": "scalar", "mean": 0.0, "std": 0.0});
            };
            normalizer(ready, scalar)
        },
    ),
    (
        "NormalizerError::InvalidFloor",
        2,
        &["normalizer.json: std_floor is -1, expected a finite number above 0"],
        |ready| normalizer(ready, |file| file["normalizer"] = location_aware(0.0, 0.0, Some(-1.0))),
    ),
    (
        "NormalizerError::NotFinite",
        2,
        &["normalizer.json: the mean at the first location is -inf, expected a finite number"],
        |ready| normalizer(ready, |file| file["normalizer"] = location_aware(1e308, 0.0, None)),
    ),
    (
        "Interrupted",
        130,
        &["stopped; run the same command again to go on from what is saved in", "sft"],
        |_| try_in_empty(&["sft", "--stop-after", "1"]),
    ),
    (
        "NonFinite",
        1,
        &[
            "the policy gradient of model.",
            "is not finite at step 1; the last good checkpoint is kept",
        ],
        |_| try_in_empty(&["sft", "--set", "sft.optimizer.learning_rate=1e30"]),
    ),
    (
        "Error::Alarm",
        1,
        &[
            "alarm length at step 0: ",
            " % of responses end at the length limit, above alarms.unfinished = 0; raise sampling.max_new_tokens",
            "Stopped by --stop-on; the same command goes on from what is saved in ",
        ],
        |ready| {
            let stop = ["--stop-on", "length"];
            let arguments = [&["ppo", "--set", "alarms.unfinished=0"], &stop[..]].concat();
            trained(ready, |_| (), &arguments)
        },
    ),
    (
        "TooLong",
        2,
        &[
            "the embedded task: a prompt with its response takes 100000",
            "(max_position_embeddings): lower data.total_tokens",
            "or sampling.max_new_tokens",
        ],
        |ready| trained(ready, |_| (), &["ppo", "--set", "sampling.max_new_tokens=100000000"]),
    ),
    ("Error::Usage", 2, &["--response is empty; give at least one token"], |ready| {
        trained(ready, |_| (), &["segment", "--response", ""])
    }),
    #[cfg(target_os = "linux")]
    ("Error::Output", 1, &["standard output: No space left on device"], |ready| {
        let run = copy(ready);
        let output = crate::support::program_into(run.path(), &["segment"], "/dev/full");
        Tried(run, output)
    }),
    #[cfg(unix)]
    (
        "FolderError::File",
        1,
        &[
            "/sft/",
            ": cannot write: File too large",
            "free space or mend what the system names, then run the same command again: \
             the last checkpoint is intact",
        ],
        |_| limited(TempDir::new().unwrap(), 1, &["sft"]),
    ),
    #[cfg(unix)]
    (
        "CheckpointError::File",
        1,
        &["model.safetensors: cannot write: File too large", "then run the same command again"],
        |_| limited(TempDir::new().unwrap(), 8, &["sft", "--set", "checkpoint.every=100"]),
    ),
    #[cfg(unix)]
    (
        "DataError::File",
        1,
        &["tokenizer.json: cannot write: File too large", "then run the same command again"],
        |_| {
            // A model smaller than its tokenizer.
            let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny");
            let model = copy(&tiny);
            let tokenizer = model.path().join("tokenizer.json");
            let text = fs::read_to_string(&tokenizer).unwrap();
            fs::write(&tokenizer, text.replace("<pad>", &"x".repeat(20_000))).unwrap();
            let config = model.path().join("tokenizer_config.json");
            edit_json(&config, |config| config["pad_token"] = json!(null));
            let data = model.path().join("data.jsonl");
            let rows = ["a", "b"].map(|text| json!({"prompt": text, "response": "b"}).to_string());
            fs::write(&data, rows.join("\n")).unwrap();
            let model = model.path().to_str().unwrap();
            let input = ["sft", "--model", model, "--data", data.to_str().unwrap()];
            limited(TempDir::new().unwrap(), 12, &input)
        },
    ),
];

/// A command on the tiny checkpoint and files of these texts, each argument `@i` standing for file i.
fn on_files(texts: &[&str], arguments: &[&str]) -> Tried {
    let (model, files) = (llama(), TempDir::new().unwrap());
    let path = |i: usize| files.path().join(format!("{i}.jsonl")).to_str().unwrap().to_owned();
    for (i, text) in texts.iter().enumerate() {
        fs::write(path(i), text).unwrap();
    }
    let named = |argument: &&str| match argument.strip_prefix('@') {
        Some(i) => path(i.parse().unwrap()),
        None => argument.replace("MODEL", model.path().to_str().unwrap()),
    };
    let arguments: Vec<String> = arguments.iter().map(named).collect();
    let run = TempDir::new().unwrap();
    let output = program(run.path(), &arguments.iter().map(String::as_str).collect::<Vec<_>>());
    Tried(run, output)
}

/// Answers these questions, where an earlier run left this partial file; both are refused or left alone.
fn answers(benchmark: &str, questions: &str, partial: Option<&str>) -> Tried {
    let folder = TempDir::new().unwrap();
    let (out, rest) = (folder.path().join("out"), folder.path().join("out.partial"));
    if let Some(partial) = partial {
        fs::write(&rest, partial).unwrap();
    }
    let arguments = ["evaluate", benchmark, "--model", "MODEL", "--questions", "@0", "--out"];
    let tried = on_files(&[questions], &[&arguments[..], &[out.to_str().unwrap()]].concat());
    assert!(!out.exists());
    assert_eq!(fs::read_to_string(&rest).ok().as_deref(), partial);
    tried
}

/// Compares the answers in the files 0 and 1 by the gold reward.
fn gold(a: &str, b: &str) -> Tried {
    on_files(&[a, b], &["evaluate", "win-rate", "@0", "@1", "--judge", "gold"])
}

const BENCHMARKS: &[Row] = &[
    ("DataError::no_rows", 2, &["0.jsonl: no rows; expected {\"instruction\"}"], |_| {
        answers("alpaca-eval", "\n", None)
    }),
    (
        "DataError::missing_key",
        2,
        &["0.jsonl:2: the key `turns` is missing; a row is {\"question_id\", \"turns\"} (v0.1) or"],
        |_| {
            let good = r#"{"uid": "a", "prompt": "p"}"#;
            answers("arena-hard", &format!("{good}\n{{\"question_id\": 1}}"), None)
        },
    ),
    (
        "DataError::wrong_type",
        2,
        &["0.jsonl:1: `turns[0].content` is a list; expected a text"],
        |_| answers("arena-hard", r#"{"question_id": 1, "turns": [{"content": ["t"]}]}"#, None),
    ),
    (
        "DataError::wrong_type",
        2,
        &["`turns` is an empty list; expected a list that is not"],
        |_| answers("mt-bench", r#"{"question_id": 1, "category": "math", "turns": []}"#, None),
    ),
    (
        "BenchmarkError::SameQuestion",
        2,
        &["0.jsonl:2: the question \"a\" a second time; each must have its own identifier"],
        |_| {
            let row = r#"{"uid": "a", "prompt": "p"}"#;
            answers("arena-hard", &format!("{row}\n{row}"), None)
        },
    ),
    (
        "TooLong",
        2,
        &[
            "0.jsonl:1: a prompt with its response takes",
            "but the model was made for 512 (max_position_embeddings): remove the question",
        ],
        |_| answers("alpaca-eval", &format!("{{\"instruction\": \"{}\"}}", "a".repeat(600)), None),
    ),
    (
        "BenchmarkError::OtherAnswers",
        2,
        &[
            "out.partial: answers of an interrupted run with other benchmark: \"mt-bench\" there",
            "give the same to go on, or remove the file",
        ],
        |_| {
            answers(
                "alpaca-eval",
                r#"{"instruction": "p"}"#,
                Some("{\"benchmark\": \"mt-bench\"}\n"),
            )
        },
    ),
    (
        "BenchmarkError::WithoutQuestion",
        2,
        &["0.jsonl:1: an answer without the text of its question; give --questions FILE"],
        |_| {
            let row = r#"{"question_id": 1, "choices": [{"index": 0, "turns": ["t"]}]}"#;
            gold(row, row)
        },
    ),
    (
        "BenchmarkError::NothingInCommon",
        2,
        &["0.jsonl and ", "1.jsonl answer no question in common"],
        |_| {
            let row = |text| format!(r#"{{"instruction": "{text}", "output": "o"}}"#);
            gold(&row("a"), &row("b"))
        },
    ),
    (
        "BenchmarkError::NoGold",
        2,
        &["0.jsonl:1: not a request of the embedded task", "give --judge reward"],
        |_| {
            let row = r#"{"instruction": "What?", "output": "o"}"#;
            gold(row, row)
        },
    ),
    (
        "DataError::no_response",
        2,
        &["0.jsonl:1: `messages` must end with a message of the"],
        |_| on_files(&[r#"{"messages": [{"role": "user", "content": "p"}]}"#], &["score", "@0"]),
    ),
    ("Error::Usage", 2, &["reward-bench needs --data FILE with RewardBench's pairs"], |_| {
        on_files(&[], &["evaluate", "reward-bench"])
    }),
    ("Error::Usage", 2, &["--actions goes with the folder of a published reward model"], |ready| {
        let text = ["score", "--prompt", "a", "--response", "b", "--actions", "token"];
        trained(ready, |_| (), &text)
    }),
    ("Error::Usage", 2, &["--actions segment cuts where the reference model is unsure"], |_| {
        let text = ["score", "--prompt", "a", "--response", "b", "--actions", "segment"];
        on_files(&[], &[&text[..], &["--reward-model", "MODEL"]].concat())
    }),
    ("Error::Usage", 2, &["reward model and reference model must share a tokenizer"], |ready| {
        let text = ["score", "--prompt", "a", "--response", "b", "--reward-model", "MODEL"];
        let reference = ready.join("sft/model");
        on_files(&[], &[&text[..], &["--model", reference.to_str().unwrap()]].concat())
    }),
    ("CheckpointError::Tensors", 2, &["score.weight"], |_| {
        let text = ["score", "--prompt", "a", "--response", "b", "--reward-model", "MODEL"];
        on_files(&[], &text)
    }),
    ("arguments", 2, &["expected a number of at least 0"], |_| {
        on_files(&[], &["evaluate", "mt-bench", "--temperature", "nan"])
    }),
    ("arguments", 2, &["required arguments were not provided", "--judge <JUDGE>"], |_| {
        on_files(&[], &["evaluate", "win-rate", "a", "b"])
    }),
];

/// The cells of the first of these experiment files, each a name and a text, with these arguments.
fn experiments(files: &[(&str, &str)], arguments: &[&str]) -> Tried {
    let folder = TempDir::new().unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    let first = folder.path().join(files[0].0);
    try_in_empty(&[&["ablate", first.to_str().unwrap()], arguments].concat())
}

/// The experiment file `own.toml` with a title and this text.
fn experiment(text: &str) -> Tried {
    experiments(&[("own.toml", &format!("title = 't'\n{text}"))], &["--dry-run"])
}

/// A file that includes `one.toml`, with an arm, and whatever else stands in `rest`.
fn include(rest: &str) -> Tried {
    let own = format!("title = 't'\ninclude = ['one.toml']\n{rest}");
    experiments(&[("own.toml", &own), ("one.toml", "title = '1'\n[arms]\na = {}")], &["--dry-run"])
}

/// A command on the folder of a grid in which `edit` has changed something.
fn grid(edit: fn(&Path), command: &str) -> Tried {
    let (run, file) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let path = file.path().join("own.toml");
    fs::write(&path, "title = 't'\n[arms]\na = {}").unwrap();
    let ablate = ["ablate", path.to_str().unwrap()];
    // It ends before the first cell does.
    program(run.path(), &[&ablate[..], &["--stop-after", "1"]].concat()).ended_with(130);
    edit(run.path());
    let own = [command];
    let read = [command, "--method", "token"];
    match command {
        "ablate" => try_in(run, &ablate),
        "generate" => try_in(run, &read),
        _ => try_in(run, &own),
    }
}

/// A command in the folder `run`, where these commands of Slurm, each a shell script, are the only ones.
fn on_cluster(run: TempDir, commands: &[(&str, &str)], arguments: &[&str]) -> Tried {
    let folder = TempDir::new().unwrap();
    for (name, script) in commands {
        let path = folder.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        output(Command::new("chmod").arg("+x").arg(path)).ended_with(0);
    }
    let only = [("PATH", folder.path().to_str().unwrap())];
    let output = program_with_env(run.path(), arguments, &only);
    Tried(run, output)
}

/// Submits a grid of one arm with these further arguments.
fn submit(run: TempDir, commands: &[(&str, &str)], further: &[&str]) -> Tried {
    let path = run.path().join("own.toml");
    fs::write(&path, "title = 't'\n[arms]\na = {}").unwrap();
    let arguments = ["ablate", path.to_str().unwrap(), "--submit", "slurm"];
    on_cluster(run, commands, &[&arguments[..], further].concat())
}

/// The same in an empty folder.
fn submit_new(commands: &[(&str, &str)], further: &[&str]) -> Tried {
    submit(TempDir::new().unwrap(), commands, further)
}

/// Runs the task `task` of a submission in which `edit` has changed something.
fn element(edit: fn(&mut Value), task: &str) -> Tried {
    let Tried(run, output) = submit_new(&[LIMIT, ("sbatch", "echo 7")], &[]);
    output.ended_with(0);
    let dir = run.path().join("submit/1");
    edit_json(&dir.join("plan.json"), edit);
    on_cluster(run, &[], &["ablate", "--element", dir.to_str().unwrap(), task])
}

const LIMIT: (&str, &str) = ("scontrol", "echo 'MaxArraySize            = 1001'");

const EARLIER: &[&str] =
    &["an earlier version's `reproduce` wrote here", "name another --run, or remove the folder"];

/// A command on a folder with this file, as `reproduce` left it before it was a grid's experiment.
fn earlier(file: &str, text: &str, command: &str) -> Tried {
    let run = TempDir::new().unwrap();
    let path = run.path().join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    try_in(run, &[command])
}

const GRIDS: &[Row] = &[
    ("GridError::Read", 2, &["none.toml: cannot read: No such file", "an experiment file"], |_| {
        try_in_empty(&["ablate", "none.toml"])
    }),
    ("GridError::Read", 2, &["none.toml: cannot read: ", "own.toml:2 names it as base"], |_| {
        experiment("base = 'none.toml'\n[arms]\na = {}")
    }),
    ("GridError::Read", 2, &["none.toml: cannot read: ", "own.toml:4 includes it"], |_| {
        experiment("include = [\n\n'none.toml']")
    }),
    ("GridError::File", 2, &["own.toml:4: duplicate key"], |_| {
        experiment("[arms]\na = { method = 'token' }\na = { method = 'bandit' }")
    }),
    ("GridError::File", 2, &["own.toml:3: unknown field `axis`, expected one of `title`"], |_| {
        experiment("\naxis = 3\n[arms]\na = {}")
    }),
    (
        "SettingsError::Toml",
        2,
        &["own.toml:4: arm \"b\": unknown field `ppo.clipp`: did you mean `ppo.clip`?"],
        |_| experiment("[arms]\na = {}\nb = { ppo.clipp = 1 }"),
    ),
    ("SettingsError::Range", 2, &["own.toml:3: axis \"task.pairs\": task.pairs = 0; exp"], |_| {
        experiment("[axes]\n'task.pairs' = [0]")
    }),
    ("GridError::File", 2, &["own.toml: no experiment; give [arms] or [axes], or"], |_| {
        experiment("")
    }),
    ("GridError::File", 2, &["own.toml:3: the axis \"task.pairs\" has no values; give"], |_| {
        experiment("[axes]\n'task.pairs' = []")
    }),
    ("GridError::File", 2, &["own.toml:2: `ours` names \"b\", but the arms are [\"a\"]"], |_| {
        experiment("ours = ['b']\n[arms]\na = {}")
    }),
    (
        "GridError::File",
        2,
        &["own.toml:3: axis \"seed\": `seed` holds for all arms; give --seed, --seeds"],
        |_| experiment("[axes]\nseed = [1, 2]"),
    ),
    (
        "GridError::File",
        2,
        &["own.toml:3: `axes` beside `include`; a file that includes others has no experiment"],
        |_| include("[axes]"),
    ),
    (
        "GridError::File",
        2,
        &["own.toml:2: ", "own.toml includes itself; take one of them out"],
        |_| experiment("include = ['own.toml']"),
    ),
    (
        "GridError::File",
        2,
        &["one.toml: a second experiment \"one\", after ", "so rename one, or include it once"],
        |_| {
            let own = "title = 't'\ninclude = ['one.toml', 'one.toml']";
            let one = ("one.toml", "title = '1'\n[arms]\na = {}");
            experiments(&[("own.toml", own), one], &["--dry-run"])
        },
    ),
    (
        "GridError::File",
        2,
        &["own.toml:4: \"b\" has the same settings as \"a\"; take one of them out or change"],
        |_| experiment("[arms]\na = {}\nb = { method = 'segment' }"),
    ),
    (
        "GridError::NoGrid",
        2,
        &["no grid.json and no stage; name the --run of a stage, or the folder that"],
        |_| try_in_empty(&["status"]),
    ),
    (
        "GridError::OtherFormat",
        2,
        &["grid.json: format 7, but this program reads format 2; use the program that wrote it"],
        |_| {
            grid(
                |run| edit_json(&run.join("grid.json"), |grid| grid["format"] = 7.into()),
                "status",
            )
        },
    ),
    (
        "GridError::OtherFormat",
        2,
        &["grid.json: format 7, but this program reads format 2; use the program that wrote it"],
        |_| {
            grid(
                |run| edit_json(&run.join("grid.json"), |grid| grid["format"] = 7.into()),
                "ablate",
            )
        },
    ),
    ("GridError::EarlierLayout", 2, EARLIER, |_| {
        earlier("seed-0/sft/summary.json", "{}", "reproduce")
    }),
    ("GridError::EarlierLayout", 2, EARLIER, |_| {
        earlier(
            "results.json",
            r#"{"version": "0.1.0", "device": "flex", "cells": []}"#,
            "reproduce",
        )
    }),
    ("GridError::EarlierLayout", 2, EARLIER, |_| {
        earlier("seed-3/sft/summary.json", "{}", "status")
    }),
    ("GridError::EarlierLayout", 2, EARLIER, |_| {
        earlier("seed-3/sft/summary.json", "{}", "report")
    }),
    ("GridError::EarlierLayout", 2, EARLIER, |_| {
        grid(|run| fs::create_dir(run.join("seed-12")).unwrap(), "ablate")
    }),
    ("Error::Usage", 2, &["no cell of the method token with seed 0; give --method and"], |_| {
        grid(|_| (), "generate")
    }),
    ("GridError::NothingFinished", 2, &["no cell is finished and none has a log"], |_| {
        grid(|run| fs::remove_dir_all(run.join("store")).unwrap(), "report")
    }),
    ("FolderError::Corrupt", 2, &["grid.json: not the expected content: EOF while"], |_| {
        grid(|run| fs::write(run.join("grid.json"), "{").unwrap(), "status")
    }),
    (
        "GridError::Cells",
        1,
        &[
            "1 of 1 cells failed, the first one with: the policy gradient",
            "run the same command again",
        ],
        |_| {
            let text = "title = 't'\n[arms]\na = { sft.optimizer.learning_rate = 1e30 }";
            experiments(&[("own.toml", text)], &[])
        },
    ),
    (
        "GridError::NoSlurm",
        2,
        &["scontrol: cannot run: No such file", "--jobs N runs a grid without Slurm"],
        |_| submit_new(&[], &[]),
    ),
    (
        "GridError::Slurm",
        2,
        &[
            "error: sbatch: sbatch: error: invalid partition specified: nope; sbatch: error: no; mend what Slurm names",
            "`sinfo` lists partitions",
        ],
        |_| {
            let script = "echo 'sbatch: error: invalid partition specified: nope\nsbatch: error: no' >&2; exit 1";
            submit_new(&[LIMIT, ("sbatch", script)], &["--sbatch", "--partition=nope"])
        },
    ),
    (
        "GridError::NoArrays",
        2,
        &["this cluster allows no job arrays (MaxArraySize = 0); run `ablate` with --jobs inside"],
        |_| submit_new(&[("scontrol", "echo 'MaxArraySize = 0'")], &[]),
    ),
    (
        "GridError::Queued",
        2,
        &["submit/1: its jobs 7 7 7 7 7 7 7 are still queued; let them end, or `scancel 7 7"],
        |_| {
            let Tried(run, output) = submit_new(&[LIMIT, ("sbatch", "echo 7")], &[]);
            output.ended_with(0);
            let queue = ("squeue", "echo '7|PENDING|Priority||(null)'");
            submit(run, &[LIMIT, queue], &[])
        },
    ),
    (
        "GridError::NotReady",
        1,
        &["error: preferences needs ", "store/sft-", "which is not finished; submit again"],
        |_| element(|_| (), "1"),
    ),
    (
        "GridError::Changed",
        1,
        &["submit/1: the model, the data or the program changed since it was submitted"],
        |_| element(|plan| plan["tasks"][0] = "sft-0".into(), "0"),
    ),
    (
        "GridError::Changed",
        1,
        &["submit/1: the model, the data or the program changed", "or it has no such stage"],
        |_| element(|_| (), "6"),
    ),
    ("Error::Usage", 2, &["--element: x is no number"], |_| element(|_| (), "x")),
    ("Error::Usage", 2, &["--sbatch: a line break in the options; give them on one line"], |_| {
        submit_new(&[LIMIT], &["--sbatch", "--time=1\n--time=2"])
    }),
    ("arguments", 2, &["--submit <CLUSTER>"], |_| {
        experiments(&[("own.toml", "")], &["--sbatch", "--time=1"])
    }),
    ("Error::Usage", 2, &["base files with different seeds: give --seed"], |_| {
        let files = [
            ("own.toml", "title = 't'\ninclude = ['one.toml', 'two.toml']"),
            ("one.toml", "title = '1'\n[arms]\na = {}"),
            ("two.toml", "title = '2'\nbase = 'base.toml'\n[arms]\na = {}"),
            ("base.toml", "seed = 3"),
        ];
        experiments(&files, &["--dry-run"])
    }),
    ("Error::Usage", 2, &["name the folder of one grid, such as runs/table1"], |_| {
        try_in_empty(&["status", "runs/table1"]) // and --run
    }),
    ("Error::Usage", 2, &["--method goes with single stages: the arms have methods"], |_| {
        experiments(&[("own.toml", "title = 't'")], &["--method", "token"])
    }),
    (
        "SettingsError::Range",
        2,
        &["--set seed=9007199254740993: seed = 9007199254740993; exp"],
        |_| {
            let text = "title = 't'\n[arms]\na = {}";
            experiments(&[("own.toml", text)], &["--seed", "9007199254740993"])
        },
    ),
    ("arguments", 2, &["invalid value '0' for '--jobs <JOBS>'"], |_| {
        experiments(&[("own.toml", "")], &["--jobs", "0"])
    }),
    ("arguments", 2, &["invalid value '0' for '--seeds <SEEDS>'"], |_| {
        experiments(&[("own.toml", "")], &["--seeds", "0"])
    }),
];

/// Errors of the library that no command meets, each with the reason.
const UNREACHABLE: &[(&str, &str)] = &[
    ("DataError::limit", "the settings refuse such limits first"),
    #[cfg(feature = "parquet")]
    ("DataError::without_parquet", "this build reads Parquet"),
    #[cfg(not(feature = "parquet"))]
    ("DataError::parquet", "this build reads no Parquet"),
    #[cfg(not(feature = "parquet"))]
    ("DataError::compression", "this build reads no Parquet"),
    ("HubError::Partial", "needs a cache: hub.rs has one"),
    ("HubError::File", "needs a server: hub.rs has one"),
    ("HubError::Broken", "needs a server: hub.rs has one"),
    ("FolderError::OtherRank", "needs two processes: ranks.rs has them"),
    ("FolderError::NotShared", "needs two processes: ranks.rs has them"),
    ("Error::Rank", "a prefix, where another rank than the first fails alone"),
    ("Error::OutOfMemory", "needs a GPU: the test of stage::memory shows it"),
    ("Error::Normalizer", "a prefix: NormalizerError::NonPositiveStd shows it"),
    ("LockError::Lost", "needs a process that was paused: locks.rs has one"),
    ("LockError::Unsupported", "a test has no such file system: the lock's own tests show it"),
    ("NormalizerError::TooFewPoints", "every response has a reward"),
    ("NormalizerError::LengthMismatch", "the stage passes as many x as y"),
    ("NormalizerError::OneLocation", "the stage then fits a scalar"),
    ("NormalizerError::InvalidEpsilon", "the stage passes 1.35"),
    ("NormalizerError::NotConverged", "the Huber regression settles on finite rewards, or nearly"),
    ("NormalizerError::InvalidLocation", "a location is 1 / a positive number of tokens"),
    ("SegmentationError::InvalidCutoff", "the settings refuse such cutoffs first"),
    ("SegmentationError::Empty", "a response has a token, and EOS alone is a segment"),
    ("SegmentationError::LengthMismatch", "both come from the same response"),
];

#[track_caller]
fn check(rows: &[Row], ready: &Path) {
    for (error, code, texts, provoke) in rows {
        let Tried(run, output) = provoke(ready);
        let output = output.ended_with(*code).says(texts);
        let said = output.stderr.lines().filter(|line| line.starts_with("error: ")).count();
        assert_eq!(said, 1, "{error} is said once: {}", output.stderr);
        assert_eq!(output.stdout, "", "{error}: a result is printed for a refused command");
        let half = |path: &PathBuf| path.iter().any(|part| part.to_string_lossy().starts_with('.'));
        let left = files(run.path());
        assert!(!left.iter().any(half), "{error}: half-written: {left:?}");
    }
}

#[test]
fn every_error_in_data_names_its_file_and_line() {
    check(DATA, Path::new(""));
}

#[test]
fn every_error_in_a_model_names_its_file() {
    check(MODEL, Path::new(""));
}

#[test]
fn every_error_in_settings_and_arguments_names_its_origin() {
    check(SETTINGS, Path::new(""));
}

#[test]
fn every_error_in_a_run_says_what_to_do() {
    let ready = TempDir::new().unwrap();
    finish(ready.path(), &["sft", "train-reward", "fit-normalizer"], &[]);
    check(RUN, ready.path());
}

#[test]
fn every_error_in_a_benchmark_names_its_file_or_argument() {
    let ready = TempDir::new().unwrap();
    finish(ready.path(), &["sft", "train-reward"], &[]);
    check(BENCHMARKS, ready.path());
}

#[test]
fn every_error_in_a_grid_names_its_file_and_line() {
    check(GRIDS, Path::new(""));
}

#[test]
fn every_error_in_the_source_has_a_row() {
    let reached = [DATA, MODEL, SETTINGS, RUN, BENCHMARKS, GRIDS]
        .concat()
        .into_iter()
        .map(|(error, ..)| error);
    let unreached = UNREACHABLE.iter().map(|(error, _)| *error);
    let listed: BTreeSet<String> =
        reached.chain(unreached).filter(|error| *error != "arguments").map(str::to_owned).collect();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let in_source: BTreeSet<String> = files(&source)
        .iter()
        .flat_map(|file| errors_in(&fs::read_to_string(source.join(file)).unwrap()))
        .collect();
    assert!(in_source.len() > 30, "{in_source:?}");
    let missing: Vec<_> = in_source.difference(&listed).collect();
    assert!(missing.is_empty(), "without a row: {missing:?}");
    if cfg!(target_os = "linux") {
        let gone: Vec<_> = listed.difference(&in_source).collect();
        assert!(gone.is_empty(), "not in the source: {gone:?}");
    }
}

/// The errors that a source file declares with a text of their own: `Enum::Variant`, or a struct; of faults in data,
/// which share a variant, `DataError::function`.
fn errors_in(source: &str) -> Vec<String> {
    let word = |text: &str| -> String {
        text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let (mut found, mut container) = (Vec::new(), String::new());
    let mut lines = source.lines().map(str::trim);
    while let Some(mut line) = lines.next() {
        if let Some(name) = line.strip_prefix("pub enum ") {
            container = word(name);
        }
        let fault = ["row ", "file ", "text "].iter().find_map(|kind| line.strip_prefix(kind));
        if let Some(name) = fault.filter(|_| container == "DataError") {
            found.push(format!("{container}::{}", word(name)));
        }
        if !line.starts_with("#[error(") || line == "#[error(transparent)]" {
            continue;
        }
        while !line.ends_with(")]") {
            line = lines.next().expect("the attribute ends");
        }
        let declared = lines.next().expect("an error stands below its text");
        found.push(match declared.strip_prefix("pub struct ") {
            Some(name) => word(name),
            None => format!("{container}::{}", word(declared)),
        });
    }
    found.retain(|error| error != "DataError::Refused");
    found
}

#[test]
fn a_value_out_of_range_names_the_line_that_gave_it_or_its_section() {
    let refused = |text: &str, sets: &[String]| {
        let own = ("own.toml".to_owned(), text.to_owned());
        Settings::resolve(&[own], sets).unwrap_err().to_string()
    };
    let both = "[model]\nheads = 3\nkv_heads = 2\n";
    assert!(refused(both, &[]).starts_with("own.toml:3: model.kv_heads = 2; expected a divisor"));
    // The default of 4 stands nowhere in the file.
    assert!(
        refused("# text\n[model]\nheads = 3\n", &[]).starts_with("own.toml:2: model.kv_heads = 4")
    );
    // The last that gives the key is the one to mend.
    let set = ["model.kv_heads=5".to_owned()];
    assert!(refused(both, &set).starts_with("--set model.kv_heads=5: model.kv_heads = 5"));
    let dotted = "[model]\nkv_heads = 1\n[ppo.actor]\nbeta_1 = 1.0\n";
    assert!(
        refused(dotted, &set[..0]).starts_with("own.toml:4: ppo.actor.beta_1 = 1; expected in")
    );
}
