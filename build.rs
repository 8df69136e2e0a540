//! Says which code our examples are made of; with feature `torch`, compiles the C++ shim and lets
//! our programs find libtorch at run time.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    provenance::build();
    #[cfg(all(feature = "torch", not(feature = "doc-only")))]
    torch::build();
}

/// What `model_code!` records of this package, as variables of its compilation.
mod provenance {
    use std::env;
    use std::path::Path;
    use std::process::Command;

    const REVISION: &str = "TCH_CHECKPOINT_GIT_REVISION";
    /// Where a change makes a build differ from the revision.
    const SOURCES: [&str; 4] = ["Cargo.toml", "build.rs", "examples", "src"];

    pub(super) fn build() {
        let features = env::var("CARGO_CFG_FEATURE").unwrap_or_default();
        println!("cargo::rustc-env=TCH_CHECKPOINT_FEATURES={features}");
        // A revision that is not to be out of date costs a build after every commit: only for
        // what is released. The variable itself, if set, counts in any build.
        let is_release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
        if is_release {
            println!("cargo::rerun-if-env-changed={REVISION}");
            if env::var_os(REVISION).is_none() {
                revision();
            }
        }
    }

    fn revision() {
        // In a package, or a copy within another project, git would speak of something else.
        let root = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        let top = git(&["rev-parse", "--show-toplevel"]);
        let same = |top: String| Path::new(&top).canonicalize().ok();
        if top.and_then(same).is_none_or(|top| Path::new(&root).canonicalize().ok() != Some(top)) {
            return;
        }
        let Some(head) = git(&["rev-parse", "HEAD"]) else { return };
        let changes =
            git(&[&["--no-optional-locks", "status", "--porcelain", "--"], &SOURCES[..]].concat());
        let dirty = if changes.is_some_and(|changes| changes.is_empty()) { "" } else { "-dirty" };
        println!("cargo::rustc-env={REVISION}={head}{dirty}");
        let log = git(&["rev-parse", "--git-path", "logs/HEAD"]);
        for path in SOURCES.into_iter().chain(log.as_deref().filter(|log| Path::new(log).exists()))
        {
            println!("cargo::rerun-if-changed={path}");
        }
    }

    fn git(arguments: &[&str]) -> Option<String> {
        let done = Command::new("git").args(arguments).output().ok()?;
        let text = String::from_utf8(done.stdout).ok()?;
        done.status.success().then(|| text.trim().to_owned())
    }
}

#[cfg(all(feature = "torch", not(feature = "doc-only")))]
mod torch {
    use std::env;
    use std::path::Path;

    const SHIM: &str = "src/torch/shim/shim.cpp";

    pub(super) fn build() {
        println!("cargo::rerun-if-changed={SHIM}");
        println!("cargo::rerun-if-env-changed=DOCS_RS");
        if env::var_os("DOCS_RS").is_some() {
            return;
        }
        // Set by torch-sys (`links = "tch"`) for packages that depend on it directly.
        let Some(lib) = env::var_os("DEP_TCH_LIBTORCH_LIB") else {
            println!("cargo::error=torch-sys named no libtorch; run launch/setup.sh");
            return;
        };
        let lib = Path::new(&lib);
        compile_shim(lib);
        link_programs(lib);
        // For build scripts of dependents, as DEP_TCH_CHECKPOINT_LIBTORCH_LIB: link arguments
        // do not reach their programs by themselves.
        println!("cargo::metadata=libtorch_lib={}", lib.display());
    }

    fn compile_shim(lib: &Path) {
        // torch-sys keeps these two apart as well: headers may lie elsewhere than libraries.
        println!("cargo::rerun-if-env-changed=LIBTORCH_INCLUDE");
        println!("cargo::rerun-if-env-changed=LIBTORCH_CXX11_ABI");
        let include = match env::var_os("LIBTORCH_INCLUDE") {
            Some(root) => Path::new(&root).join("include"),
            None => lib.join("../include"),
        };
        let abi = env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".to_owned());
        cc::Build::new()
            .cpp(true)
            .std("c++20")
            .pic(true)
            .warnings(false)
            .opt_level(1)
            .debug(false)
            .include(include.join("torch/csrc/api/include"))
            .include(include)
            .define("_GLIBCXX_USE_CXX11_ABI", abi.as_str())
            .file(SHIM)
            .compile("tch_checkpoint_shim");
    }

    fn link_programs(lib: &Path) {
        if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("linux") {
            return;
        }
        println!("cargo::rustc-link-arg=-Wl,-rpath,{}", lib.display());
        // A checkout that was moved, or copied to another machine, together with `.libtorch`.
        println!(
            "cargo::rustc-link-arg=-Wl,-rpath,$ORIGIN/../../.libtorch/lib:$ORIGIN/../../../.libtorch/lib"
        );
        // Nothing refers to a symbol of libtorch_cuda: the linker would drop it, and CUDA with it.
        println!("cargo::rustc-link-arg=-Wl,--no-as-needed");
        println!("cargo::rustc-link-arg=-ltorch");
    }
}
