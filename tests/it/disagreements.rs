//! One rank says one thing otherwise than the others: every rank hears what and who, and nothing
//! new is visible. Each field there is, in each way of saving; of loads, each of what they ask for.

mod exports;

use std::sync::Arc;

use tch_checkpoint::catalog::Wanted;
use tch_checkpoint::load::{Atomicity, PartialOptions, load, load_partial};
use tch_checkpoint::plan::load::{LoadRules, Replicas};
use tch_checkpoint::save::{SaveOptions, save, save_async};
use tch_checkpoint::select::{Rename, Selection, SelectionRules};
use tch_checkpoint::single::{save_multi_files, save_single_file};
use tch_checkpoint::slice::Slice;
use tch_checkpoint::state::{LoadTargets, StateDict};
use tch_checkpoint::storage::{MemoryStorage, Storage};
use tch_checkpoint::tensor::{Component, Dtype, TensorSpec};
use tch_checkpoint::{Error, ErrorKind, OnExisting, ProcessGroup, Result};

use crate::harness::*;

const RANKS: u32 = 3;

/// What one rank says of a save.
#[derive(Clone)]
struct Said {
    at: &'static str,
    options: SaveOptions,
    dtype: Dtype,
    shape: [u64; 2],
    component: Component,
    alias: Option<&'static str>,
    loss: Option<f64>,
    attached: Option<&'static [u8]>,
    /// Rows of a tensor of which each rank holds one.
    shards: u64,
}

impl Said {
    fn usual() -> Self {
        Self {
            at: "runs/a",
            options: SaveOptions { step: 2, ..SaveOptions::default() },
            dtype: Dtype::F32,
            shape: [2, 3],
            component: Component::model(),
            alias: Some("w"),
            loss: Some(0.5),
            attached: Some(b"one"),
            shards: u64::from(RANKS),
        }
    }

    fn state(&self, rank: u32) -> StateDict {
        let mut state = StateDict::new();
        let mut add = |tensor: &str| {
            let spec = TensorSpec::new(self.dtype, self.shape).unwrap();
            let bytes = vec![7u8; spec.size_bytes() as usize];
            state.add(&self.component, name(tensor), spec, Arc::new(bytes)).unwrap();
        };
        add("w");
        add("x");
        let spec = TensorSpec::new(Dtype::U8, [self.shards, 4]).unwrap();
        let row = Slice::full(spec.shape()).rows(rank.into()..u64::from(rank) + 1).unwrap();
        let (rows, source) = (Component::new("rows").unwrap(), Arc::new(vec![rank as u8; 4]));
        state.add_slice(&rows, name("rows"), spec, row, source).unwrap();
        if let Some(target) = self.alias {
            state.add_alias(name("tied"), name(target)).unwrap();
        }
        if let Some(loss) = self.loss {
            state.values.set("loss", loss);
        }
        if let Some(bytes) = self.attached {
            state.attach_file("code/notes.txt", bytes).unwrap();
        }
        state.rank_values.set("rank", rank);
        state
    }
}

type Change = Box<dyn Fn(&mut Said) + Send + Sync>;

fn case(words: &'static str, change: impl Fn(&mut Said) + Send + Sync + 'static) -> Case {
    (words, Box::new(change))
}

