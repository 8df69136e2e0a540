use std::time::Duration;

use super::event::{Event, events_between, usual_interval};
use super::look::Seen;
use super::table::{Around, lines, rows_of};
use crate::catalog::CheckpointPath;
use crate::group::ProcessGroup;
use crate::plan::OnExisting;
use crate::save::{SaveOptions, save};
use crate::state::StateDict;
use crate::storage::{Directory, Fault, FaultyStorage, MemoryStorage, Storage};

fn saved(storage: &MemoryStorage, name: &str, step: u64) {
    let path = CheckpointPath::parse(format!("run/{name}")).unwrap();
    let options = SaveOptions { step, on_existing: OnExisting::Replace, ..SaveOptions::default() };
    save(&ProcessGroup::solo(), storage, &path, &StateDict::new(), &options).unwrap();
}

fn parent(storage: &MemoryStorage) -> std::sync::Arc<dyn Directory> {
    storage.open_dir("run".as_ref()).unwrap()
}

#[test]
fn what_happens_between_looks_is_told() {
    let storage = MemoryStorage::new();
    saved(&storage, "a", 1);
    let dir = parent(&storage);
    let first = Seen::default().again(dir.as_ref()).unwrap();
    assert_eq!(first.committed().len(), 1);
    assert_eq!(events_between(&first, &first.again(dir.as_ref()).unwrap()), []);
    // The same name saved again, another one, and one under way.
    saved(&storage, "a", 2);
    saved(&storage, "b", 3);
    let attempt = ".c.00112233445566778899aabbccddeeff.partial";
    let file = dir.create_dir(attempt).unwrap().create_file("model").unwrap();
    file.write_at(0, &[0; 100]).unwrap();
    file.finish().unwrap();
    let second = first.again(dir.as_ref()).unwrap();
    let texts: Vec<String> = events_between(&first, &second).iter().map(Event::text).collect();
    assert_eq!(texts[0], "saving     c");
    assert!(texts[1].starts_with("committed  a  step 2") && texts[2].starts_with("committed  b"));
    assert_eq!(texts.len(), 3, "{texts:?}");
    assert_eq!(second.attempts.values().next().unwrap().bytes, 100);
    // A checkpoint that is gone.
    dir.open_dir("b").unwrap().list().unwrap().iter().for_each(|entry| {
        dir.open_dir("b").unwrap().remove_file(&entry.name).unwrap();
    });
    let third = second.again(dir.as_ref()).unwrap();
    assert_eq!(events_between(&second, &third), [Event::Removed("b".to_owned())]);
}

/// The directory may be the top of a file system, where that one is for the superuser alone.
#[test]
fn what_a_file_system_keeps_for_itself_ends_no_watch() {
    let storage = MemoryStorage::new();
    saved(&storage, "a", 1);
    let kept = "run/lost+found";
    storage.create_dir_all(kept.as_ref()).unwrap();
    let faulty = FaultyStorage::new(std::sync::Arc::new(storage));
    let look = || Seen::default().again(faulty.open_dir("run".as_ref())?.as_ref());
    look().unwrap();
    let opened = faulty.log().iter().position(|line| line == &format!("open_dir {kept}")).unwrap();
    for (errno, is_fine) in [(13, true), (5, false)] {
        faulty.reset();
        faulty.fail_at(opened as u64 + 1, Fault::Error(errno), false);
        assert_eq!(look().map(|seen| seen.committed().len()).ok(), is_fine.then_some(1));
    }
}

#[test]
fn a_terminal_that_was_made_narrower_has_wrapped_lines() {
    assert_eq!(rows_of(&[0, 40, 80, 81], Some(40)), 1 + 1 + 2 + 3);
    assert_eq!((rows_of(&[100, 5], None), rows_of(&[], Some(0))), (2, 0));
}

#[test]
fn a_table_fits_its_width_and_warns() {
    let storage = MemoryStorage::new();
    for step in 0..30 {
        saved(&storage, &format!("checkpoint-with-a-long-name-{step}"), step);
    }
    let seen = Seen::default().again(parent(&storage).as_ref()).unwrap();
    assert!(usual_interval(&seen).is_some());
    let around = Around {
        dir: "run",
        now: crate::clock::unix_time() + Duration::from_secs(60),
        usual: Some(Duration::from_secs(5)),
        is_late: true,
        last: None,
    };
    let shown = lines(&seen, &around, Some(60));
    assert!(shown.iter().all(|line| line.chars().count() <= 60), "{shown:?}");
    assert!(shown.len() < 20 && shown.last().unwrap().starts_with("LATE: last save 60 s ago"));
}
