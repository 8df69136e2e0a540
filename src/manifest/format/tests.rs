use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::Format;
use crate::catalog::{self, CheckpointPath, Wanted};
use crate::error::{Error, ErrorKind};
use crate::group::ProcessGroup;
use crate::layout::MANIFEST;
use crate::load::{Atomicity, load};
use crate::manifest::tests::seal;
use crate::manifest::{BLOCK_BYTES, FORMAT_VERSION, Manifest, SUMS_HEADER_BYTES, hash16, parse};
use crate::plan::load::LoadRules;
use crate::save::{SaveOptions, save};
use crate::slice::Slice;
use crate::state::{LoadTargets, StateDict};
use crate::storage::MemoryStorage;
use crate::tensor::{Component, Dtype, TensorName, TensorSpec};
use crate::verify::verify;

#[test]
fn a_manifest_of_version_1_is_read_and_written_as_it_was() {
    let body = seal().body;
    let bytes = parse::envelope(1, &crate::codec::encode(&body).unwrap()).unwrap();
    let read = Manifest::parse(&bytes).unwrap();
    assert_eq!((read.block_bytes(), read.data_files()[0].sums_count), (65_536, 3));
    assert_eq!(read.encode().unwrap(), bytes);
    assert_eq!(seal().block_bytes(), BLOCK_BYTES);
    assert_ne!(read, seal());
}

#[test]
fn blocks_of_a_size_that_nobody_writes_are_refused() {
    let body = seal().body;
    let stating = |block: u64| {
        let bytes = crate::codec::encode_compact(&(block, &body)).unwrap();
        Manifest::parse(&parse::envelope(FORMAT_VERSION, &bytes).unwrap())
    };
    assert_eq!(stating(BLOCK_BYTES).unwrap(), seal());
    assert_eq!(stating(65_536).unwrap().block_bytes(), 65_536);
    for block in [0, 1, 4096, 16_383, 1 << 20, u64::MAX] {
        let error = stating(block).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains(&format!("blocks of {block} bytes")), "{error}");
    }
}

/// A checkpoint of one tensor as version 1 had it, sums and manifest.
fn rewrite_as_version_1(storage: &MemoryStorage, content: &[u8]) {
    let at = |name: &str| Path::new("runs/a").join(name);
    let mut manifest = Manifest::parse(&storage.read(&at(MANIFEST)).unwrap()).unwrap();
    let sums_file = at(&manifest.body.sums_files[0].name);
    let mut sums = storage.read(&sums_file).unwrap();
    let header = usize::try_from(SUMS_HEADER_BYTES).unwrap();
    sums.truncate(header);
    sums.extend(content.chunks(65_536).flat_map(hash16));
    storage.write(&sums_file, &sums).unwrap();
    let body = &mut manifest.body;
    body.data_files[0].sums_hash = hash16(&sums[header..]);
    (body.sums_files[0].len, body.sums_files[0].hash) = (sums.len() as u64, hash16(&sums));
    manifest.format = Format::V1;
    storage.write(&at(MANIFEST), &manifest.encode().unwrap()).unwrap();
}

#[test]
fn large_blocks_of_version_1_are_checked_as_they_were_taken() {
    let content: Vec<u8> = (0..=250u8).cycle().take(200_000).collect();
    let (storage, solo) = (MemoryStorage::new(), ProcessGroup::solo());
    let (name, mut state) = (TensorName::new("w").unwrap(), StateDict::new());
    let spec = TensorSpec::new(Dtype::U8, vec![200_000]).unwrap();
    let source = Arc::new(content.clone());
    state.add(&Component::model(), name.clone(), spec.clone(), source).unwrap();
    let path = CheckpointPath::parse("runs/a").unwrap();
    save(&solo, &storage, &path, &state, &SaveOptions::default()).unwrap();
    rewrite_as_version_1(&storage, &content);
    let wanted = Wanted::parse("runs/a").unwrap();
    let read = |rows: Range<u32>| {
        let mut out = vec![0; rows.len()];
        let rows = u64::from(rows.start)..u64::from(rows.end);
        let mut targets = LoadTargets::new();
        let slice = Slice::full(spec.shape()).rows(rows).unwrap();
        targets.add_slice(name.clone(), spec.clone(), slice, Box::new(&mut out[..])).unwrap();
        let rules = LoadRules::default();
        load(&solo, &storage, &wanted, &mut targets, &rules, Atomicity::InPlace)?;
        drop(targets);
        Ok::<_, Error>(out)
    };
    assert_eq!(read(0..200_000).unwrap(), content);
    assert_eq!(read(65_000..70_000).unwrap(), content[65_000..70_000]);
    let found = catalog::find(&storage, &wanted).unwrap();
    assert_eq!(verify(&found, &mut |_| {}).unwrap().damage, []);
    let (file, begin) =
        (&found.manifest.data_files()[0], found.manifest.data_files()[0].data_start);
    storage.corrupt(&Path::new("runs/a").join(&file.name), begin + 130_000, 1).unwrap();
    let error = read(0..200_000).unwrap_err();
    assert_eq!((error.kind(), error.offset()), (ErrorKind::Corrupt, Some(begin + 65_536)));
    assert_eq!(read(0..65_536).unwrap(), content[..65_536]);
    assert_eq!(verify(&found, &mut |_| {}).unwrap().damage.len(), 1);
}
