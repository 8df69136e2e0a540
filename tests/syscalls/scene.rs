//! A directory of checkpoints, a program that changes it, and what must hold afterwards whatever
//! happened to the program.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use tch_checkpoint::catalog::{CheckpointPath, Wanted, find};
use tch_checkpoint::group::{Deadlines, ProcessGroup};
use tch_checkpoint::layout::CheckpointName;
use tch_checkpoint::save::{Checkpoint, SaveOptions, save};
use tch_checkpoint::slice::Slice;
use tch_checkpoint::state::StateDict;
use tch_checkpoint::storage::LocalStorage;
use tch_checkpoint::tensor::{Component, Dtype, TensorName, TensorSpec};
use tch_checkpoint::verify::verify;
use tch_checkpoint::{OnExisting, Rank, Result, WorldSize};

use crate::tracer::{self, Act, Call, Run};

/// Lack of progress after which ranks give up, in milliseconds: no rank is silent here, and a busy
/// machine must not look like one.
const DEADLINE_MS: &str = "10000";
/// Bytes of all ranks: a few blocks of sums.
const BYTES: &str = "65536";

/// What is tried, again and again, from the same beginning.
pub struct Scene {
    pub title: &'static str,
    /// Steps that are there at the beginning, and with which options they were saved.
    pub older: &'static [u64],
    pub made_with: &'static [&'static str],
    /// Of those, what must be there and whole whatever happens; before the commit, all of them.
    pub stays: &'static [u64],
    /// Where the checkpoints lie, below the directory that is looked at.
    pub below: &'static str,
    /// The step that is saved.
    pub step: u64,
    pub command: fn(&Path, u64) -> Command,
    /// Whether that is the command that users have.
    pub is_command: bool,
}

/// The command that users have, saving `step` into `dir`.
pub fn stress(dir: &Path, step: u64, ranks: u32, more: &[&str]) -> Command {
    stress_bytes(BYTES, dir, step, ranks, more)
}

/// The same with another number of bytes.
pub fn stress_bytes(bytes: &str, dir: &Path, step: u64, ranks: u32, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tch-checkpoint"));
    command.args(["stress", "save", "--bytes", bytes, "--deadline-ms", DEADLINE_MS, "--dir"]);
    command.arg(dir).args(["--step", &step.to_string(), "--ranks", &ranks.to_string()]).args(more);
    command.env_remove("RUST_BACKTRACE");
    command
}

/// A scene with its beginning on disk.
pub struct Stage {
    scene: &'static Scene,
    place: tempfile::TempDir,
    /// Which save each of the older checkpoints came from.
    older: BTreeMap<u64, String>,
}

/// One try from the beginning.
pub struct Try {
    /// The directory of checkpoints.
    pub dir: PathBuf,
    pub run: Run,
}

impl Stage {
    pub fn set(scene: &'static Scene) -> Self {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("begin").join(scene.below);
        std::fs::create_dir_all(place.path().join("begin")).unwrap();
        for step in scene.older {
            let made = stress(&dir, *step, 2, scene.made_with).output().unwrap();
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        }
        let older = scene.older.iter().map(|step| (*step, whole(&dir, *step).unwrap())).collect();
        Self { scene, place, older }
    }

    /// Runs the program from the beginning.
    pub fn play(&self, decide: &mut dyn FnMut(&Call) -> Act) -> Try {
        let top = self.place.path().join("try");
        if top.exists() {
            std::fs::remove_dir_all(&top).unwrap();
        }
        copy_tree(&self.place.path().join("begin"), &top);
        let dir = top.join(self.scene.below);
        let run = tracer::run((self.scene.command)(&dir, self.scene.step), &top, decide);
        Try { dir, run }
    }

    /// What the program does when nothing happens to it.
    pub fn undisturbed(&self) -> Vec<Call> {
        let tried = self.play(&mut |_| Act::Pass);
        assert_eq!(tried.run.code, Some(0), "{}", tried.run.stderr);
        assert_eq!(self.fault_of(&tried), None, "undisturbed");
        tried.run.calls
    }

    /// What must never be, if it is: nothing committed lost, nothing partial visible, no hang, no
    /// panic, and the next save works and leaves no debris.
    pub fn fault_of(&self, tried: &Try) -> Option<String> {
        let run = &tried.run;
        if run.hung {
            return Some("it hangs".to_owned());
        }
        if matches!(run.code, Some(code) if ![0, 1, 3, 5, 6].contains(&code)) {
            return Some(format!("it exits {:?}", run.code));
        }
        self.lies_on_disk(tried).or_else(|| self.next_save_fails(tried))
    }

    /// Whether the save of the scene is under its name, whatever the program could still say.
    pub fn has_committed(&self, tried: &Try) -> bool {
        let found = whole(&tried.dir, self.scene.step).ok();
        found.is_some() && found.as_ref() != self.older.get(&self.scene.step)
    }

