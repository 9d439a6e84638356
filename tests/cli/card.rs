//! Model cards of exports: what they say, and that their Python gives the rewards that `score` gives.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    SENTENCES, edit_json, files, finish, json_lines, llama, program, python_with,
};

/// Runs the Python of the card in each folder, there, and `segment_rewards` over the rows of the file beside each; prints
/// the results as a list of lists.
const DRIVER: &str = "\
import json, os, re, sys
results = []
for folder, texts in zip(sys.argv[1::2], sys.argv[2::2]):
    os.chdir(folder)
    card = open('README.md').read()
    [snippet] = re.findall(r'```python\\n(.*?)```', card, re.DOTALL)
    names = {}
    with open(os.devnull, 'w') as said:
        sys.stdout, kept = said, sys.stdout
        exec(snippet, names)
        sys.stdout = kept
    rows = [json.loads(line) for line in open(texts)] if 'segment_rewards' in names else []
    results.append([names['segment_rewards'](row['prompt'], row['response']) for row in rows])
print(json.dumps(results))
";

fn export(run: &Path, to: &Path, arguments: &[&str]) -> String {
    let start = ["export", "--hf", to.to_str().unwrap()];
    program(run, &[&start, arguments].concat()).ended_with(0);
    fs::read_to_string(to.join("README.md")).unwrap()
}

/// The cutoff that half of a response's entropies are above.
fn half(run: &Path, arguments: &[&str], [prompt, response]: [&str; 2]) -> String {
    let text = ["segment", "--json", "--prompt", prompt, "--response", response];
    let cut = program(run, &[&text, arguments].concat()).ended_with(0).stdout;
    let cut: Value = serde_json::from_str(&cut).unwrap();
    let tokens = cut["tokens"].as_array().unwrap();
    let mut entropies: Vec<f64> =
        tokens.iter().map(|token| token["entropy"].as_f64().unwrap()).collect();
    entropies.sort_by(f64::total_cmp);
    let middle = entropies.len() / 2;
    let cutoff = (entropies[middle - 1] + entropies[middle]) / 2.0;
    format!("segmentation.entropy_cutoff={cutoff}")
}

const TEMPLATE: &str = "{% for m in messages %}{{ m.role + ': ' + m.content }}{% if m.role == 'assistant' %}\
    {{ eos_token }}{% else %}{{ '\\n' }}{% endif %}{% endfor %}\
    {% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}";

const METHODS: [&str; 4] = ["bandit", "sentence", "token", "segment"];

/// A reward model's folder, its texts, and what `score` says of them.
struct Case {
    reward: PathBuf,
    texts: PathBuf,
    scored: Vec<Value>,
}

/// Trains a reward model and fits its normalizer, exports it and the reference model, and scores texts.
fn case(run: &Path, at: &Path, method: &str, sets: &[&str], texts: &[[&str; 2]]) -> Case {
    let own = [&["--method", method], sets].concat();
    finish(run, &["train-reward", "fit-normalizer"], &own);
    let (reward, file) = (at.join("reward"), at.join("texts.jsonl"));
    let card = export(run, &reward, &[&["--what", "reward"], &own[..]].concat());
    assert!(card.contains(&format!("# Reward model of the method `{method}`")), "{card}");
    export(run, &at.join("reference"), &[&["--what", "reference"], &own[..]].concat());
    let row = |[prompt, response]: &[&str; 2]| {
        json!({"prompt": [{"role": "user", "content": prompt}], "response": response}).to_string()
    };
    fs::write(&file, texts.iter().map(row).collect::<Vec<_>>().join("\n")).unwrap();
    let score = ["score", file.to_str().unwrap(), "--normalized", "--json"];
    let scored = program(run, &[&score, &own[..]].concat()).ended_with(0).stdout;
    let scored = scored.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    Case { reward, texts: file, scored }
}