/// What every rank must be told, and what is said otherwise.
type Case = (&'static str, Change);

/// Each option. One that is added does not compile until it is here.
fn options() -> Vec<Case> {
    let SaveOptions {
        step,
        epoch,
        on_existing,
        audit,
        space_reserve,
        ignore_space,
        copy_unchanged,
        libtorch_version,
    } = Said::usual().options;
    assert_ne!(on_existing, OnExisting::Number);
    vec![
        case("the step differs", move |said| said.options.step = step + 1),
        case("the epoch differs", move |said| said.options.epoch = epoch + 1),
        case("`on_existing` differs", |said| said.options.on_existing = OnExisting::Number),
        case("phase \"audit\"", move |said| said.options.audit = !audit),
        case("`space_reserve` differs", move |said| said.options.space_reserve = space_reserve + 1),
        case("`ignore_space` differs", move |said| said.options.ignore_space = !ignore_space),
        case("`copy_unchanged` differs", move |said| said.options.copy_unchanged = !copy_unchanged),
        case("the version of libtorch differs", move |said| {
            said.options.libtorch_version = format!("{libtorch_version}.1");
        }),
    ]
}

fn target_and_state() -> Vec<Case> {
    vec![
        case("the directory differs", |said| said.at = "elsewhere/a"),
        case("the name of the checkpoint differs", |said| said.at = "runs/b"),
        case("the tensor's dtype or shape differs", |said| said.dtype = Dtype::I32),
        case("the tensor's dtype or shape differs", |said| said.shape = [3, 2]),
        case("the tensor's dtype or shape differs", |said| said.shards += 1),
        case("the tensor's component differs", |said| said.component = Component::ema()),
        case("alias `tied`", |said| said.alias = Some("x")),
        case("alias `tied`", |said| said.alias = None),
        case("value `loss` differs", |said| said.loss = Some(0.25)),
        case("value `loss` differs", |said| said.loss = None),
        case("attached file `code/notes.txt` differs", |said| said.attached = Some(b"two")),
        case("attached file `code/notes.txt` differs", |said| said.attached = None),
    ]
}

/// A way of saving.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Plain,
    /// After a save of the same structure, which is then told by a hash.
    Again,
    Beside,
    SingleFile,
    MultiFiles,
}

impl Way {
    const ALL: [Self; 5] =
        [Self::Plain, Self::Again, Self::Beside, Self::SingleFile, Self::MultiFiles];

    fn is_same_call(self, other: Self) -> bool {
        self.phase() == other.phase()
    }

    /// In which ranks of these two ways see that others save in another way.
    fn phase_against(self, other: Self) -> &'static str {
        let is_directory = |way: Self| ["plan", "plan beside"].contains(&way.phase());
        if is_directory(self) && !is_directory(other) { "unchanged" } else { self.phase() }
    }

    /// In which ranks say what they hold.
    fn phase(self) -> &'static str {
        match self {
            Self::Plain | Self::Again => "plan",
            Self::Beside => "plan beside",
            Self::SingleFile => "plan file",
            Self::MultiFiles => "plan files",
        }
    }

    fn save(self, group: &ProcessGroup, storage: &Arc<dyn Storage>, said: &Said) -> Result<()> {
        let state = said.state(group.rank().get());
        let (at, options, on) = (path(said.at), &said.options, storage.as_ref());
        match self {
            Self::Plain | Self::Again => save(group, on, &at, &state, options).map(drop),
            Self::Beside => save_async(group, storage, &at, &state, options, Box::new(|_| {}))
                .and_then(|pending| pending.wait().map(drop)),
            Self::SingleFile => save_single_file(group, on, &at, &state, options).map(drop),
            Self::MultiFiles => save_multi_files(group, on, &at, &state, options).map(drop),
        }
    }
}

/// The one error of all ranks, of which `odd` says something else.
fn refused(way: Way, odd: u32, change: Change, words: &str) -> Error {
    let memory = MemoryStorage::new();
    let storage: Arc<dyn Storage> = Arc::new(memory.clone());
    let verdicts = on_ranks(RANKS, move |group| {
        if way == Way::Again {
            let first = Said { at: "runs/first", ..Said::usual() };
            way.save(&group, &storage, &first).unwrap();
        }
        let mut said = Said::usual();
        if group.rank().get() == odd {
            change(&mut said);
        }
        way.save(&group, &storage, &said)
    });
    let what = format!("{way:?}, rank {odd}: {words}");
    let before: &[&str] = if way == Way::Again { &["first"] } else { &[] };
    assert_eq!(entries(&memory, "runs"), before, "{what}");
    assert_eq!(entries(&memory, "elsewhere"), [""; 0], "{what}");
    one_error(&verdicts, &what)
}

fn assert_names(error: &Error, kind: ErrorKind, rank: u32, words: &str) {
    assert_eq!(error.kind(), kind, "{error}");
    let text = error.to_string();
    assert!(text.contains(words), "`{text}` does not say `{words}`");
    // Two sides are named: the coordinator is one, and if it is the odd one, any of the others.
    let names = |rank: u32| text.contains(&format!("rank {rank}"));
    let other = if rank == 0 { names(1) || names(2) } else { names(rank) };
    assert!(names(0) && other, "`{text}` does not name both sides");
}

