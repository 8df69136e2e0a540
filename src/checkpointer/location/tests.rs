use std::collections::BTreeMap;

use super::*;

/// A machine whose root is a directory of the test.
#[derive(Debug)]
struct Fake {
    root: tempfile::TempDir,
    variables: BTreeMap<&'static str, &'static str>,
    mounted: Vec<PathBuf>,
}

impl Fake {
    fn new(variables: &[(&'static str, &'static str)], directories: &[&str]) -> Self {
        let root = tempfile::tempdir().unwrap();
        for directory in directories {
            std::fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        Self { root, variables: variables.iter().copied().collect(), mounted: Vec::new() }
    }

    fn colab(directories: &[&str]) -> Self {
        Self::new(&[("COLAB_RELEASE_TAG", "release-colab_1")], directories)
    }

    fn mounted(mut self, at: &str) -> Self {
        self.mounted.push(PathBuf::from(at));
        self
    }

    fn entries(&self) -> usize {
        std::fs::read_dir(self.root.path()).unwrap().count()
    }
}

impl Environment for Fake {
    fn variable(&self, name: &str) -> Option<OsString> {
        self.variables.get(name).map(OsString::from)
    }

    fn is_directory(&self, path: &Path) -> bool {
        self.root.path().join(path.strip_prefix("/").unwrap()).is_dir()
    }

    fn is_mount_point(&self, path: &Path) -> bool {
        self.mounted.iter().any(|mounted| mounted == path) && self.is_directory(path)
    }
}

/// A machine on which Drive is mounted.
fn with_drive() -> Fake {
    Fake::colab(&["content/drive/MyDrive", "content/drive/Shareddrives/team"])
        .mounted("/content/drive")
}

#[track_caller]
fn assert_place(location: &Location, machine: &Fake, directory: &str, kind: PlaceKind) {
    let before = machine.entries();
    let place = location.resolve("run 1", machine).unwrap();
    assert_eq!((place.directory.as_path(), place.kind), (Path::new(directory), kind));
    let minimum = if kind == PlaceKind::Drive { 200 } else { 0 };
    assert_eq!(place.space_warning_mib, minimum);
    assert_eq!(machine.entries(), before, "nothing is made");
}

fn at(drive_path: &str) -> Location {
    Location::ColabDriveAt(ColabDrive { drive_path: drive_path.into(), ..ColabDrive::default() })
}

#[test]
fn the_place_follows_from_location_and_machine() {
    use PlaceKind::{Directory, Drive, Ephemeral};
    let (plain, colab) = (Fake::new(&[], &["content/drive/MyDrive"]), with_drive());
    for machine in [&plain, &colab] {
        assert_place(&Location::Local, machine, "checkpoints/run 1", Directory);
        assert_place(&Location::Path("/data/runs".into()), machine, "/data/runs/run 1", Directory);
    }
    assert_place(&Location::Auto, &plain, "checkpoints/run 1", Directory);
    let in_drive = "/content/drive/MyDrive/tch_checkpoints/run 1";
    assert_place(&Location::Auto, &colab, in_drive, Drive);
    assert_place(&Location::ColabDrive, &colab, in_drive, Drive);
    let bare = Fake::colab(&["content"]);
    let lost = "/content/checkpoints/run 1";
    assert_place(&Location::ColabDrive, &bare, lost, Ephemeral);
    assert_place(&Location::Auto, &bare, lost, Ephemeral);
}

#[test]
fn drive_outside_colab_is_refused() {
    let copied = Fake::new(&[("COLAB_GPU", "1")], &["home"]);
    let empty = Fake::new(&[("COLAB_RELEASE_TAG", "")], &["content/drive/MyDrive"]);
    for machine in [copied, empty.mounted("/content/drive")] {
        for location in [Location::ColabDrive, at("MyDrive/x")] {
            let error = location.resolve("run", &machine).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            assert!(error.help().unwrap().contains("`local`"), "{error}");
        }
        assert_place(&Location::Auto, &machine, "checkpoints/run 1", PlaceKind::Directory);
    }
}

#[test]
fn what_only_looks_mounted_is_not_written_to() {
    let lost = "/content/checkpoints/run 1";
    // Left by a program that made the directories below a mount point that was free.
    let left = Fake::colab(&["content/drive/MyDrive/tch_checkpoints"]);
    assert_place(&Location::ColabDrive, &left, lost, PlaceKind::Ephemeral);
    // Mounted, and Drive does not answer yet.
    let empty = Fake::colab(&["content/drive"]).mounted("/content/drive");
    assert_place(&Location::ColabDrive, &empty, lost, PlaceKind::Ephemeral);
}

#[test]
fn the_folder_in_drive_can_be_chosen() {
    let drive = PlaceKind::Drive;
    let colab = with_drive();
    assert_place(&at("My Drive/a/b"), &colab, "/content/drive/MyDrive/a/b/run 1", drive);
    assert_place(&at("Shareddrives/team"), &colab, "/content/drive/Shareddrives/team/run 1", drive);
    assert_place(&at("MyDrive"), &colab, "/content/drive/MyDrive/run 1", drive);
    assert_place(&at("Elsewhere/a"), &colab, "/content/checkpoints/run 1", PlaceKind::Ephemeral);
    let settings =
        ColabDrive { mount_point: "/mnt".into(), space_warning_mib: 7, ..ColabDrive::default() };
    let moved = Fake::colab(&["content", "mnt/MyDrive"]).mounted("/mnt");
    let place = Location::ColabDriveAt(settings).resolve("r", &moved).unwrap();
    assert_eq!(place.directory, Path::new("/mnt/MyDrive/tch_checkpoints/r"));
    assert_eq!(place.space_warning_mib, 7);
    for bad in ["", "/abs", "MyDrive/../..", "../x", "./x"] {
        let error = at(bad).resolve("run", &colab).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad:?}");
    }
}

