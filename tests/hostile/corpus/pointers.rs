//! `best` as somebody else wrote it: by a link, or by JSON where there are no links. (`latest` goes
//! by manifests alone.)

use std::fs;
use std::os::unix::fs::symlink;

use tch_checkpoint::ErrorKind::{self, NotFound};

use super::{Case, Make, each_is_refused};
use crate::scene::Scene;

const fn best(rule: &'static str, word: &'static str, make: fn(&Scene)) -> Case {
    Case { rule, kind: NotFound, word, at: "best", unverified: false, make: Make::Placed(make) }
}

const fn latest(rule: &'static str, kind: ErrorKind, word: &'static str, make: fn(&Scene)) -> Case {
    Case { rule, kind, word, at: "latest", unverified: false, make: Make::Placed(make) }
}

fn link(scene: &Scene, target: &str) {
    symlink(target, scene.dir().join("best")).unwrap();
}

fn json(scene: &Scene, text: impl AsRef<[u8]>) {
    scene.put("best.json", text);
}

fn named(scene: &Scene, name: &str) {
    let name = serde_json::to_string(name).unwrap();
    json(
        scene,
        format!(
            r#"{{"tch_checkpoint_pointer":1,"name":{name},"save_id":"{}","step":1,"epoch":1,"metrics":{{}},"created_unix_ms":1}}"#,
            "ab".repeat(16)
        ),
    );
}

const NO_NAME: &str = "which is no name of a checkpoint";
const NOTHING: &str = "nothing says which checkpoint is the best";

pub const CASES: [Case; 25] = [
    best("a link that climbs", NO_NAME, |s| link(s, "../outside/ck")),
    best("an absolute link", NO_NAME, |s| {
        let target = s.outside().join("ck");
        link(s, target.to_str().unwrap());
    }),
    best("a link to the other pointer", NO_NAME, |s| link(s, "latest")),
    best("a pointer to itself", NO_NAME, |s| link(s, "best")),
    best("a link to a hidden attempt", NO_NAME, |s| {
        link(s, &format!(".a.{}.partial", "ab".repeat(16)));
    }),
    best("a link to the directory", NO_NAME, |s| link(s, ".")),
    best("a link of 4000 bytes", NO_NAME, |s| link(s, &"x".repeat(4000))),
    best("a link that drives a terminal", NO_NAME, |s| {
        link(s, "\u{1b}[2J\u{9b}0m\nLATEST 9 forged");
    }),
    best("a link that shows a name backwards", NO_NAME, |s| link(s, "../\u{202e}x")),
    best("a link to nothing", "not there", |s| link(s, "gone")),
    best("a link to a link to a checkpoint", "not there", |s| {
        symlink(s.outside().join("ck"), s.dir().join("c")).unwrap();
        link(s, "c");
    }),
    best("a FIFO as a pointer", NOTHING, |s| {
        let (path, kind) = (s.dir().join("best.json"), rustix::fs::FileType::Fifo);
        rustix::fs::mknodat(rustix::fs::CWD, path, kind, 0o600.into(), 0).unwrap();
    }),
    best("a pointer that is a directory", NOTHING, |s| {
        fs::create_dir(s.dir().join("best.json")).unwrap();
    }),
    best("a pointer that is a link to one", NOTHING, |s| {
        symlink(s.outside().join("secret"), s.dir().join("best.json")).unwrap();
    }),
    best("a pointer of a terabyte", NOTHING, |s| {
        json(s, "");
        let path = s.dir().join("best.json");
        fs::OpenOptions::new().write(true).open(path).unwrap().set_len(1 << 40).unwrap();
    }),
    best("a pointer that is no JSON", NOTHING, |s| json(s, b"\x80\x02}.")),
    best("a pointer 50,000 deep", NOTHING, |s| json(s, "[".repeat(50_000))),
    best("a pointer with a number beyond all", NOTHING, |s| {
        json(s, r#"{"tch_checkpoint_pointer":1e400,"name":"a"}"#);
    }),
    best("a pointer that climbs", NOTHING, |s| named(s, "../outside/ck")),
    best("a pointer with an absolute path", NOTHING, |s| named(s, "/etc")),
    best("a pointer with a NUL", NOTHING, |s| named(s, "a\0b")),
    best("a pointer to something hidden", NOTHING, |s| named(s, ".git")),
    best("a pointer to a name of 300 bytes", NOTHING, |s| named(s, &"x".repeat(300))),
    best("a pointer to a checkpoint that is a link", "not there", |s| {
        symlink(s.outside().join("ck"), s.a()).unwrap();
        named(s, "a");
    }),
    latest("a newest one that is nowhere", NotFound, "no checkpoint here", |s| {
        symlink(s.outside().join("ck"), s.dir().join("latest")).unwrap();
    }),
];

#[test]
fn pointers_lead_nowhere_else() {
    each_is_refused("pointers", &CASES);
}
