//! What ranks must say alike, or be told that one of them cannot say, before a save or a load of a
//! handler begins.

use std::path::Path;

use serde::Serialize;

use crate::agree::{agree, unlike};
use crate::catalog::{CheckpointPath, Wanted};
use crate::error::{Error, ErrorKind, Result};
use crate::group::{Channel, ProcessGroup};
use crate::handler::{LoadOptions, Model, NNHandler};
use crate::select::{Rename, Selection, SelectionRules};
use crate::state::Value;

/// Options of a load by name, as text.
type Options = Vec<(String, String)>;

impl<M: Model> NNHandler<M> {
    /// Where to save. A path that can be none is brought to phase "state", in which the other ranks
    /// are by then.
    pub(super) fn path_of(&self, path: &Path) -> Result<CheckpointPath> {
        CheckpointPath::parse(path).or_else(|error| {
            self.end_save()?;
            self.agreed_state(|| Err(error.clone()))?;
            Err(error)
        })
    }
}

/// Phase "options": all ranks load in the same way, and from what can be a checkpoint. Which one it
/// is they compare when they ask for it.
pub(super) fn agree_on_load(
    group: &ProcessGroup,
    path: &Path,
    options: &LoadOptions,
) -> Result<Wanted> {
    let mut wanted = None;
    let own = || {
        wanted = Some(Wanted::parse(path)?);
        described(options)
    };
    group.phase_all(Channel::Save, "options", own, |all: Vec<Options>| alike(&all))?;
    wanted.ok_or_else(|| Error::new(ErrorKind::Disagreement, "phase options passed without a path"))
}

/// Every option but those that are of one rank alone.
fn described(options: &LoadOptions) -> Result<Options> {
    let LoadOptions {
        group: _,
        device: _,
        device_map: _,
        replicas,
        storage: _,
        lenient,
        skip_optimizer,
        skip_scheduler,
        skip_scaler,
        skip_ema,
        skip_history,
        keep_auto_saver,
        model_code,
        skip_callbacks,
    } = options;
    let code = model_code.as_ref().map(|code| code.digest()).transpose()?;
    // Of code only whether it is the same: it is long.
    let code = code.map_or_else(|| "none".to_owned(), |hash| format!("{hash:02x?}"));
    let switches = [
        ("lenient", lenient),
        ("skip_optimizer", skip_optimizer),
        ("skip_scheduler", skip_scheduler),
        ("skip_scaler", skip_scaler),
        ("skip_ema", skip_ema),
        ("skip_history", skip_history),
        ("keep_auto_saver", keep_auto_saver),
        ("skip_callbacks", skip_callbacks),
    ];
    let switches = switches.map(|(name, is_on)| (name.to_owned(), is_on.to_string()));
    let others = [("model_code", code), ("replicas", format!("{replicas:?}"))];
    let others = others.map(|(name, value)| (name.to_owned(), value));
    Ok(switches.into_iter().chain(others).collect())
}

fn alike(all: &[Options]) -> Result<()> {
    let difference = |ours: &Options, theirs: &Options| {
        let ((name, ours), (_, theirs)) = ours.iter().zip(theirs).find(|(a, b)| a != b)?;
        Some(format!("`{name}` is {theirs} on this rank, {ours} on the coordinator"))
    };
    agree(all, difference, "give every rank the same options; nothing was loaded").map(drop)
}

/// Phase "config": ranks that build different models would exchange gradients of different things.
pub(super) fn agree_on_config(
    group: &ProcessGroup,
    path: &Path,
    config: Option<&impl Serialize>,
    rename: &[Rename],
) -> Result<AskedWeights> {
    let mut asked = None;
    let own = || {
        let rules = SelectionRules { rename: rename.to_vec(), ..SelectionRules::default() };
        let names = Selection::new(rules)?;
        asked = Some(AskedWeights { wanted: Wanted::parse(path)?, names });
        Ok((config.map(Value::json).transpose()?, rename.to_vec()))
    };
    group.phase_all(Channel::Save, "config", own, |all: Vec<(Option<Value>, Vec<Rename>)>| {
        let difference = |ours: &(Option<Value>, Vec<Rename>), theirs: &(_, Vec<Rename>)| {
            let differs = match (&theirs.0, &ours.0) {
                (Some(theirs), Some(ours)) => !Value::same(theirs, ours),
                (theirs, ours) => Option::is_some(theirs) != ours.is_some(),
            };
            let config = || "ranks build the model with different configurations".to_owned();
            differs.then(config).or_else(|| unlike("`rename`", &ours.1, &theirs.1))
        };
        let help = "give every rank the same configuration and the same rules";
        agree(&all, difference, help).map(drop)
    })?;
    asked.ok_or_else(|| Error::new(ErrorKind::Disagreement, "phase config passed without a path"))
}

/// Whose weights all ranks ask for, and under which names.
pub(super) struct AskedWeights {
    pub(super) wanted: Wanted,
    pub(super) names: Selection,
}
