//! A checkpoint in memory to be damaged, and what `verify` and loads say of it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use tch_checkpoint::catalog::{self, Found};
use tch_checkpoint::single::{save_multi_files, save_single_file};
use tch_checkpoint::state::StateDict;
use tch_checkpoint::storage::{EntryKind, MemoryStorage, Storage};
use tch_checkpoint::tensor::{Component, Dtype};
use tch_checkpoint::{Error, ProcessGroup, Result, SaveOptions, save, verify};

use crate::harness::*;

/// Bytes of a block of which one sum is taken.
pub const BLOCK: u64 = tch_checkpoint::manifest::BLOCK_BYTES;

/// How a subject lies on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    Directory,
    OneFile,
    FilePerComponent,
}

/// What to save, and from how many ranks.
#[derive(Debug, Clone)]
pub struct Recipe {
    pub shape: Shape,
    pub ranks: u32,
    pub tensors: Vec<TestTensor>,
    pub generation: u64,
    /// Content of the tensors; equal for saves that are to be equal but for their ids.
    pub content: u64,
    /// A text among the values, by which the length of the manifest is chosen.
    pub note: String,
}

/// A committed checkpoint and the right bytes of its files.
#[derive(Debug, Clone)]
pub struct Subject {
    pub storage: MemoryStorage,
    pub recipe: Recipe,
    pub at: String,
    /// As it was committed.
    pub found: Found,
    /// Every file of it by its path, relative to the root.
    pub files: BTreeMap<String, Vec<u8>>,
}

impl Recipe {
    pub fn new(shape: Shape, ranks: u32, tensors: Vec<TestTensor>) -> Self {
        Self { shape, ranks, tensors, generation: 3, content: 3, note: String::new() }
    }

    /// Saves it under `at` in `storage`.
    pub fn save(&self, storage: &MemoryStorage, at: &str) -> Subject {
        self.save_through(storage, at).into_iter().for_each(|done| done.unwrap());
        Subject::new(storage, self, at)
    }

    /// What saving it through any storage says on each rank.
    pub fn save_through(
        &self,
        storage: &(impl Storage + Clone + 'static),
        at: &str,
    ) -> Vec<Result<()>> {
        let (recipe, storage, to) = (self.clone(), storage.clone(), path(at));
        on_ranks(self.ranks, move |group| {
            let state = recipe.state(&group);
            let options = SaveOptions {
                step: recipe.generation,
                copy_unchanged: true,
                ..SaveOptions::default()
            };
            let save = match recipe.shape {
                Shape::Directory => save,
                Shape::OneFile => save_single_file,
                Shape::FilePerComponent => save_multi_files,
            };
            save(&group, &storage, &to, &state, &options).map(drop)
        })
    }

    /// Saves it in a storage of its own.
    pub fn saved(&self) -> Subject {
        let at = match self.shape {
            Shape::OneFile => "runs/a.safetensors",
            _ => "runs/a",
        };
        self.save(&MemoryStorage::new(), at)
    }

    fn state(&self, group: &ProcessGroup) -> StateDict {
        let (rank, n) = (u64::from(group.rank().get()), u64::from(group.world_size().get()));
        let mut state = StateDict::new();
        for tensor in &self.tensors {
            if let Some(slice) = tensor.held(rank, n) {
                let bytes = Arc::new(content(&tensor.name, &tensor.spec, &slice, self.content));
                let (component, name) = (component(&tensor.name), name(&tensor.name));
                state.add_slice(&component, name, tensor.spec.clone(), slice, bytes).unwrap();
            }
        }
        state.values.set("note", self.note.as_str());
        state.rank_values.set("rank", group.rank().get());
        if self.shape == Shape::Directory {
            let text = format!("struct Model; // {}\n", self.content);
            state.attach_file("code/model.rs", text.into_bytes()).unwrap();
        }
        state
    }
}

/// `optimizer.w` belongs to the component `optimizer`; names without a dot to the model.
pub fn component(name: &str) -> Component {
    let component = name.split_once('.').map_or("model", |(component, _)| component);
    Component::new(component).unwrap()
}

/// Few small tensors of two components, one of them 0-dim, one empty: of two ranks, each writes one
/// data file, and a header has 32,768 bits.
pub fn few_tensors() -> Vec<TestTensor> {
    vec![
        TestTensor::new("weight", Dtype::F32, &[17], None),
        TestTensor::new("nothing", Dtype::F64, &[0, 4], None),
        TestTensor::new("optimizer.weight.exp_avg", Dtype::F32, &[5, 3], None),
        TestTensor::new("optimizer.step", Dtype::I64, &[], None),
    ]
}

/// Every dtype, three components, pieces of one block and of several, whole, split and sharded.
pub fn many_tensors() -> Vec<TestTensor> {
    let of = |dtype: &Dtype| {
        TestTensor::new(&format!("of_{}", dtype.as_str().to_lowercase()), *dtype, &[7, 13], None)
    };
    let mut tensors: Vec<TestTensor> = Dtype::ALL.iter().map(of).collect();
    tensors.extend([
        TestTensor::new("table", Dtype::F32, &[90, 401], None),
        TestTensor::new("rows", Dtype::F64, &[97, 31], Some(0)),
        TestTensor::new("nothing", Dtype::I64, &[0, 7], None),
        TestTensor::new("optimizer.table.exp_avg", Dtype::F32, &[40, 401], None),
        TestTensor::new("optimizer.columns", Dtype::I32, &[13, 40], Some(1)),
        TestTensor::new("optimizer.step", Dtype::I64, &[], None),
        TestTensor::new("averages.table", Dtype::BF16, &[90, 401], None),
        TestTensor::new("averages.decay", Dtype::F32, &[], None),
    ]);
    tensors
}

impl Subject {
    /// What is committed under `at`.
    pub fn new(storage: &MemoryStorage, recipe: &Recipe, at: &str) -> Self {
        let found = catalog::find(storage, &wanted(at)).unwrap();
        let mut files = BTreeMap::new();
        match recipe.shape {
            Shape::Directory => read_all(storage, at, &mut files),
            Shape::OneFile => drop(files.insert(at.to_owned(), read(storage, at))),
            Shape::FilePerComponent => read_all(storage, "runs", &mut files),
        }
        files.retain(|name, _| !name.ends_with(".tch-checkpoint.lock"));
        Self { storage: storage.clone(), recipe: recipe.clone(), at: at.to_owned(), found, files }
    }

