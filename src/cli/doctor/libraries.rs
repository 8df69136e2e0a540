//! libtorch, CUDA, NCCL and MPI: found by their files, without loading any of them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Finding;
use crate::cli::bounded::{Ran, said, within};

/// The version of libtorch that this version of the crate is built against.
pub(super) const LIBTORCH_VERSION: &str = "2.13";
/// Older ones that it can be built against, and the version of `tch` that each needs.
const OLDER: [(&str, &str); 1] = [("2.11", "0.24.0")];
/// How long looking for files may take.
pub(super) const FILES_DEADLINE: Duration = Duration::from_secs(5);
/// Where libraries are without being in the loader's list.
const LIBRARY_DIRS: [&str; 7] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/lib",
    "/usr/local/cuda/lib64",
    "/usr/local/nvidia/lib64",
];
/// Where the kernel tells of its NVIDIA driver.
const DRIVER: &str = "/proc/driver/nvidia/version";
/// The list of the dynamic loader; absolute paths lie in it between zero bytes.
const LOADER_CACHE: &str = "/etc/ld.so.cache";
const NO_LIBTORCH: &str = "programs that train need it, this command does not: launch/setup.sh \
     installs one, or set LIBTORCH to its directory";

pub(super) fn libtorch() -> Vec<Finding> {
    // As a build of `tch` asks: first of all, and whatever its value.
    let found = if std::env::var_os("LIBTORCH_USE_PYTORCH").is_some() {
        of_python()
    } else {
        within(FILES_DEADLINE, find_libtorch)
    };
    vec![found.unwrap_or_else(|| {
        Finding::problem(
            "libtorch",
            "looking for it does not come to an end",
            "a file system hangs",
        )
    })]
}

fn find_libtorch() -> Finding {
    if let Some(dir) = std::env::var("LIBTORCH").ok().filter(|dir| !dir.is_empty()) {
        return at(Path::new(&dir), "LIBTORCH").unwrap_or_else(|| {
            let said = format!("LIBTORCH is {dir}, where there is no lib/libtorch_cpu");
            Finding::problem("libtorch", said, "correct it, or unset it")
        });
    }
    let Ok(here) = std::env::current_dir() else {
        return Finding::warning("libtorch", "not found", NO_LIBTORCH);
    };
    let own = here.ancestors().find_map(|dir| at(&dir.join(".libtorch"), "the checkout's"));
    own.or_else(|| at(Path::new("/usr"), "the system's"))
        .unwrap_or_else(|| Finding::warning("libtorch", "not found", NO_LIBTORCH))
}

/// `None` if its files do not answer.
fn of_python() -> Option<Finding> {
    const FIND: &str = "import importlib.util as u; s = u.find_spec('torch'); \
         print(s.submodule_search_locations[0] if s else '')";
    // The one that a build of `tch` asks.
    let python = if std::env::var_os("VIRTUAL_ENV").is_some() { "python" } else { "python3" };
    let problem = |what: &str| {
        let fix = format!(
            "install PyTorch for this {python}, or unset LIBTORCH_USE_PYTORCH (any value counts)"
        );
        Finding::problem("libtorch", format!("LIBTORCH_USE_PYTORCH is set, but {what}"), fix)
    };
    let dir = match said(python, &["-c", FIND]) {
        Ran::Said(dir) if !dir.trim().is_empty() => PathBuf::from(dir.trim()),
        Ran::Said(_) => return Some(problem(&format!("{python} has no torch"))),
        Ran::Missing => return Some(problem(&format!("there is no {python}"))),
        Ran::Failed => return Some(problem(&format!("{python} does not run"))),
        Ran::Late => {
            return Some(problem(&format!("{python} does not say where its torch is")));
        }
    };
    let found = within(FILES_DEADLINE, move || at(&dir, "PyTorch's"))?;
    Some(found.unwrap_or_else(|| problem("its torch has no lib/libtorch_cpu")))
}