    fn lies_on_disk(&self, tried: &Try) -> Option<String> {
        for step in visible(&tried.dir) {
            if let Err(error) = whole(&tried.dir, step) {
                return Some(format!("step {step} is visible and not whole: {error}"));
            }
        }
        let said: Vec<_> = tried.run.stdout.lines().filter_map(committed).collect();
        if tried.run.code == Some(0) && said.is_empty() {
            return Some("it exits 0 and has not said what it committed".to_owned());
        }
        for (step, id) in &said {
            match whole(&tried.dir, *step) {
                Ok(found) if found == *id => {}
                found => return Some(format!("it said that {step} is {id}, there is {found:?}")),
            }
        }
        let scene = self.scene;
        let stays = if self.has_committed(tried) { scene.stays } else { scene.older };
        for step in stays {
            let found = whole(&tried.dir, *step);
            let is_replaced = *step == scene.step && found.is_ok();
            if !is_replaced && found.as_ref().ok() != self.older.get(step) {
                return Some(format!("step {step} was lost: {found:?}"));
            }
        }
        link_nowhere(&tried.dir)
    }

    fn next_save_fails(&self, tried: &Try) -> Option<String> {
        if let Err(error) = save_here(&tried.dir, 99, OnExisting::Refuse, 1) {
            return Some(format!("the next save: {error}"));
        }
        if let Err(error) = whole(&tried.dir, 99) {
            return Some(format!("the next checkpoint: {error}"));
        }
        let debris: Vec<_> = entries(&tried.dir)
            .into_iter()
            .filter(|name| name.starts_with('.') && name != ".tch-checkpoint.lock")
            .collect();
        let steps = self.scene.stays.iter().find(|step| whole(&tried.dir, **step).is_err());
        match (debris.as_slice(), steps) {
            ([], None) => None,
            ([], Some(step)) => Some(format!("the next save has taken step {step}")),
            _ => Some(format!("the next save leaves {debris:?}")),
        }
    }
}

/// Saves a little in this process, by threads as ranks.
pub fn save_here(dir: &Path, step: u64, on_existing: OnExisting, ranks: u32) -> Result<Checkpoint> {
    let progress = Duration::from_millis(DEADLINE_MS.parse().unwrap());
    let deadlines = Deadlines { progress, ..Deadlines::default() };
    let name = CheckpointName::new(&format!("step-{step:08}"))?;
    let path = CheckpointPath::new(dir, name);
    let options = SaveOptions { step, on_existing, ..SaveOptions::default() };
    let groups = ProcessGroup::threads(WorldSize::new(ranks)?, deadlines);
    let save_rank = |group: ProcessGroup| {
        let state = state(group.rank(), group.world_size())?;
        save(&group, &LocalStorage::new(), &path, &state, &options)
    };
    let saved: Vec<_> = std::thread::scope(|scope| {
        let ranks: Vec<_> =
            groups.into_iter().map(|group| scope.spawn(|| save_rank(group))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    saved.into_iter().next().unwrap()
}

/// A slice of one tensor for each rank.
fn state(rank: Rank, world: WorldSize) -> Result<StateDict> {
    const SHARE: u64 = 1000;
    let mut state = StateDict::new();
    let spec = TensorSpec::new(Dtype::U8, vec![SHARE * u64::from(world.get())])?;
    let slice = Slice::new(vec![SHARE * u64::from(rank.get())], vec![SHARE])?;
    let bytes = vec![rank.get() as u8; SHARE as usize];
    let name = TensorName::new("weights")?;
    state.add_slice(&Component::model(), name, spec, slice, Arc::new(bytes))?;
    Ok(state)
}

/// Id of the save under `step`, if every byte of it is right.
pub fn whole(dir: &Path, step: u64) -> std::result::Result<String, String> {
    let path = dir.join(format!("step-{step:08}"));
    let wanted = Wanted::parse(&path).map_err(|e| e.to_string())?;
    let found = find(&LocalStorage::new(), &wanted).map_err(|e| e.to_string())?;
    let verified = verify(&found, &mut |_| ()).map_err(|e| e.to_string())?;
    match verified.damage.first() {
        None => Ok(found.manifest.save_id().to_string()),
        Some(error) => Err(error.to_string()),
    }
}

/// A link that names something else than a whole checkpoint.
fn link_nowhere(dir: &Path) -> Option<String> {
    let target = std::fs::read_link(dir.join("latest")).ok()?;
    let step = target.to_str().and_then(|name| name.strip_prefix("step-")?.parse().ok());
    let found = step.map(|step| whole(dir, step));
    (!matches!(found, Some(Ok(_)))).then(|| format!("latest leads to {target:?}: {found:?}"))
}

/// Step and id of a line that says what was committed.
pub fn committed(line: &str) -> Option<(u64, String)> {
    let (step, id) = line.strip_prefix("COMMITTED ")?.split_once(' ')?;
    Some((step.parse().ok()?, id.to_owned()))
}

fn visible(dir: &Path) -> Vec<u64> {
    let step = |name: String| name.strip_prefix("step-")?.parse().ok();
    entries(dir).into_iter().filter_map(step).collect()
}

fn entries(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (kind, to) = (entry.file_type().unwrap(), to.join(entry.file_name()));
        if kind.is_dir() {
            copy_tree(&entry.path(), &to);
        } else if kind.is_symlink() {
            symlink(std::fs::read_link(entry.path()).unwrap(), to).unwrap();
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}
