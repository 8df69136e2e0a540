//! What a system call does to a directory, in words that are the same in every run.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use libc::c_long;

/// What a call that writes to standard output acts on.
pub const STDOUT: &str = "<stdout>";

/// How the arguments of a call name what it acts on.
#[derive(Debug, Clone, Copy)]
enum Names {
    /// By a descriptor.
    Fd,
    /// By a directory and a name in it; the place of the directory among the arguments.
    At(usize),
    /// By two directories with a name each.
    TwoAt,
    /// By a path alone.
    Path,
}

/// Calls that change a file system, or make a change durable, or can hide its failure.
const CHANGES: [(c_long, &str, Names); 28] = [
    (libc::SYS_write, "write", Names::Fd),
    (libc::SYS_pwrite64, "pwrite64", Names::Fd),
    (libc::SYS_writev, "writev", Names::Fd),
    (libc::SYS_pwritev, "pwritev", Names::Fd),
    (libc::SYS_pwritev2, "pwritev2", Names::Fd),
    (libc::SYS_fsync, "fsync", Names::Fd),
    (libc::SYS_fdatasync, "fdatasync", Names::Fd),
    (libc::SYS_sync_file_range, "sync_file_range", Names::Fd),
    (libc::SYS_syncfs, "syncfs", Names::Fd),
    (libc::SYS_fallocate, "fallocate", Names::Fd),
    (libc::SYS_ftruncate, "ftruncate", Names::Fd),
    (libc::SYS_close, "close", Names::Fd),
    (libc::SYS_flock, "flock", Names::Fd),
    (libc::SYS_fchmod, "fchmod", Names::Fd),
    (libc::SYS_openat, "openat", Names::At(0)),
    (libc::SYS_open, "open", Names::Path),
    (libc::SYS_mkdirat, "mkdirat", Names::At(0)),
    (libc::SYS_mkdir, "mkdir", Names::Path),
    (libc::SYS_unlinkat, "unlinkat", Names::At(0)),
    (libc::SYS_unlink, "unlink", Names::Path),
    (libc::SYS_rmdir, "rmdir", Names::Path),
    (libc::SYS_symlinkat, "symlinkat", Names::At(1)),
    (libc::SYS_linkat, "linkat", Names::TwoAt),
    (libc::SYS_renameat, "renameat", Names::TwoAt),
    (libc::SYS_renameat2, "renameat2", Names::TwoAt),
    (libc::SYS_rename, "rename", Names::Path),
    (libc::SYS_fchmodat, "fchmodat", Names::At(0)),
    (libc::SYS_truncate, "truncate", Names::Path),
];

/// Calls that only look; opening for reading is one of them.
const LOOKS: [(c_long, &str, Names); 9] = [
    (libc::SYS_newfstatat, "newfstatat", Names::At(0)),
    (libc::SYS_statx, "statx", Names::At(0)),
    (libc::SYS_fstat, "fstat", Names::Fd),
    (libc::SYS_getdents64, "getdents64", Names::Fd),
    (libc::SYS_readlinkat, "readlinkat", Names::At(0)),
    (libc::SYS_pread64, "pread64", Names::Fd),
    (libc::SYS_read, "read", Names::Fd),
    (libc::SYS_fstatfs, "fstatfs", Names::Fd),
    (libc::SYS_lseek, "lseek", Names::Fd),
];

/// One system call on something below the directory, or on standard output.
#[derive(Debug, Clone)]
pub struct Call {
    pub name: &'static str,
    /// What it acts on, below the directory; "" is the directory itself.
    pub path: String,
    /// What a rename or a link gives as the new name.
    pub new_path: Option<String>,
    pub arguments: [u64; 6],
    /// Counts equal calls of one run, from 0.
    pub nth: usize,
    pub changes: bool,
    /// Whether its descriptor was opened for direct I/O.
    pub is_direct: bool,
    /// The process, in the order of their beginnings; the one that was started is 0.
    pub process: usize,
    /// Places of both its sides in the order of all sides.
    pub begun: usize,
    pub ended: Option<usize>,
    /// As the program saw it; an error is negative. `None`: it was killed.
    pub result: Option<i64>,
    pub injected: bool,
}

impl Call {
    /// The call, in words that are the same in every run.
    pub fn label(&self) -> String {
        let more = self.new_path.as_ref().map(|to| format!(" -> {}", masked(to)));
        let unlock = if self.unlocks() { " (unlock)" } else { "" };
        let nth = self.nth;
        format!("{} {}{}{unlock} #{nth}", self.name, masked(&self.path), more.unwrap_or_default())
    }

    pub fn unlocks(&self) -> bool {
        self.name == "flock" && self.arguments[1] & libc::LOCK_UN as u64 != 0
    }

