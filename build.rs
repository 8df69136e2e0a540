//! With feature `torch`: compiles the C++ shim and lets our programs find libtorch at run time.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(all(feature = "torch", not(feature = "doc-only")))]
    torch::build();
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