/// A libtorch in that directory, if there is one.
fn at(dir: &Path, whose: &str) -> Option<Finding> {
    let library = ["libtorch_cpu.so", "libtorch_cpu.dylib"];
    library.iter().find(|name| dir.join("lib").join(name).exists())?;
    let has_cuda = dir.join("lib/libtorch_cuda.so").exists();
    let kind = match (has_cuda, Path::new(DRIVER).exists()) {
        (true, true) => "with CUDA",
        (true, false) => "with CUDA (here on CPUs: there is no NVIDIA driver)",
        (false, _) => "for CPUs",
    };
    let version = version_of(dir);
    let shown = version.as_deref().unwrap_or("of unknown version");
    let said = format!("{shown}, {kind}, {whose}: {}", dir.display());
    let is = |wanted: &str| {
        let rest = version.as_deref()?.strip_prefix(wanted)?;
        (!rest.starts_with(char::is_numeric)).then_some(())
    };
    if version.is_none() || is(LIBTORCH_VERSION).is_some() {
        return Some(Finding::ok("libtorch", said));
    }
    let fix = match OLDER.iter().find(|(libtorch, _)| is(libtorch).is_some()) {
        Some((_, tch)) => format!(
            "this version is built against {LIBTORCH_VERSION}, and against this one after \
             `cargo update -p tch --precise {tch}`"
        ),
        None => format!(
            "this version is built against {LIBTORCH_VERSION}; another one needs \
             LIBTORCH_BYPASS_VERSION_CHECK=1, and may not compile"
        ),
    };
    Some(Finding::warning("libtorch", said, fix))
}

/// By the file of a download, or by that of PyTorch.
fn version_of(dir: &Path) -> Option<String> {
    let first = |name: &str| {
        let text = std::fs::read_to_string(dir.join(name)).ok()?;
        Some(text.lines().next()?.trim().to_owned()).filter(|version| !version.is_empty())
    };
    first("build-version").or_else(|| {
        let text = std::fs::read_to_string(dir.join("version.py")).ok()?;
        let value = text.lines().find_map(|line| line.strip_prefix("__version__ = "))?;
        Some(value.trim().trim_matches(['\'', '"']).to_owned())
    })
}

pub(super) fn cuda() -> Vec<Finding> {
    let driver = std::fs::read_to_string(DRIVER).ok();
    let library = found("libcuda.so.1");
    let devices = std::fs::read_dir("/proc/driver/nvidia/gpus").map_or(0, Iterator::count);
    let (Some(driver), Some(library)) = (&driver, &library) else {
        let (said, fix) = match (driver, library) {
            (Some(_), None) => (
                "the kernel has an NVIDIA driver, but libcuda.so.1 is not found",
                "in a container: start it with its GPUs (--gpus all); else install the driver",
            ),
            (None, Some(_)) => (
                "libcuda.so.1 is here, but the kernel has no NVIDIA driver",
                "load the driver, or start the container with its GPUs (--gpus all)",
            ),
            _ => ("no NVIDIA driver: training is on CPUs", "nothing, if there is no GPU"),
        };
        return vec![Finding::warning("cuda", said, fix)];
    };
    let release =
        driver.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
    let what =
        format!("driver {}, {devices} GPUs, {}", release.unwrap_or("unknown"), library.display());
    const QUERY: &[&str] = &["--query-gpu=name,memory.total", "--format=csv,noheader"];
    vec![match said("nvidia-smi", QUERY) {
        Ran::Said(text) => {
            let first = text.lines().next().unwrap_or_default().trim().to_owned();
            Finding::ok("cuda", format!("{what}; {first}"))
        }
        Ran::Missing => Finding::ok("cuda", format!("{what}; no nvidia-smi")),
        Ran::Failed | Ran::Late => Finding::problem(
            "cuda",
            format!("{what}; nvidia-smi fails"),
            "run nvidia-smi to see why: driver and library may be of different versions",
        ),
    }]
}

pub(super) fn nccl() -> Vec<Finding> {
    vec![match found("libnccl.so.2") {
        Some(path) => Finding::ok("nccl", path.display().to_string()),
        None if !Path::new(DRIVER).exists() => {
            Finding::ok("nccl", "not found, and not needed without GPUs")
        }
        None => Finding::warning(
            "nccl",
            "libnccl.so.2 is not found",
            "nothing, unless your program calls it (ranks meet over TCP or MPI): package libnccl2, \
             or its directory on LD_LIBRARY_PATH",
        ),
    }]
}

