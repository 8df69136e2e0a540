//! The saves that traces tell of: which events of which ranks belong together.

use std::collections::BTreeMap;
use std::time::Duration;

use super::trace::Event;

/// A save, as far as ranks have told.
#[derive(Debug, Clone, Default)]
pub(super) struct Save {
    /// Where it saved to.
    pub(super) path: String,
    pub(super) step: Option<u64>,
    /// Since 1970: when the first rank began, and when the last one ended.
    pub(super) begin: Duration,
    pub(super) end: Duration,
    pub(super) ranks: BTreeMap<u32, Rank>,
}

/// What one rank did in a save.
#[derive(Debug, Clone, Default)]
pub(super) struct Rank {
    pub(super) begin: Duration,
    pub(super) end: Duration,
    pub(super) failed: bool,
    pub(super) bytes: Option<u64>,
    pub(super) written: Option<u64>,
    pub(super) is_beside: bool,
    /// One after the other.
    pub(super) parts: Vec<Part>,
    /// For how long its training was held up.
    pub(super) stall: Duration,
}

/// From then to then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) kind: Kind,
    pub(super) begin: Duration,
    pub(super) end: Duration,
}

/// What a rank did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Plan,
    Stage,
    Write,
    Commit,
    /// For what others do.
    Wait,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plan => "plan",
            Self::Stage => "stage",
            Self::Write => "write",
            Self::Commit => "commit",
            Self::Wait => "wait",
        }
    }
}

impl Save {
    /// The last component of its path.
    pub(super) fn name(&self) -> &str {
        split(&self.path).1
    }

    pub(super) fn directory(&self) -> &str {
        split(&self.path).0
    }

    pub(super) fn time(&self) -> Duration {
        self.end.saturating_sub(self.begin)
    }

    pub(super) fn failed(&self) -> bool {
        self.ranks.values().any(|rank| rank.failed)
    }

    pub(super) fn is_beside(&self) -> bool {
        self.ranks.values().any(|rank| rank.is_beside)
    }

    pub(super) fn stall(&self) -> Duration {
        self.ranks.values().map(|rank| rank.stall).max().unwrap_or_default()
    }

    /// Bytes of its tensors.
    pub(super) fn bytes(&self) -> Option<u64> {
        self.ranks.values().find_map(|rank| rank.bytes)
    }

    /// Of its tensors, over all of it, in bytes per second.
    pub(super) fn bandwidth(&self) -> Option<f64> {
        let rate = self.bytes()? as f64 / self.time().as_secs_f64();
        rate.is_finite().then_some(rate).filter(|_| !self.failed())
    }

    /// The rank that wrote longest, if there are several.
    pub(super) fn slowest(&self) -> Option<u32> {
        let of = |rank: &Rank| rank.of(Kind::Write);
        let slowest = self.ranks.iter().rev().max_by_key(|(_, rank)| of(rank))?;
        (self.ranks.len() > 1 && !of(slowest.1).is_zero()).then_some(*slowest.0)
    }
}

fn split(path: &str) -> (&str, &str) {
    path.trim_end_matches('/').rsplit_once('/').unwrap_or(("", path))
}

impl Rank {
    /// How long it did that.
    pub(super) fn of(&self, kind: Kind) -> Duration {
        let parts = self.parts.iter().filter(|part| part.kind == kind);
        parts.map(|part| part.end.saturating_sub(part.begin)).sum()
    }
}

/// The saves of events, oldest first, and how many events belong to none that has ended.
pub(super) fn saves_of(events: &[Event]) -> (Vec<Save>, usize) {
    let mut by_place: BTreeMap<(&str, u32), Vec<&Event>> = BTreeMap::new();
    for event in events {
        by_place.entry((&event.path, event.rank)).or_default().push(event);
    }
    let mut found: BTreeMap<&str, Begun> = BTreeMap::new();
    let mut used = 0;
    for ((path, rank), mut events) in by_place {
        // The whole comes before its parts, and before the next one: each is looked at once.
        events.sort_by_key(|event| (event.begin, std::cmp::Reverse(event.time)));
        for events in events.chunk_by(|_, next| next.name != WHOLE) {
            let Some((whole, parts)) = events.split_first().filter(|(e, _)| e.name == WHOLE) else {
                continue;
            };
            let inside: Vec<&Event> =
                parts.iter().filter(|part| part.end() <= whole.end()).copied().collect();
            used += inside.len() + 1;
            place(found.entry(path).or_default(), rank, whole, &inside);
        }
    }
    let mut saves: Vec<Save> = found.into_values().flat_map(BTreeMap::into_values).collect();
    saves.sort_by(|a, b| (a.begin, &a.path).cmp(&(b.begin, &b.path)));
    (saves, events.len().saturating_sub(used))
}

