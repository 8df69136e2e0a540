//! Two ranks on one device: refused, unless both may share it; then they train, save and load.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use tch_checkpoint::catalog::Wanted;
use tch_checkpoint::group::Deadlines;
use tch_checkpoint::handler::{average_gradients, choose_device};
use tch_checkpoint::load::{Atomicity, load};
use tch_checkpoint::plan::load::LoadRules;
use tch_checkpoint::save::{SaveOptions, save};
use tch_checkpoint::storage::LocalStorage;
use tch_checkpoint::{CheckpointPath, OnExisting, ProcessGroup, Replicas, Result, WorldSize};

use crate::tensors::{Named, first_difference, ones_like, state, targets};
use crate::{Outcome, failed};

const SHARE: &str = "TCH_CHECKPOINT_SHARE_GPU";

/// `spoil` gives the ranks different weights of their gradients' average.
pub(crate) fn run(device: Device, dir: &Path, processes: bool, spoil: bool) -> Result<Outcome> {
    let may_share = std::env::var(SHARE).is_ok_and(|value| value == "1");
    let verdicts = match processes {
        true => in_two_processes(device, dir, spoil)?,
        false => on_two_threads(|group| train(group, device, dir, spoil))?,
    };
    if device == Device::Cpu || may_share {
        verdicts.into_iter().collect::<Result<Vec<()>>>()?;
        return Ok(Outcome::Passed(json!({ "ranks": 2, "shared": device != Device::Cpu })));
    }
    for verdict in verdicts {
        match verdict {
            Err(error) if is_refusal(&error) => {}
            Err(error) => return Err(error),
            Ok(()) => return Ok(Outcome::Failed("two ranks share a GPU, unasked".to_owned())),
        }
    }
    Ok(Outcome::Passed(json!({ "ranks": 2, "shared": "refused, on both" })))
}

fn is_refusal(error: &tch_checkpoint::Error) -> bool {
    error.to_string().contains("would share one GPU") && error.to_string().contains(SHARE)
}

fn on_two_threads(work: impl Fn(&ProcessGroup) -> Result<()> + Sync) -> Result<Vec<Result<()>>> {
    let groups = ProcessGroup::threads(WorldSize::new(2)?, Deadlines::default());
    let work = &work;
    Ok(std::thread::scope(|scope| {
        let ranks = groups.iter().map(|group| scope.spawn(move || work(group)));
        let ranks: Vec<_> = ranks.collect();
        let ended = |rank: std::thread::ScopedJoinHandle<'_, Result<()>>| {
            rank.join().unwrap_or_else(|_| Err(failed("a panic")))
        };
        ranks.into_iter().map(ended).collect()
    }))
}

/// What each said, as a rank of a job that finds its other one by variables.
fn in_two_processes(device: Device, dir: &Path, spoil: bool) -> Result<Vec<Result<()>>> {
    let io = |error: std::io::Error| failed(format!("starting ranks: {error}"));
    let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
    let port = port.map_err(io)?.port().to_string();
    let mut ranks = Vec::new();
    for rank in ["0", "1"] {
        let mut command = Command::new(std::env::current_exe().map_err(io)?);
        command.args(["--device", &crate::devices::name(device), "--dir"]).arg(dir);
        command.args(spoil.then_some("--spoil")).arg("rank").stdout(Stdio::piped());
        command.envs([("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", "2")]);
        command.envs([("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", &port)]);
        ranks.push(command.env("TCH_CHECKPOINT_TOKEN", &port).spawn().map_err(io)?);
    }
    let said = |rank: std::process::Child| {
        let output = rank.wait_with_output().map_err(io)?;
        let line: Value = serde_json::from_slice(&output.stdout)
            .map_err(|_| failed(format!("a rank ended without an answer: {}", output.status)))?;
        if line["verdict"] == "passed" { Ok(()) } else { Err(failed(line["detail"].to_string())) }
    };
    // Each is waited for, whatever the other one says.
    Ok(ranks.into_iter().map(said).collect())
}

/// A rank in a process of its own.
pub(crate) fn one(device: Device, dir: &Path, spoil: bool) -> Result<Outcome> {
    let group = ProcessGroup::from_env()?;
    train(&group, device, dir, spoil)?;
    Ok(Outcome::Passed(json!({ "rank": group.rank().get() })))
}

/// One step, a save of what all have, and loads of it, read by each and read once.
fn train(group: &ProcessGroup, device: Device, dir: &Path, spoil: bool) -> Result<()> {
    let device = choose_device(group, Some(device))?;
    let rank = f64::from(group.rank().get());
    let weight = Tensor::full([1000], 2.0, (Kind::Float, device)).set_requires_grad(true);
    ((&weight * (rank + 1.0)).sum(Kind::Float)).backward();
    average_gradients(group, &[weight.shallow_clone()], if spoil { 0.4 } else { 0.5 })?;
    let off = (weight.grad() - 1.5).abs().max().double_value(&[]);
    if off > 1e-6 {
        return Err(failed(format!("an average of gradients is off by {off}")));
    }
    let (saved, path) = (replica(), dir.join("ranks"));
    let there: Vec<_> = saved.iter().map(|(n, t)| (n.clone(), t.to_device(device))).collect();
    let options = SaveOptions { on_existing: OnExisting::Replace, ..SaveOptions::default() };
    let storage = LocalStorage::new();
    save(group, &storage, &CheckpointPath::parse(&path)?, &state(&there, false)?, &options)?;
    for replicas in [Replicas::ReadEach, Replicas::ReadOnce] {
        let loaded = ones_like(&there, device);
        let (wanted, rules) = (Wanted::parse(&path)?, LoadRules { replicas, ..Default::default() });
        load(group, &storage, &wanted, &mut targets(&loaded)?, &rules, Atomicity::Atomic)?;
        if let Some(what) = first_difference(&saved, &loaded) {
            return Err(failed(format!("{replicas:?}: {what}")));
        }
    }
    Ok(())
}

/// The same bits on all ranks, whatever random numbers each of them draws.
fn replica() -> Named {
    let tensor = |n: i64| Tensor::arange(10_000 * n, (Kind::Float, Device::Cpu)) / n;
    (1..=8).map(|n| (format!("layer{n}.weight"), tensor(n))).collect()
}