pub(super) fn mpi() -> Vec<Finding> {
    const FIX: &str = "programs under mpirun need it, others do not: launch/setup.sh installs it";
    vec![match said("mpirun", &["--version"]) {
        Ran::Said(text) => {
            Finding::ok("mpi", text.lines().next().unwrap_or("mpirun").trim().to_owned())
        }
        Ran::Missing => Finding::warning("mpi", "no mpirun", FIX),
        Ran::Failed => Finding::problem("mpi", "mpirun --version fails", "install MPI anew"),
        Ran::Late => Finding::problem(
            "mpi",
            "mpirun --version does not come to an end",
            "its host name may not resolve, or its files lie on a file system that hangs",
        ),
    }]
}

/// A library, as the dynamic loader finds it.
fn found(library: &'static str) -> Option<PathBuf> {
    within(FILES_DEADLINE, move || {
        let search = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
        let mut first = std::env::split_paths(&search).filter(|dir| dir.is_absolute());
        let in_dir = |dir: PathBuf| Some(dir.join(library)).filter(|path| path.exists());
        first
            .find_map(in_dir)
            .or_else(|| of_cache(library))
            .or_else(|| LIBRARY_DIRS.iter().map(PathBuf::from).find_map(in_dir))
    })
    .flatten()
}

fn of_cache(library: &str) -> Option<PathBuf> {
    let cache = std::fs::read(LOADER_CACHE).ok()?;
    let ending = format!("/{library}");
    let texts = cache.split(|byte| *byte == 0).filter_map(|text| std::str::from_utf8(text).ok());
    let paths = texts.filter(|text| text.starts_with('/') && text.ends_with(&ending));
    paths.map(PathBuf::from).find(|path| path.exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is asked for is what is installed.
    #[test]
    fn the_version_is_that_of_the_set_up() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let set_up = std::fs::read_to_string(root.join("launch/setup.sh")).unwrap();
        let wanted = format!("TORCH_VERSION_DEFAULT={LIBTORCH_VERSION}.");
        assert!(set_up.contains(&wanted), "{wanted}");
        // What is said to build is what is tried.
        let tried = std::fs::read_to_string(root.join("launch/versions.sh")).unwrap();
        for (libtorch, tch) in OLDER {
            assert!(tried.contains(&format!("{tch}/{libtorch}.")), "{libtorch}");
        }
        assert!(tried.contains(&format!("/{LIBTORCH_VERSION}.")), "{LIBTORCH_VERSION}");
    }

    #[test]
    fn a_libtorch_is_known_by_its_files() {
        let dir = tempfile::tempdir().unwrap();
        assert!(at(dir.path(), "mine").is_none());
        std::fs::create_dir(dir.path().join("lib")).unwrap();
        std::fs::write(dir.path().join("lib/libtorch_cpu.so"), "").unwrap();
        let unknown = at(dir.path(), "mine").unwrap();
        assert!(unknown.said.starts_with("of unknown version, for CPUs, mine: "), "{unknown:?}");
        for (version, level) in [
            (format!("{LIBTORCH_VERSION}.0+cpu\n"), "ok"),
            (format!("{LIBTORCH_VERSION}7.0"), "warning"),
            ("1.2.3".to_owned(), "warning"),
        ] {
            std::fs::write(dir.path().join("build-version"), &version).unwrap();
            assert_eq!(at(dir.path(), "mine").unwrap().level.as_str(), level, "{version}");
        }
        std::fs::write(dir.path().join("build-version"), "2.11.0").unwrap();
        std::fs::write(dir.path().join("lib/libtorch_cuda.so"), "").unwrap();
        let older = at(dir.path(), "mine").unwrap();
        assert!(older.said.starts_with("2.11.0, with CUDA"), "{older:?}");
        assert!(older.fix.unwrap().ends_with("--precise 0.24.0`"));
    }
}