/// The event of all of a save.
const WHOLE: &str = "save";
/// So many saves before the end of a rank's are asked whether it belongs to them: a trace may hold
/// very many at one time.
const NEAR: usize = 8;

/// Saves of one path, by when the rank that was read first began, and in order of reading.
type Begun = BTreeMap<(Duration, usize), Save>;

/// Puts a rank to the save of the same path that went on at that time, most of it if there are
/// several.
fn place(saves: &mut Begun, number: u32, whole: &Event, inside: &[&Event]) {
    let rank = rank_of(number, whole, inside);
    let fits = |save: &Save| {
        let is_step = save.step.is_none() || whole.step.is_none() || save.step == whole.step;
        is_step && save.begin <= rank.end && rank.begin <= save.end
    };
    let both = |save: &Save| save.end.min(rank.end).saturating_sub(save.begin.max(rank.begin));
    let near = saves.range(..=(rank.end, usize::MAX)).rev().take(NEAR);
    let fitting = near.filter(|(_, save)| fits(save) && !save.ranks.contains_key(&number));
    let key = fitting.max_by_key(|(_, save)| both(save)).map(|(key, _)| *key);
    let save = saves.entry(key.unwrap_or((rank.begin, saves.len()))).or_insert_with(|| Save {
        path: whole.path.clone(),
        begin: rank.begin,
        end: rank.end,
        ..Save::default()
    });
    save.begin = save.begin.min(rank.begin);
    save.end = save.end.max(rank.end);
    save.step = save.step.or(whole.step);
    save.ranks.insert(number, rank);
}

fn rank_of(number: u32, whole: &Event, inside: &[&Event]) -> Rank {
    let named = |name: &'static str| inside.iter().filter(move |event| event.name == name);
    let held = ["held", "copying"].into_iter().flat_map(named).map(|event| event.time).sum();
    Rank {
        begin: whole.begin,
        end: whole.end(),
        failed: whole.failed || inside.iter().any(|event| event.failed),
        bytes: whole.bytes,
        written: named("write").find_map(|event| event.bytes),
        is_beside: whole.is_beside,
        stall: if whole.is_beside { held } else { whole.time },
        parts: parts_of(number, whole, inside),
    }
}