#[test]
fn the_python_on_a_card_gives_the_rewards_that_score_gives() {
    let all = TempDir::new().unwrap();
    let at = |name: &str| all.path().join(name);
    let letters = [
        "write to ana about the harbor . ana loves music and nature , not history .",
        "write to ben about the lake . ben loves food and music , not nature .",
    ];
    let letters = [
        [
            letters[0],
            "dear ana , music : choirs sing superb hymns . nature : paths cross superb woods .",
        ],
        [letters[1], "dear ben , food : cooks serve"],
    ];
    let english = [
        ["Why is the sky blue?", "Air scatters blue light. It does!\nSo it is blue."],
        ["Is it?", "Yes"],
    ];
    let mut cases = Vec::new();
    let run = TempDir::new().unwrap();
    finish(run.path(), &["sft"], &[]);
    let cut = half(run.path(), &[], letters[0]);
    for method in METHODS {
        cases.push(case(run.path(), &at(method), method, &["--set", &cut], &letters));
    }
    for (name, template) in [("roles", None), ("template", Some(TEMPLATE))] {
        let (run, model) = (TempDir::new().unwrap(), llama());
        let settings =
            json!({"eos_token": "</s>", "pad_token": "<pad>", "chat_template": template});
        fs::write(model.path().join("tokenizer_config.json"), settings.to_string()).unwrap();
        edit_json(&model.path().join("config.json"), |config| {
            config["_name_or_path"] = "someone/tiny-llama".into();
        });
        let model = ["--model", model.path().to_str().unwrap()];
        let regression = "normalizer.regression=\"least_squares\"";
        let data = ["--data", SENTENCES, "--set", regression];
        finish(run.path(), &["sft"], &[&data[..], &model].concat());
        let cut = half(run.path(), &data, english[0]);
        let sets = [&data[..], &["--set", &cut]].concat();
        cases.push(case(run.path(), &at(name), "segment", &sets, &english));
        let card = fs::read_to_string(at(name).join("reward/README.md")).unwrap();
        assert!(card.contains("\nbase_model: someone/tiny-llama\n"), "{card}");
        let more = ["--set", "reward.aggregation=last", "--set", "segmentation.eos=included"];
        let sets = [&data[..], &more].concat();
        let at = at(&format!("{name}-included"));
        cases.push(case(run.path(), &at, "sentence", &sets, &english));
    }
    let segments = |case: &Case| case.scored[0]["segments"].as_array().unwrap().len();
    for case in [&cases[3], &cases[4], &cases[6]] {
        let tokens = case.scored[0]["tokens"].as_array().unwrap().len();
        assert!(
            (2..tokens - 1).contains(&segments(case)),
            "{} segments of {tokens} tokens",
            segments(case)
        );
    }
    let Some(mut python) = python_with(&["torch", "transformers"]) else { return };
    let folders = cases.iter().flat_map(|case| [&case.reward, &case.texts]);
    let output = python.args(["-c", DRIVER]).args(folders).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let computed: Vec<Vec<Value>> = serde_json::from_slice(&output.stdout).unwrap();
    for (case, computed) in cases.iter().zip(computed) {
        let name = case.reward.display();
        assert_eq!(computed.len(), case.scored.len());
        for (ours, theirs) in case.scored.iter().zip(&computed) {
            let close = |ours: &Value, theirs: &Value| {
                let [ours, theirs] = [ours, theirs].map(|value| value.as_f64().unwrap());
                assert!((ours - theirs).abs() < 1e-4, "{name}: {ours}, transformers {theirs}");
            };
            close(&ours["sequence_score"], &theirs["score"]);
            let [own, other] =
                [&ours["segments"], &theirs["segments"]].map(|of| of.as_array().unwrap());
            assert_eq!(own.len(), other.len(), "{name}: {ours}\n{theirs}");
            for (own, other) in own.iter().zip(other) {
                close(&own["reward"], &other["reward"]);
                close(&own["normalized"], &other["normalized"]);
            }
        }
    }
}

