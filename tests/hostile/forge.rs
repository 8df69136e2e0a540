//! A checkpoint written by hand after docs/format.md, so that it can say what no save would say.

use std::path::Path;

use serde::Serialize;
use tch_checkpoint::state::Value;

pub const ID: [u8; 16] = [0xab; 16];
/// Places of the two tensors in the manifest, which lists them by name.
pub const V: usize = 0;
pub const W: usize = 1;
pub const W_SHAPE: [u64; 2] = [70, 64];
pub const V_SHAPE: [u64; 1] = [100];
pub const W_BYTES: u64 = 70 * 64 * 4;
pub const PAGE: u64 = 4096;

/// The body of a manifest, in the order in which it is encoded; nothing is checked.
#[derive(Debug, Clone, Serialize)]
pub struct Body {
    pub save_id: [u8; 16],
    pub step: u64,
    pub epoch: u64,
    pub world_size: u32,
    pub created_unix_ms: u64,
    pub library_version: String,
    pub libtorch_version: String,
    pub data_files: Vec<DataFile>,
    pub sums_files: Vec<OtherFile>,
    pub other_files: Vec<OtherFile>,
    pub tensors: Vec<Tensor>,
    pub aliases: Vec<(String, String)>,
    pub values: Vec<(String, Value)>,
    pub rank_values: Vec<Vec<(String, Value)>>,
}

#[derive(Debug, Clone, Serialize)]
pub struct DataFile {
    pub name: String,
    pub component: String,
    pub save_id: [u8; 16],
    pub len: u64,
    pub data_start: u64,
    pub header_hash: [u8; 16],
    pub sums_file: u32,
    pub sums_begin: u64,
    pub sums_hash: [u8; 16],
}

#[derive(Debug, Clone, Serialize)]
pub struct OtherFile {
    pub name: String,
    pub len: u64,
    pub hash: [u8; 16],
}

#[derive(Debug, Clone, Serialize)]
pub struct Tensor {
    pub name: String,
    pub component: String,
    /// The tag.
    pub dtype: u32,
    pub shape: Vec<u64>,
    pub pieces: Vec<Piece>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Piece {
    pub file: u32,
    pub begin: u64,
    pub offsets: Vec<u64>,
    pub lengths: Vec<u64>,
}

/// A checkpoint of one rank with tensors `v` and `w`, before it lies on disk.
#[derive(Debug, Clone)]
pub struct Forge {
    pub version: u32,
    pub block: u64,
    pub body: Body,
    /// What is done to the encoded body before it is sealed.
    pub splice: fn(&mut Vec<u8>),
    pub header: Vec<u8>,
    pub data: Vec<u8>,
    pub sums: Vec<u8>,
    pub code: Vec<u8>,
}

pub fn hash16(bytes: &[u8]) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(&blake3::hash(bytes).as_bytes()[..16]);
    short
}

/// Length, JSON, and spaces up to a page.
pub fn header_of(json: &str) -> Vec<u8> {
    let padded = (json.len() + 8).next_multiple_of(PAGE as usize) - 8;
    let mut bytes = (padded as u64).to_le_bytes().to_vec();
    bytes.extend(json.as_bytes());
    bytes.resize(padded + 8, b' ');
    bytes
}

fn id_text() -> String {
    "ab".repeat(16)
}

pub fn data_name() -> String {
    format!("model-00001-of-00001.{}.safetensors", id_text())
}

pub fn sums_name() -> String {
    format!("sums-00001-of-00001.{}.bin", id_text())
}

pub const CODE_NAME: &str = "code/model.rs";

fn whole(name: &str, dtype: u32, shape: &[u64], begin: u64) -> Tensor {
    let piece = Piece { file: 0, begin, offsets: vec![0; shape.len()], lengths: shape.to_vec() };
    let component = "model".to_owned();
    Tensor { name: name.to_owned(), component, dtype, shape: shape.to_vec(), pieces: vec![piece] }
}