/// All of the time of a save, by what it went to. Between vote and verdict the coordinator, and it
/// alone, does something, which has events of its own.
fn parts_of(number: u32, whole: &Event, inside: &[&Event]) -> Vec<Part> {
    let kind = |name: &str| match name {
        "plan" => Some(Kind::Plan),
        "stage" => Some(Kind::Stage),
        "write" => Some(Kind::Write),
        "checks" | "seal" | "publish" | "rename" if number == 0 => Some(Kind::Commit),
        _ => None,
    };
    let (mut parts, mut at) = (Vec::<Part>::new(), whole.begin);
    let mut push = |kind, begin: Duration, end: Duration| match parts.last_mut() {
        _ if end <= begin => {}
        Some(last) if last.kind == kind && last.end == begin => last.end = end,
        _ => parts.push(Part { kind, begin, end }),
    };
    for (kind, event) in inside.iter().filter_map(|event| Some((kind(&event.name)?, event))) {
        push(Kind::Wait, at, event.begin);
        push(kind, event.begin.max(at), event.end());
        at = at.max(event.end());
    }
    push(Kind::Wait, at, whole.end());
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str, rank: u32, begin: u64, end: u64) -> Event {
        Event {
            name: name.to_owned(),
            rank,
            is_beside: false,
            begin: Duration::from_millis(begin),
            time: Duration::from_millis(end - begin),
            path: "runs/a".to_owned(),
            bytes: Some(10),
            step: Some(7),
            failed: false,
        }
    }

    fn shown(rank: &Rank) -> Vec<(&'static str, u128, u128)> {
        let at = |time: Duration| time.as_millis();
        rank.parts.iter().map(|part| (part.kind.name(), at(part.begin), at(part.end))).collect()
    }

    /// As ranks write them: parts before the whole.
    #[test]
    fn a_save_is_cut_into_what_its_ranks_did_and_waited_for() {
        let events = [
            event("plan", 0, 0, 10),
            event("write", 0, 12, 20),
            event("checks", 0, 40, 44),
            event("seal", 0, 44, 45),
            event("commit", 0, 20, 50),
            event("save", 0, 0, 50),
            event("plan", 1, 1, 10),
            event("write", 1, 10, 39),
            event("commit", 1, 39, 50),
            event("save", 1, 1, 50),
            event("write", 2, 60, 70),
        ];
        let (saves, left) = saves_of(&events);
        assert_eq!((saves.len(), left), (1, 1));
        let save = &saves[0];
        assert_eq!((save.name(), save.directory(), save.step), ("a", "runs", Some(7)));
        assert_eq!(save.slowest(), Some(1));
        assert_eq!(save.stall(), Duration::from_millis(50));
        let first = [
            ("plan", 0, 10),
            ("wait", 10, 12),
            ("write", 12, 20),
            ("wait", 20, 40),
            ("commit", 40, 45),
            ("wait", 45, 50),
        ];
        assert_eq!(shown(&save.ranks[&0]), first);
        let second = [("plan", 1, 10), ("write", 10, 39), ("wait", 39, 50)];
        assert_eq!(shown(&save.ranks[&1]), second);
    }

    #[test]
    fn a_name_that_is_saved_again_is_another_save() {
        let events = [
            event("save", 0, 0, 10),
            event("save", 1, 1, 10),
            event("save", 0, 30, 40),
            event("save", 1, 30, 41),
        ];
        let (saves, left) = saves_of(&events);
        let ranks: Vec<usize> = saves.iter().map(|save| save.ranks.len()).collect();
        assert_eq!((ranks, left), (vec![2, 2], 0));
    }

    /// Clocks of hosts differ a little: ends and beginnings of two saves touch.
    #[test]
    fn saves_that_touch_are_told_apart_by_what_they_share() {
        let of = |step, event| Event { step, ..event };
        let events = [
            event("save", 0, 0, 10),
            event("save", 0, 10, 20),
            event("save", 1, 2, 11),
            event("save", 1, 11, 21),
            of(Some(8), event("save", 2, 1, 20)),
        ];
        let (saves, _) = saves_of(&events);
        let ranks: Vec<Vec<u32>> =
            saves.iter().map(|save| save.ranks.keys().copied().collect()).collect();
        assert_eq!(ranks, [vec![0, 1], vec![2], vec![0, 1]]);
    }

    /// As somebody may have written them: they take no longer than others.
    #[test]
    fn very_many_saves_at_one_time_are_read() {
        let same = |rank: u32| event("save", rank, 0, 1_000_000);
        let part = |rank: u32| event("write", rank, 0, 10);
        let events: Vec<Event> = (0..100_000).flat_map(|at| [same(at % 2), part(at % 2)]).collect();
        assert!(saves_of(&events).0.len() >= 50_000);
    }

    #[test]
    fn beside_training_what_was_held_up_counts() {
        let beside = |event| Event { is_beside: true, ..event };
        let events = [
            event("held", 0, 0, 3),
            event("copying", 0, 5, 7),
            beside(event("write", 0, 3, 20)),
            beside(event("save", 0, 0, 30)),
        ];
        let (saves, _) = saves_of(&events);
        assert_eq!(saves[0].stall(), Duration::from_millis(5));
        assert!(saves[0].is_beside());
        assert_eq!(saves[0].bandwidth().map(f64::round), Some(333.0));
    }
}
