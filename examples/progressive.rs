//! Grows a small model of letters stack by stack on two ranks, kills it twice, resumes it, puts
//! adapters on it, and checks that everything is as it should be: exit code 0 if it is.
//!
//! ```sh
//! cargo run --example progressive
//! ```
//!
//! It needs no flags and leaves nothing behind: it works in a temporary directory, starts its ranks
//! itself and trains on the text of this project's own guides. Takes a minute or two.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "the text has 100,000 letters"
)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use tch_checkpoint::checkpointer::{CheckpointerConfig, Location};
use tch_checkpoint::progressive::{
    Contents, LoraConfig, ProgressiveTrainer, Rack, RackBuilder, StageHistory, TrainingConfig,
    get_rack_info, list_checkpoints,
};
use tch_checkpoint::torch::AdamW;
use tch_checkpoint::{ProcessGroup, Result};

/// A line of results. Whoever has closed stdout does not want to know.
macro_rules! say {
    ($($line:tt)*) => {{
        let _ = writeln!(std::io::stdout(), $($line)*);
    }};
}

#[path = "progressive/checks.rs"]
mod checks;
#[path = "progressive/model.rs"]
mod model;
#[path = "progressive/ranks.rs"]
mod ranks;
#[path = "progressive/text.rs"]
mod text;

use checks::{Checks, Outcome, own_bytes};
use model::{Letters, LettersConfig, loss};
use text::Text;

const STACKS: usize = 3;
const STEPS_PER_STACK: u64 = 120;
const ADAPTER_STEPS: u64 = 30;

fn main() -> ExitCode {
    if ranks::is_rank() {
        return ProcessGroup::run_main(|| {
            let group = ProcessGroup::from_env()?;
            let code = rank(&group)?;
            group.finish()?;
            Ok(code)
        });
    }
    match parent() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Starts the ranks, kills them, and looks at what they leave.
fn parent() -> std::io::Result<bool> {
    let scratch = tempfile::tempdir()?;
    let (whole, killed) = (scratch.path().join("whole"), scratch.path().join("killed"));
    let mut checks = Checks::default();

    say!("{STACKS} stacks of {STEPS_PER_STACK} steps on 2 ranks, without interruption …");
    checks.that("two ranks end well", ranks::run(&whole, None)?);
    say!("the same again, killed within the second stack, and between it and the third …");
    let (within, between) = (STEPS_PER_STACK * 3 / 2, STEPS_PER_STACK * 2);
    checks.that("killed within a stack", !ranks::run(&killed, Some(within))?);
    checks.that("killed between stacks", !ranks::run(&killed, Some(between))?);
    checks.that("two ranks resume and end well", ranks::run(&killed, None)?);

    let (Some(once), Some(again)) = (Outcome::read(&whole), Outcome::read(&killed)) else {
        checks.that("both runs have told how they ended", false);
        return Ok(checks.tell());
    };
    table(&once);
    checks.that("every variable has the same bits, killed or not", once.hash == again.hash);
    checks.that("so have the losses", once.history == again.history);
    let grown = once.validation.get(..STACKS).unwrap_or_default();
    let falls = grown.len() == STACKS && grown.windows(2).all(|pair| pair[1] < pair[0]);
    checks.that("validation loss falls with each stack", falls);
    look(&whole.join("letters"), &mut checks);
    Ok(checks.tell())
}

/// What is on disk.
fn look(directory: &Path, checks: &mut Checks) {
    let Ok(all) = list_checkpoints(directory) else {
        return checks.that("checkpoints can be listed", false);
    };
    let newest = all.iter().max_by_key(|one| one.step);
    let Some(newest) = newest else { return checks.that("there are checkpoints", false) };
    let Contents::Training { rack, .. } = &newest.contents else {
        return checks.that("the newest is one of a run", false);
    };
    let adapted = rack.stack_info.iter().all(|stack| stack.frozen && stack.adapters.is_some());
    checks.that("the trunk is frozen and has adapters", rack.current_stacks == STACKS && adapted);
    checks.that("its manifest tells so", get_rack_info(&newest.path).is_ok_and(|i| i == *rack));
    let Ok((own, needed)) = own_bytes(&newest.path) else {
        return checks.that("its files can be looked at", false);
    };
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    let more = own as f64 / needed as f64;
    say!(
        "\n{}: {own} bytes written for {needed} bytes of adapters and their optimizer state ({more:.4})",
        newest.name
    );
    checks.that("a step of adapters writes at most 2 % more than they take", more <= 1.02);
}

fn table(outcome: &Outcome) {
    say!(
        "\n  {:<10} {:>6} {:>11} {:>10} {:>11}",
        "trained",
        "steps",
        "first loss",
        "last loss",
        "validation"
    );
    let names = (1..=STACKS).map(|n| format!("stack {n}")).chain(["adapters".to_owned()]);
    for ((name, stage), validation) in names.zip(&outcome.history).zip(&outcome.validation) {
        let shown = |loss: Option<f64>| loss.unwrap_or(f64::NAN);
        let StageHistory { steps, first_loss, final_loss, .. } = stage;
        say!(
            "  {name:<10} {steps:>6} {:>11.4} {:>10.4} {validation:>11.4}",
            shown(*first_loss),
            shown(*final_loss)
        );
    }
}

/// One rank: grows, trains, resumes if there is something to resume from.
fn rank(group: &ProcessGroup) -> Result<ExitCode> {
    let directory = ranks::directory();
    let text = Text::new(ranks::stop_at());
    let mut rack = RackBuilder::<Letters>::new(LettersConfig::of(&text)).seed(1).build()?;
    let mut trainer = ProgressiveTrainer::new(group, config(&directory))?;
    if let Some(resumed) = trainer.resume(&mut rack)?
        && group.is_coordinator()
    {
        say!("  resumed at step {} with {} stacks", resumed.state.step, rack.stacks().len());
    }
    let mut validation = ranks::validation_so_far();
    for stacks in 1..=STACKS {
        trainer.train_rack(&mut rack, &text, &loss, stacks)?;
        if validation.len() < stacks {
            validation.push(validate(&rack, &text)?);
            ranks::keep_validation(group, &validation);
        }
        if let Some(preempted) = trainer.preempted() {
            return Ok(ExitCode::from(preempted.exit_code()));
        }
    }
    let adapters = LoraConfig { rank: 64, alpha: 64.0, ..LoraConfig::default() };
    trainer.train_adapters(&mut rack, &text, &loss, &adapters, ADAPTER_STEPS)?;
    validation.push(validate(&rack, &text)?);
    if group.is_coordinator() {
        let history = trainer.get_training_info().history.clone();
        let outcome = Outcome { hash: checks::hash_of(&rack), history, validation };
        outcome.write(&directory);
    }
    Ok(ExitCode::SUCCESS)
}

fn config(directory: &Path) -> TrainingConfig {
    TrainingConfig {
        steps_per_stack: STEPS_PER_STACK,
        optimizer: AdamW { lr: 2e-3, ..AdamW::default() }.into(),
        save_interval: 25,
        checkpoint: CheckpointerConfig::new("letters")
            .at(Location::Path(PathBuf::from(directory)))
            .keep_last(3),
        ..TrainingConfig::default()
    }
}

fn validate(rack: &Rack<Letters>, text: &Text) -> Result<f64> {
    let (input, target) = text.validation();
    let output = tch::no_grad(|| rack.forward(&input, false))?;
    Ok(loss(&output, &target).double_value(&[]))
}