#[test]
fn every_field_of_a_save_that_one_rank_says_otherwise() {
    let mut count = 0;
    for way in Way::ALL {
        for (number, (words, change)) in (0..).zip(options().into_iter().chain(target_and_state()))
        {
            // Nothing that exists is ever replaced by several files, whatever the options say.
            if way == Way::MultiFiles && words.contains("on_existing") {
                continue;
            }
            let odd = number % RANKS;
            let error = refused(way, odd, change, words);
            assert_names(&error, ErrorKind::Disagreement, odd, words);
            count += 1;
        }
    }
    crate::tier::figure("fields of a save that one rank says otherwise", count);
}

/// The structure may be known from an earlier save, which some of these ways tell by a hash.
#[test]
fn ranks_that_save_in_different_ways_are_told_so() {
    let mut count = 0u32;
    for usual in Way::ALL {
        for other in Way::ALL.into_iter().filter(|other| !usual.is_same_call(*other)) {
            let (odd, memory) = (count % RANKS, MemoryStorage::new());
            let storage: Arc<dyn Storage> = Arc::new(memory.clone());
            let verdicts = on_ranks(RANKS, move |group| {
                if usual == Way::Again || other == Way::Again {
                    let first = Said { at: "runs/first", ..Said::usual() };
                    Way::Plain.save(&group, &storage, &first).unwrap();
                }
                let way = if group.rank().get() == odd { other } else { usual };
                let verdict = way.save(&group, &storage, &Said::usual());
                // The group is of further use, once all do the same.
                Way::Plain
                    .save(&group, &storage, &Said { at: "runs/next", ..Said::usual() })
                    .unwrap();
                verdict
            });
            let what = format!("rank {odd} {other:?}, the others {usual:?}");
            let error = one_error(&verdicts, &what);
            for words in [usual.phase_against(other), other.phase_against(usual)] {
                assert_names(&error, ErrorKind::Disagreement, odd, &format!("phase \"{words}\""));
            }
            let left = entries(&memory, "runs");
            assert!(left.iter().all(|name| name == "first" || name == "next"), "{what}: {left:?}");
            count += 1;
        }
    }
}

/// What no rank holds cannot be told from a rank that has forgotten its share.
#[test]
fn a_share_that_its_rank_has_forgotten_is_a_gap() {
    for odd in 0..RANKS {
        let memory = MemoryStorage::new();
        let storage = memory.clone();
        let verdicts = on_ranks(RANKS, move |group| {
            let rank = group.rank().get();
            let mut state = Said { loss: None, attached: None, ..Said::usual() }.state(rank);
            if rank == odd {
                state = StateDict::new();
            }
            let options = SaveOptions::default();
            save(&group, &storage, &path("runs/a"), &state, &options).map(drop)
        });
        let error = one_error(&verdicts, "a gap");
        assert_eq!((error.kind(), error.tensor()), (ErrorKind::InvalidInput, Some("rows")));
        assert_eq!(entries(&memory, "runs"), [""; 0]);
    }
}

fn some_checkpoint() -> MemoryStorage {
    let memory = MemoryStorage::new();
    for at in ["runs/a", "runs/b", "elsewhere/a"] {
        saved(memory.clone(), 1, at, &[TestTensor::new("w", Dtype::U8, &[4], None)], 1);
    }
    memory
}