    /// The same in a storage of its own.
    pub fn copy(&self) -> Self {
        let storage = MemoryStorage::new();
        for (file, bytes) in &self.files {
            storage.create_dir_all(Path::new(file).parent().unwrap()).unwrap();
            storage.write(Path::new(file), bytes).unwrap();
        }
        Self::new(&storage, &self.recipe, &self.at)
    }

    /// Its path of a file of the manifest.
    pub fn path_of(&self, name: &str) -> String {
        self.found.dir.path().join(name).to_str().unwrap().to_owned()
    }

    pub fn manifest_path(&self) -> String {
        self.path_of("manifest.bin")
    }

    /// Paths of the data files, in the order of the manifest.
    pub fn data_files(&self) -> Vec<String> {
        self.found.manifest.data_files().iter().map(|file| self.path_of(&file.name)).collect()
    }

    pub fn sums_files(&self) -> Vec<String> {
        self.found.manifest.sums_files().iter().map(|file| self.path_of(&file.name)).collect()
    }

    pub fn other_files(&self) -> Vec<String> {
        self.found.manifest.other_files().iter().map(|file| self.path_of(&file.name)).collect()
    }

    pub fn bits(&self, file: &str) -> u64 {
        self.files[file].len() as u64 * 8
    }

    pub fn flip(&self, file: &str, bit: u64) {
        self.storage.corrupt(Path::new(file), bit / 8, 1 << (bit % 8)).unwrap();
    }

    pub fn put(&self, file: &str, bytes: &[u8]) {
        self.storage.write(Path::new(file), bytes).unwrap();
    }

    /// Makes the file what it was.
    pub fn restore(&self, file: &str) {
        self.put(file, &self.files[file]);
    }

    /// What the command `verify` says: of the manifest that is there now, and of what it names.
    pub fn verify(&self) -> Vec<Error> {
        match catalog::find(&self.storage, &wanted(&self.at)) {
            Ok(found) => damage_of(&found),
            Err(error) => vec![error],
        }
    }

    /// As [`Subject::verify`], with the manifest that was committed.
    pub fn verify_files(&self) -> Vec<Error> {
        damage_of(&self.found)
    }

    /// Where an error about this byte of a data file is to point: the tensor that holds it, and the
    /// first byte of the block that holds it; outside all tensors the header.
    pub fn spot(&self, file: usize, byte: u64) -> Spot {
        let mut pieces = self.found.manifest.pieces_of_file(file);
        let held = pieces.find(|(tensor, piece)| {
            (piece.begin..piece.begin + tensor.piece_bytes(piece)).contains(&byte)
        });
        let Some((tensor, piece)) = held else { return Spot { tensor: None, offset: Some(0) } };
        let offset = byte - (byte - piece.begin) % BLOCK;
        Spot { tensor: Some(tensor.name.to_string()), offset: Some(offset) }
    }
}

/// Tensor and offset of an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spot {
    pub tensor: Option<String>,
    pub offset: Option<u64>,
}

impl Spot {
    pub fn of(error: &Error) -> Self {
        Self { tensor: error.tensor().map(str::to_owned), offset: error.offset() }
    }
}

fn damage_of(found: &Found) -> Vec<Error> {
    verify::verify(found, &mut |_| {}).unwrap().damage
}

fn read(storage: &MemoryStorage, file: &str) -> Vec<u8> {
    storage.read(Path::new(file)).unwrap()
}

fn read_all(storage: &MemoryStorage, dir: &str, files: &mut BTreeMap<String, Vec<u8>>) {
    for entry in storage.open_dir(Path::new(dir)).unwrap().list().unwrap() {
        let at = format!("{dir}/{}", entry.name);
        match entry.kind {
            EntryKind::Directory => read_all(storage, &at, files),
            _ => drop(files.insert(at.clone(), read(storage, &at))),
        }
    }
}