#[test]
fn the_card_of_a_policy_says_how_it_was_trained_and_generates() {
    let (run, all) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    finish(run.path(), &["sft", "train-reward", "fit-normalizer", "ppo"], &["--seed", "3"]);
    let policy = all.path().join("policy");
    let card = export(run.path(), &policy, &["--seed", "3"]);
    let stage = run.path().join("segment/ppo");
    let record: toml::Table =
        fs::read_to_string(stage.join("settings.toml")).unwrap().parse().unwrap();
    let summary: Value =
        serde_json::from_slice(&fs::read(stage.join("summary.json")).unwrap()).unwrap();
    let gold = summary["last"]["gold"].as_f64().unwrap();
    for part in [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- segment-rlhf\n- rlhf\n# license: ",
        "# Policy of the method `segment`\n",
        &format!("With segment-rlhf {}", record["version"].as_str().unwrap()),
        "| `seed` | 3 |",
        "| `ppo.iterations` | 4 |",
        "| `ppo.kl_coefficient` | 0.",
        "| `segmentation.entropy_cutoff` | ",
        &format!("| model | `{}` |", record["inputs"]["model"].as_str().unwrap()),
        &format!("| `last.gold` | {gold:.4} |"),
        "max_new_tokens=16",
    ] {
        assert!(card.contains(part), "{part:?} is not in:\n{card}");
    }
    assert!(!card.contains("base_model"), "the embedded task starts from none");
    assert!(!card.contains("\n\n\n") && !card.contains("{{"), "{card}");
    // The best policy's folder is one deeper, and has the same card.
    let best = run.path().join("segment/ppo/best/model");
    let again = export(run.path(), &all.path().join("best"), &["--model", best.to_str().unwrap()]);
    assert_eq!(again, card);
    // An exported model keeps its card, as it was edited; one that nothing is known of gets a short one.
    fs::write(policy.join("README.md"), "mine").unwrap();
    let edited =
        export(run.path(), &all.path().join("again"), &["--model", policy.to_str().unwrap()]);
    assert_eq!(edited, "mine");
    let other = llama();
    let unknown = export(
        run.path(),
        &all.path().join("unknown"),
        &["--model", other.path().to_str().unwrap()],
    );
    assert!(
        unknown.contains("# Language model\n") && !unknown.contains("## Training"),
        "{unknown}"
    );
    let Some(mut python) = python_with(&["torch", "transformers"]) else { return };
    let folders = ["best", "unknown"].map(|name| all.path().join(name));
    let arguments = folders.iter().flat_map(|dir| [dir.to_str().unwrap(), "-"]);
    let output = python.args(["-c", DRIVER]).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The snippets of docs/python.md, in order, in a folder with what the page says was made before.
#[test]
fn the_python_of_the_guide_runs() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/python.md");
    let page = fs::read_to_string(page).unwrap();
    let snippet = |part: &str| part.split("```").next().unwrap().to_owned();
    let snippets: Vec<String> = page.split("```python\n").skip(1).map(snippet).collect();
    assert!(snippets.len() >= 6);
    let packages =
        ["torch", "transformers", "peft", "pandas", "matplotlib", "tensorboard", "wandb"];
    let Some(mut python) = python_with(&packages) else { return };
    let here = TempDir::new().unwrap();
    let (run, model) = (here.path().join("runs/mine"), llama());
    let pipeline = ["train-reward", "fit-normalizer", "ppo"];
    let data = ["--data", SENTENCES, "--model", model.path().to_str().unwrap(), "--tensorboard"];
    let regression = ["--set", "normalizer.regression=\"least_squares\""];
    finish(&run, &pipeline, &[&data[..], &regression].concat());
    export(&run, &here.path().join("policy"), &[]);
    export(&run, &here.path().join("reward"), &["--what", "reward"]);
    let lora = here.path().join("runs/lora");
    finish(&lora, &pipeline, &[&data[..], &regression, &["--set", "lora.rank=2"]].concat());
    let texts = here.path().join("texts.jsonl");
    let row = json!({"prompt": "Why is the sky blue?", "response": "Air scatters blue light."});
    fs::write(&texts, format!("{row}\n{row}\n")).unwrap();
    let score =
        ["score", texts.to_str().unwrap(), "--json", "--model", model.path().to_str().unwrap()];
    let scored = program(&run, &score).ended_with(0).stdout;
    fs::write(here.path().join("scores.jsonl"), scored).unwrap();
    let grid = here.path().join("runs/table1");
    program(&grid, &["reproduce", "--set", r#"reproduce.methods=["bandit", "segment"]"#])
        .ended_with(0);
    program(&grid, &["report"]).ended_with(0);
    let output = python.args(["-c", &snippets.join("\n")]).current_dir(here.path());
    let output = output.env("MPLBACKEND", "agg").env("WANDB_MODE", "offline").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    for name in ["kl.png", "gold.png"] {
        assert!(files(here.path()).contains(&PathBuf::from(name)), "{name}");
    }
    let segments: usize = json_lines(&here.path().join("scores.jsonl"))
        .iter()
        .map(|line| line["segments"].as_array().unwrap().len())
        .sum();
    assert!(said.contains(&format!("{segments} segments of 2 texts")), "{said}");
}
