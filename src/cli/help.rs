//! Help beside `--help`: examples, man pages, completions.

use std::path::{Path, PathBuf};

use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use super::error::Error;
use super::{Cli, show};
use crate::atomic;
use crate::file_error::FileError;
use crate::run::folder::write_file;

/// Command lines under the help of each command, without the program's name. What follows a # is a comment to the shell, too.
const EXAMPLES: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "# the main job: four methods on the embedded task",
            "reproduce --preset full",
            "report runs/full --open",
        ],
    ),
    (
        "reproduce",
        &[
            "reproduce",
            "reproduce --preset full --run runs/mine",
            "reproduce --set ppo.iterations=24",
        ],
    ),
    (
        "ablate",
        &[
            "ablate experiments/table1.toml --seeds 5 --dry-run  # what would run, and for how long",
            "ablate experiments/table1.toml --seeds 5 --jobs 4",
            "ablate experiments/table1.toml --submit slurm --sbatch \"--partition=cpu --time=4:00:00\"",
        ],
    ),
    ("status", &["status runs/table1", "status runs/mine"]),
    (
        "report",
        &[
            "report runs/table1 --open",
            "report runs/mine --watch --open  # while a stage is training",
            "report runs/table1 --out site --readme README.md",
        ],
    ),
    ("sft", &["sft", "sft --model DIR --data conversations.jsonl --run runs/mine"]),
    ("preferences", &["preferences", "preferences --set task.pairs=2000 --seed 1"]),
    (
        "train-reward",
        &[
            "train-reward --method token",
            "train-reward --model DIR --data pairs.jsonl --run runs/mine --preset small-lora",
        ],
    ),
    (
        "fit-normalizer",
        &[
            "fit-normalizer --method token",
            "fit-normalizer --model DIR --data pairs.jsonl --run runs/mine --preset small-lora",
        ],
    ),
    (
        "ppo",
        &[
            "ppo --method token --tensorboard",
            "ppo --stop-after 4  # the same command goes on from there",
            "ppo --model DIR --data pairs.jsonl --run runs/mine --preset small-lora --stop-on kl",
        ],
    ),
    ("dpo", &["dpo --method dpo", "dpo --method segment_dpo --set task.aligned.pairs=true"]),
    (
        "evaluate",
        &[
            "evaluate --run runs/mine  # with model, data and settings as ppo was given them",
            "evaluate --decode cards",
            "evaluate arena-hard --run runs/mine --questions question.jsonl --out mine.jsonl",
        ],
    ),
    (
        "evaluate alpaca-eval",
        &[
            "evaluate alpaca-eval --run runs/mine --questions alpaca_eval.json --out model_outputs.json",
            "evaluate alpaca-eval --model DIR --questions alpaca_eval.json --out base.json --name base",
        ],
    ),
    (
        "evaluate arena-hard",
        &[
            "evaluate arena-hard --run runs/mine --questions question.jsonl --out mine.jsonl",
            "evaluate arena-hard --run runs/mine --reference --questions question.jsonl --out sft.jsonl",
        ],
    ),
    (
        "evaluate mt-bench",
        &[
            "evaluate mt-bench --run runs/mine --questions question.jsonl --out mine.jsonl",
            "evaluate mt-bench --model DIR --questions question.jsonl --out greedy.jsonl --temperature 0",
        ],
    ),
    (
        "evaluate reward-bench",
        &[
            "evaluate reward-bench --run runs/mine --data reward-bench.parquet",
            "evaluate reward-bench --reward-model DIR --data reward-bench.parquet --json",
        ],
    ),
    (
        "evaluate win-rate",
        &[
            "evaluate win-rate segment.json bandit.json --judge reward --run runs/mine",
            "evaluate win-rate a.jsonl b.jsonl --judge reward --reward-model DIR --questions question.jsonl",
        ],
    ),
    (
        "export",
        &[
            "export --run runs/mine --hf policy",
            "export --run runs/mine --hf reward-model --what reward --dtype bf16",
            "export --run runs/table1 --method token --seed 2 --hf token --shard-size 2GB",
        ],
    ),
    (
        "generate",
        &[
            "generate --run runs/mine --prompt \"Why is the sky blue?\" --samples 3",
            "generate --model DIR --prompt \"Why is the sky blue?\" --set sampling.temperature=0.7",
            "generate --decode cards",
        ],
    ),
    (
        "chat",
        &[
            "chat --run runs/mine",
            "chat --model DIR --system \"Answer in one sentence.\" --set sampling.temperature=0.7",
        ],
    ),
    (
        "segment",
        &[
            "segment --model DIR --data pairs.jsonl --rows 200  # what each cutoff would do",
            "segment --model DIR --prompt \"Why is the sky blue?\" --set segmentation.entropy_cutoff=2",
            "segment --run runs/mine --prompt \"Why?\" --response \"Because.\" --json",
        ],
    ),
    (
        "score",
        &[
            "score texts.jsonl --run runs/mine --normalized --json",
            "score --run runs/mine --prompt \"Why?\" --response \"Because.\"",
            "score texts.jsonl --reward-model DIR --model DIR --actions segment",
        ],
    ),
    (
        "memory",
        &[
            "memory --model DIR",
            "memory --model DIR --preset small-lora",
            "memory --model DIR --device cuda --ranks 8",
        ],
    ),
    ("devices", &["devices", "devices --json"]),
    ("systems", &["systems", "systems | less -S"]),
    ("settings", &["settings", "settings > mine.toml"]),
    ("reported", &["reported", "reported | less -S"]),
    (
        "completions",
        &[
            "completions bash > ~/.local/share/bash-completion/completions/segment-rlhf",
            "completions zsh > ~/.zfunc/_segment-rlhf",
            "completions fish > ~/.config/fish/completions/segment-rlhf.fish",
        ],
    ),
    ("man", &["man | man -l -", "man --out ~/.local/share/man/man1  # then: man segment-rlhf-ppo"]),
];