impl Forge {
    /// One that keeps every rule. `seed` tells contents apart.
    pub fn honest(version: u32, seed: u8) -> Self {
        let mut forge = Self {
            version,
            block: if version == 1 { 65_536 } else { 16_384 },
            body: body(),
            splice: |_| (),
            header: header_of(
                r#"{"w":{"dtype":"F32","shape":[70,64],"data_offsets":[0,17920]},"v":{"dtype":"U8","shape":[100],"data_offsets":[17920,18020]}}"#,
            ),
            data: (0..W_BYTES + 100).map(|at| (at % 251) as u8 ^ seed).collect(),
            sums: Vec::new(),
            code: b"fn model() {}".to_vec(),
        };
        forge.sum();
        forge
    }

    /// Makes sums, hashes and lengths those of the content.
    pub fn sum(&mut self) {
        let mut sums = [b"TCHSUMS\n".as_slice(), &1u32.to_le_bytes(), &[0; 4], &ID].concat();
        let (w, v) = self.data.split_at(self.data.len().min(W_BYTES as usize));
        for piece in [w, v] {
            sums.extend(piece.chunks(self.block as usize).flat_map(hash16));
        }
        self.body.data_files[0].header_hash = hash16(&self.header);
        self.body.data_files[0].sums_hash = hash16(&sums[32..]);
        self.body.data_files[0].len = (self.header.len() + self.data.len()) as u64;
        self.body.data_files[0].data_start = self.header.len() as u64;
        let of = |name: &str, bytes: &[u8]| OtherFile {
            name: name.to_owned(),
            len: bytes.len() as u64,
            hash: hash16(bytes),
        };
        self.body.sums_files = vec![of(&sums_name(), &sums)];
        self.body.other_files = vec![of(CODE_NAME, &self.code)];
        self.sums = sums;
    }

    /// The manifest, under a right checksum.
    pub fn sealed(&self) -> Vec<u8> {
        let (fixed, compact) = (bincode::config::legacy(), bincode::config::standard());
        let encoded = match self.version {
            1 => bincode::serde::encode_to_vec(&self.body, fixed),
            _ => bincode::serde::encode_to_vec((self.block, &self.body), compact),
        };
        let mut body = encoded.unwrap();
        (self.splice)(&mut body);
        enveloped(b"TCHCKPT\n", self.version, &body)
    }

    pub fn write(&self, dir: &Path) {
        std::fs::create_dir_all(dir.join("code")).unwrap();
        let put = |name: &str, bytes: &[u8]| std::fs::write(dir.join(name), bytes).unwrap();
        put("manifest.bin", &self.sealed());
        put(&data_name(), &[self.header.as_slice(), &self.data].concat());
        put(&sums_name(), &self.sums);
        put(CODE_NAME, &self.code);
    }
}

fn body() -> Body {
    let file = DataFile {
        name: data_name(),
        component: "model".to_owned(),
        save_id: ID,
        len: 0,
        data_start: 0,
        header_hash: [0; 16],
        sums_file: 0,
        sums_begin: 32,
        sums_hash: [0; 16],
    };
    Body {
        save_id: ID,
        step: 7,
        epoch: 1,
        world_size: 1,
        created_unix_ms: 9,
        library_version: "0.1.0".to_owned(),
        libtorch_version: String::new(),
        data_files: vec![file],
        sums_files: Vec::new(),
        other_files: Vec::new(),
        tensors: vec![whole("v", 1, &V_SHAPE, PAGE + W_BYTES), whole("w", 11, &W_SHAPE, PAGE)],
        aliases: vec![("tied".to_owned(), "w".to_owned())],
        values: vec![("loss".to_owned(), Value::Float(0.5))],
        rank_values: vec![Vec::new()],
    }
}

/// Magic, version, length, body, checksum.
pub fn enveloped(magic: &[u8; 8], version: u32, body: &[u8]) -> Vec<u8> {
    let len = (body.len() as u64).to_le_bytes();
    resealed([magic.as_slice(), &version.to_le_bytes(), &len, body].concat())
}

/// The bytes under their checksum.
pub fn resealed(mut covered: Vec<u8>) -> Vec<u8> {
    let checksum = blake3::hash(&covered);
    covered.extend(checksum.as_bytes());
    covered
}
