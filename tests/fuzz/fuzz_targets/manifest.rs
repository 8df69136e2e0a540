//! The manifest: as it is (mode 0), or a body for which envelope and checksum are made.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tch_checkpoint::manifest::Manifest;
use tch_checkpoint_fuzz::look;

const MAGIC: [&[u8; 8]; 3] = [b"TCHCKPT\n", b"TCHSNGL\n", b"TCHPLAI\n"];

fuzz_target!(|data: &[u8]| {
    let Some((mode, rest)) = data.split_first() else { return };
    match mode.checked_sub(1) {
        None => check(rest),
        Some(mode) => check(&sealed(mode, rest)),
    }
});

fn sealed(mode: u8, body: &[u8]) -> Vec<u8> {
    let magic = MAGIC[usize::from(mode) % MAGIC.len()];
    let version = u32::from(mode) / 3 % 4;
    let len = body.len() as u64;
    let mut bytes = [&magic[..], &version.to_le_bytes(), &len.to_le_bytes(), body].concat();
    bytes.extend(*blake3::hash(&bytes).as_bytes());
    bytes
}

fn check(bytes: &[u8]) {
    let Ok(manifest) = Manifest::parse(bytes) else { return };
    let printed = manifest.encode().expect("what was parsed is encoded");
    let again = Manifest::parse(&printed).expect("what was encoded is parsed");
    // By bytes, since not every number equals itself.
    assert_eq!(again.encode().expect("as before"), printed);
    look(&manifest);
}