/// The command line with examples under the help of each command.
pub(super) fn command() -> Command {
    fn add(command: Command, path: &str) -> Command {
        let examples: String = examples(path).map(|line| format!("\n  {line}")).collect();
        let below = |sub: Command| {
            let path = format!("{path} {}", sub.get_name());
            add(sub, path.trim_start())
        };
        let command = command.mut_subcommands(below);
        if examples.is_empty() {
            command
        } else {
            command.after_help(format!("Examples:{examples}"))
        }
    }
    add(Cli::command(), "")
}

/// The examples of the command with this path below the program.
fn examples(path: &str) -> impl Iterator<Item = String> {
    let own = EXAMPLES.iter().filter(move |(of, _)| *of == path).flat_map(|(_, lines)| *lines);
    own.map(|line| format!("segment-rlhf {line}"))
}

/// Prints the script by which a shell completes the program's arguments.
pub(super) fn completions(shell: Shell) -> Result<(), Error> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "segment-rlhf", &mut script);
    show::out(&String::from_utf8_lossy(&script))
}

/// Arguments of `man`.
#[derive(Args)]
pub(super) struct ManArgs {
    /// Write a page for every command into this folder, such as ~/.local/share/man/man1
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Prints the program's man page, or writes those of all its commands.
pub(super) fn man(args: &ManArgs) -> Result<(), Error> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let Some(dir) = &args.out else {
        return show::out(&String::from_utf8_lossy(&page(&Man::new(command.clone()), "")));
    };
    atomic::create_dir_all(dir).map_err(FileError::writing(dir))?;
    let pages = write_pages(&command, "", dir)?;
    show::out(&format!("{pages} pages in {}", dir.display()))
}

/// Writes the pages of `command` and of those below it; returns their number.
fn write_pages(command: &Command, path: &str, dir: &Path) -> Result<usize, Error> {
    let man = Man::new(command.clone());
    write_file(&dir.join(man.get_filename()), &page(&man, path))?;
    command.get_subcommands().try_fold(1, |pages, sub| {
        let path = format!("{path} {}", sub.get_name());
        Ok(pages + write_pages(sub, path.trim_start(), dir)?)
    })
}

fn page(man: &Man, path: &str) -> Vec<u8> {
    let mut page = Vec::new();
    let mut end = Roff::new();
    end.control("SH", ["EXAMPLES"]).control("nf", []);
    examples(path).for_each(|line| {
        end.text([roman(line)]);
    });
    end.control("fi", []);
    man.render(&mut page).and_then(|()| end.to_writer(&mut page)).expect("memory takes it all");
    page
}