    /// Whether it makes a file.
    pub fn creates(&self) -> bool {
        self.name == "openat" && self.arguments[2] & libc::O_CREAT as u64 != 0
    }

    pub fn succeeded(&self) -> bool {
        self.result.is_some_and(|result| result >= 0)
    }
}

/// `text` with `*` for each id: they differ from run to run.
fn masked(text: &str) -> String {
    let is_id = |part: &str| part.len() == 32 && part.bytes().all(|b| b.is_ascii_hexdigit());
    let mut out = String::new();
    for part in text.split_inclusive(['.', '-', '/']) {
        let core = part.trim_end_matches(['.', '-', '/']);
        out.push_str(if is_id(core) { "*" } else { core });
        out.push_str(&part[core.len()..]);
    }
    out
}

/// The call that a stopped thread is about to make, if it is one on something below `dir` or on
/// standard output; `nth`, `process` and `begun` are left to the caller.
pub fn read(tid: i32, number: u64, arguments: [u64; 6], dir: &Path) -> Option<Call> {
    let known = |table: &[(c_long, &'static str, Names)]| {
        table.iter().find(|(n, _, _)| u64::try_from(*n).ok() == Some(number)).copied()
    };
    let (changes, (_, name, names)) = match known(&CHANGES) {
        Some(found) => (found.1 != "openat" || is_for_writing(arguments[2]), found),
        None => (false, known(&LOOKS)?),
    };
    let (path, new_path) = match names {
        Names::Fd if name == "write" && arguments[0] == 1 => (STDOUT.to_owned(), None),
        Names::Fd => (below(dir, &of_fd(tid, arguments[0])?)?, None),
        Names::At(at) => (below(dir, &of_at(tid, &arguments, at)?)?, None),
        Names::TwoAt => {
            let from = below(dir, &of_at(tid, &arguments, 0)?)?;
            (from, below(dir, &of_at(tid, &arguments, 2)?))
        }
        Names::Path => (below(dir, Path::new(&text(tid, arguments[0])?))?, None),
    };
    let is_direct = matches!(names, Names::Fd) && is_direct(tid, arguments[0]);
    let (nth, process, begun) = (0, 0, 0);
    let (ended, result, injected) = (None, None, false);
    Some(Call {
        name,
        path,
        new_path,
        arguments,
        nth,
        changes,
        is_direct,
        process,
        begun,
        ended,
        result,
        injected,
    })
}

fn is_for_writing(flags: u64) -> bool {
    flags & (libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC) as u64 != 0
}

fn is_direct(tid: i32, fd: u64) -> bool {
    let info = std::fs::read_to_string(format!("/proc/{tid}/fdinfo/{fd}")).unwrap_or_default();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| flags & libc::O_DIRECT != 0)
}

fn below(dir: &Path, path: &Path) -> Option<String> {
    path.strip_prefix(dir).ok().map(|rest| rest.to_string_lossy().into_owned())
}

fn of_fd(tid: i32, fd: u64) -> Option<PathBuf> {
    let link = match fd as i32 {
        libc::AT_FDCWD => format!("/proc/{tid}/cwd"),
        fd => format!("/proc/{tid}/fd/{fd}"),
    };
    let path = std::fs::read_link(link).ok()?.to_string_lossy().into_owned();
    Some(PathBuf::from(path.trim_end_matches(" (deleted)")))
}

fn of_at(tid: i32, arguments: &[u64; 6], at: usize) -> Option<PathBuf> {
    let name = text(tid, arguments[at + 1])?;
    let dir = of_fd(tid, arguments[at])?;
    Some(if matches!(name.as_str(), "" | ".") { dir } else { dir.join(name) })
}

/// The string at an address of a stopped thread, page by page: the next one may not exist.
fn text(tid: i32, address: u64) -> Option<String> {
    const PAGE: u64 = 4096;
    let memory = File::open(format!("/proc/{tid}/mem")).ok()?;
    let (mut bytes, mut at) = (Vec::new(), address);
    while bytes.len() < libc::PATH_MAX as usize {
        let mut chunk = vec![0; usize::try_from(PAGE - at % PAGE).ok()?];
        memory.read_exact_at(&mut chunk, at).ok()?;
        if let Some(end) = chunk.iter().position(|byte| *byte == 0) {
            bytes.extend(&chunk[..end]);
            return String::from_utf8(bytes).ok();
        }
        at += chunk.len() as u64;
        bytes.extend(chunk);
    }
    None
}

#[test]
fn ids_are_masked_and_nothing_else() {
    let id = "0123456789abcdef0123456789abcdef";
    assert_eq!(masked(&format!(".step-1.{id}.partial/a-{id}.bin")), ".step-1.*.partial/a-*.bin");
    assert_eq!(masked("step-00000001/manifest.bin"), "step-00000001/manifest.bin");
}
