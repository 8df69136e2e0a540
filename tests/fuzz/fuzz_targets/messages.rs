//! Messages between ranks that have joined: frames, and the bodies of votes and verdicts, as they
//! are or good ones after a few edits.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use tch_checkpoint::fuzzing;
use tch_checkpoint_fuzz::{Input, edit};

/// From here on modes stand for good bodies.
const EDITED: u8 = 64;

fuzz_target!(|data: &[u8]| {
    let Some((mode, rest)) = data.split_first() else { return };
    match mode.checked_sub(EDITED) {
        Some(number) => edited(number, rest),
        None => match mode % (fuzzing::BODIES + 1) {
            fuzzing::BODIES => fuzzing::frames(rest),
            kind => fuzzing::body(kind, rest),
        },
    }
});

fn edited(number: u8, edits: &[u8]) {
    static BODIES: OnceLock<Vec<(u8, Vec<u8>)>> = OnceLock::new();
    let bodies = BODIES.get_or_init(fuzzing::bodies);
    let (kind, mut bytes) = bodies[usize::from(number) % bodies.len()].clone();
    let mut input = Input(edits);
    while !input.0.is_empty() {
        edit(&mut bytes, &mut input);
    }
    fuzzing::body(kind, &bytes);
}