#[test]
fn an_experiment_is_one_component_whatever_the_location() {
    let colab = with_drive();
    let long = "e".repeat(200);
    for good in ["baseline", "lr=1e-3, seed 7", "latest", "größe", &long] {
        assert_eq!(Location::local(good).unwrap().directory, Path::new("checkpoints").join(good));
    }
    let too_long = "e".repeat(201);
    for bad in ["", "  ", ".", "..", ".hidden", "a/b", "/a", "a\\b", "a\nb", "a\0", &too_long] {
        for location in
            [Location::Auto, Location::Local, Location::Path("d".into()), Location::ColabDrive]
        {
            let error = location.resolve(bad, &colab).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad:?}");
            assert!(error.to_string().len() < 400, "{error}");
        }
    }
}

#[test]
fn this_machine_knows_what_is_mounted() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("file");
    std::fs::write(&file, b"").unwrap();
    assert!(
        ThisMachine.is_mount_point(Path::new("/"))
            && ThisMachine.is_mount_point(Path::new("/proc"))
    );
    for not in [place.path(), &file, &place.path().join("missing")] {
        assert!(!ThisMachine.is_mount_point(not), "{}", not.display());
    }
    assert!(ThisMachine.is_directory(place.path()) && !ThisMachine.is_directory(&file));
    assert_eq!(ThisMachine.variable("PATH"), std::env::var_os("PATH"));
}

#[test]
fn locations_are_written_as_words_or_with_their_settings() {
    let read = |text: &str| serde_json::from_str::<Location>(text).map_err(|e| e.to_string());
    assert_eq!(read(r#""colab_drive""#), Ok(Location::ColabDrive));
    assert_eq!(read(r#"{"path": "runs"}"#), Ok(Location::Path("runs".into())));
    assert_eq!(read(r#"{"colab_drive_at": {"drive_path": "MyDrive/x"}}"#), Ok(at("MyDrive/x")));
    assert!(read(r#"{"colab_drive_at": {"path": "x"}}"#).unwrap_err().contains("drive_path"));
}
