//! The first words on a connection, from either side.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tch_checkpoint::fuzzing;

fuzz_target!(|data: &[u8]| {
    let Some((mode, rest)) = data.split_first() else { return };
    match mode % 4 {
        0 => fuzzing::hello(rest),
        1 => fuzzing::reply(rest),
        2 => fuzzing::connection(rest),
        _ => fuzzing::guest(rest),
    }
});
