//! Which libraries a process has loaded, as Linux tells.

use std::path::{Path, PathBuf};

/// The list of this process.
#[cfg(feature = "torch")]
pub(crate) const OWN: &str = "/proc/self/maps";

/// Where libtorch's half for CUDA is, for a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CudaHalf {
    /// Loaded.
    Loaded,
    /// Not loaded, but it lies beside the half for CPUs, which is.
    Beside(PathBuf),
    /// This libtorch has none.
    None,
    /// No libtorch is loaded, or not as a library of its own.
    NoLibtorch,
}

/// What `maps`, a list as `/proc/self/maps`, says of libtorch; `exists` looks for a file.
pub(crate) fn cuda_half(maps: &str, exists: impl Fn(&Path) -> bool) -> CudaHalf {
    if library(maps, "libtorch_cuda.so").is_some() {
        return CudaHalf::Loaded;
    }
    let Some(cpu) = library(maps, "libtorch_cpu.so") else { return CudaHalf::NoLibtorch };
    let cuda = cpu.with_file_name("libtorch_cuda.so");
    if exists(&cuda) { CudaHalf::Beside(cuda) } else { CudaHalf::None }
}

/// The file of that name from which code is mapped.
pub(crate) fn library<'m>(maps: &'m str, name: &str) -> Option<&'m Path> {
    let files = maps.lines().filter_map(|line| Some(Path::new(line.get(line.find('/')?..)?)));
    files.into_iter().find(|path| path.file_name().is_some_and(|found| found == name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU: &str =
        "7f12a000-7f12b000 r-xp 00001000 08:01 4711       /opt/my torch/lib/libtorch_cpu.so\n";
    const CUDA: &str =
        "7f22a000-7f22b000 r-xp 00001000 08:01 4712      /opt/my torch/lib/libtorch_cuda.so\n";
    const OTHER: &str = "7f32a000-7f32b000 r--p 00000000 00:00 0\n7f42a000-7f42b000 r-xp 00000000 08:01 3 /usr/lib/libc.so.6\n7ffd4000-7ffd5000 rw-p 00000000 00:00 0 [stack]\n";

    #[test]
    fn the_half_for_cuda_is_looked_for_beside_the_one_that_is_loaded() {
        let beside = Path::new("/opt/my torch/lib/libtorch_cuda.so");
        let there = |path: &Path| path == beside;
        let maps = format!("{OTHER}{CPU}");
        assert_eq!(cuda_half(&maps, there), CudaHalf::Beside(beside.to_owned()));
        assert_eq!(cuda_half(&maps, |_| false), CudaHalf::None);
        assert_eq!(cuda_half(&format!("{CPU}{OTHER}{CUDA}"), there), CudaHalf::Loaded);
        assert_eq!(cuda_half(OTHER, |_| true), CudaHalf::NoLibtorch);
        assert_eq!(cuda_half("", |_| true), CudaHalf::NoLibtorch);
    }

    #[test]
    fn names_that_only_begin_or_end_alike_are_other_libraries() {
        for name in ["libtorch_cpu.so.1", "xlibtorch_cpu.so", "libtorch_cpu.so (deleted)"] {
            let maps = format!("0-1 r-xp 0 0:0 1 /a/{name}\n");
            assert_eq!(cuda_half(&maps, |_| true), CudaHalf::NoLibtorch, "{name}");
        }
    }
}