/// Loads `w` on each rank, as `ask` says; nothing may have changed.
fn load_refused(
    ask: impl Fn(&ProcessGroup, &dyn Storage, &mut LoadTargets<'_>) -> Result<()>
    + Send
    + Sync
    + 'static,
    what: &str,
) -> Error {
    let memory = some_checkpoint();
    let verdicts = on_ranks(RANKS, move |group| {
        let mut buffer = [0xEE; 4];
        let mut targets = LoadTargets::new();
        let spec = TensorSpec::new(Dtype::U8, [4]).unwrap();
        targets.add(name("w"), spec, Box::new(&mut buffer[..])).unwrap();
        let verdict = ask(&group, &memory, &mut targets);
        drop(targets);
        assert_eq!(buffer, [0xEE; 4]);
        verdict
    });
    one_error(&verdicts, what)
}

#[derive(Clone)]
struct Asked {
    wanted: Wanted,
    rules: LoadRules,
    atomicity: Atomicity,
}

#[test]
fn everything_that_one_rank_asks_otherwise_of_a_load() {
    let LoadRules { strict, components, replicas } = LoadRules::default();
    assert_eq!(replicas, Replicas::ReadEach);
    assert_eq!(components, None);
    type Ask = Box<dyn Fn(&mut Asked) + Send + Sync>;
    let cases: Vec<(&str, Ask)> = vec![
        ("checkpoint to be loaded", Box::new(|asked| asked.wanted = wanted("runs/b"))),
        ("checkpoint to be loaded", Box::new(|asked| asked.wanted = wanted("elsewhere/a"))),
        ("checkpoint to be loaded", Box::new(|asked| asked.wanted = wanted("runs/latest"))),
        ("checkpoint to be loaded", Box::new(|asked| asked.wanted = Wanted::step("runs", 1))),
        (
            "checkpoint to be loaded",
            Box::new(|asked| asked.wanted = asked.wanted.clone().or_unverified()),
        ),
        ("`strict` differs", Box::new(move |asked| asked.rules.strict = !strict)),
        (
            "`components` differs",
            Box::new(|asked| asked.rules.components = Some(vec![Component::model()])),
        ),
        ("`replicas` differs", Box::new(|asked| asked.rules.replicas = Replicas::ReadOnce)),
        ("`atomicity` differs", Box::new(|asked| asked.atomicity = Atomicity::InPlace)),
    ];
    for (number, (words, change)) in (0..).zip(cases) {
        let odd = number % RANKS;
        let ask = move |group: &ProcessGroup, storage: &dyn Storage, to: &mut LoadTargets<'_>| {
            let mut asked = Asked {
                wanted: wanted("runs/a"),
                rules: LoadRules::default(),
                atomicity: Atomicity::Atomic,
            };
            if group.rank().get() == odd {
                change(&mut asked);
            }
            let Asked { wanted, rules, atomicity } = asked;
            load(group, storage, &wanted, to, &rules, atomicity).map(drop)
        };
        let error = load_refused(ask, words);
        assert_eq!(error.kind(), ErrorKind::Disagreement, "{error}");
        assert!(error.message().contains(words), "{error}");
        assert_eq!(error.rank().map(|rank| rank.get()), Some(odd.max(1)), "{error}");
    }
}

#[test]
fn everything_that_one_rank_asks_otherwise_of_a_partial_load() {
    let SelectionRules { include, exclude, components, rename } = SelectionRules::default();
    let PartialOptions { strict, atomicity } = PartialOptions::default();
    assert!(include.is_empty() && exclude.is_empty() && rename.is_empty());
    assert!(components.is_some() && atomicity == Atomicity::Atomic);
    type Ask = Box<dyn Fn(&mut SelectionRules, &mut PartialOptions) + Send + Sync>;
    let all = || vec!["*".to_owned()];
    let cases: Vec<(&str, Ask)> = vec![
        ("`include`", Box::new(move |rules, _| rules.include = all())),
        ("`exclude`", Box::new(|rules, _| rules.exclude = vec!["x".to_owned()])),
        ("`components`", Box::new(|rules, _| rules.components = None)),
        ("`rename`", Box::new(|rules, _| rules.rename = vec![Rename::new("v", "w")])),
        ("`strict`", Box::new(move |_, options| options.strict = !strict)),
        ("`atomicity`", Box::new(|_, options| options.atomicity = Atomicity::InPlace)),
    ];
    for (number, (words, change)) in (0..).zip(cases) {
        let odd = number % RANKS;
        let ask = move |group: &ProcessGroup, storage: &dyn Storage, to: &mut LoadTargets<'_>| {
            let (mut rules, mut options) = (SelectionRules::default(), PartialOptions::default());
            if group.rank().get() == odd {
                change(&mut rules, &mut options);
            }
            let selection = Selection::new(rules)?;
            load_partial(group, storage, &wanted("runs/a"), to, &selection, &options).map(drop)
        };
        let error = load_refused(ask, words);
        assert_eq!(error.kind(), ErrorKind::Disagreement, "{error}");
        assert!(error.message().contains(words), "{error}");
        assert_eq!(error.rank().map(|rank| rank.get()), Some(odd.max(1)), "{error}");
    }
}
