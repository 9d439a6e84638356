//! `chat`: a conversation with a model of a run.

use std::io::{BufRead, IsTerminal, Write, stdin, stdout};
use std::path::PathBuf;

use clap::Args;

use super::error::Error;
use super::show::{message, writes};
use crate::data::chat::{Message, Role};
use crate::data::tokenizer::Tokenizer;
use crate::model::writer::write_each;
use crate::model::{CausalLm, ModelConfig};
use crate::rng::streams;
use crate::run::Context;
use crate::stage::task::model_tokenizer;
use crate::stop::say;

/// Arguments of `chat`.
#[derive(Args)]
pub(super) struct ChatArgs {
    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Talk to the reference model even where the run has a policy
    #[arg(long)]
    reference: bool,
}

/// Reads what the user says line by line and writes the model's answers, until the end of the input.
pub(super) fn chat(context: &Context, args: &ChatArgs, given: bool) -> Result<(), Error> {
    let dir = writes(context, args.reference, given)?;
    let tokenizer = model_tokenizer(&dir)?;
    let (model, config) = CausalLm::load(&dir, context.frozen())?;
    let partner = Partner { context, dir, tokenizer, model, config };
    let terminal = stdin().is_terminal();
    if terminal {
        say(&format!(
            "{}: at most {} tokens an answer (sampling.max_new_tokens). An empty line forgets the conversation; Ctrl-D ends.",
            partner.dir.display(),
            context.settings.sampling.max_new_tokens
        ));
    }
    let start: Vec<Message> = args.system.iter().map(|text| message(Role::System, text)).collect();
    let (mut history, mut turn) = (start.clone(), 0);
    let mut lines = stdin().lock().lines();
    loop {
        if terminal {
            print("> ")?;
        }
        let Some(line) = lines.next().transpose().map_err(Error::Output)? else { return Ok(()) };
        if line.trim().is_empty() {
            history.clone_from(&start);
            continue;
        }
        history.push(message(Role::User, line.trim()));
        match partner.answer(&mut history, turn) {
            Ok(answer) => history.push(message(Role::Assistant, &answer)),
            Err(error @ Error::Stage(_)) if error.exit_code() != 2 => return Err(error),
            Err(error) => {
                history.pop();
                say(&format!("error: {error}"));
            }
        }
        turn += 1;
    }
}

struct Partner<'a> {
    context: &'a Context,
    dir: PathBuf,
    tokenizer: Tokenizer,
    model: CausalLm,
    config: ModelConfig,
}

impl Partner<'_> {
    /// The answer to the conversation, printed as it is written. Turns at the start of a conversation that is longer than
    /// `sampling.prompt_tokens` are forgotten.
    fn answer(&self, history: &mut Vec<Message>, turn: usize) -> Result<String, Error> {
        let settings = &self.context.settings;
        let generation = settings.generation(self.tokenizer.stop_tokens());
        let longest = settings.sampling.prompt_tokens;
        let mut prompt = self.tokenizer.encode_prompt(history)?;
        while prompt.len() > longest {
            let first = history.iter().position(|message| message.role == Role::User);
            let first = first.expect("the user has just spoken");
            if first + 1 == history.len() {
                let tokens = prompt.len();
                return Err(Error::Usage(format!(
                    "{tokens} tokens, more than sampling.prompt_tokens = {longest}: say less, or raise it with --set"
                )));
            }
            history.drain(first..first + 2);
            prompt = self.tokenizer.encode_prompt(history)?;
        }
        let most = generation.max_new_tokens;
        let remedy = "say less, or lower sampling.max_new_tokens";
        self.config.length_limit().check(prompt.len() + most, "the conversation", remedy)?;
        let draws = streams(settings.seed, "chat", turn..turn + 1);
        let stop = &self.context.stop;
        let written = write_each(
            &self.model,
            &self.config,
            &[&prompt],
            most,
            draws,
            stop,
            |_, mut writer, mut stream| {
                let mut shown = String::new();
                loop {
                    let token = generation.sampling.draw(writer.logits()?, &mut stream);
                    if generation.stops.contains(&token) {
                        break;
                    }
                    writer.push(token);
                    let text = self.tokenizer.decode(writer.response());
                    // A character of several tokens is not whole before its last one.
                    if !text.ends_with('\u{FFFD}')
                        && let Some(new) = text.strip_prefix(shown.as_str())
                    {
                        print(new)?;
                        shown = text;
                    }
                    if writer.is_full() {
                        break;
                    }
                }
                Ok::<String, Error>(self.tokenizer.decode(writer.response()))
            },
        )?;
        print("\n")?;
        Ok(written.into_iter().next().expect("one prompt").trim().to_owned())
    }
}

fn print(text: &str) -> Result<(), Error> {
    let mut out = stdout();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Error::Output)
}
