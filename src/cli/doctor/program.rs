//! Whether a program was linked so that it keeps libtorch's CUDA.

use std::path::Path;

use super::libraries::FILES_DEADLINE;
use super::{Finding, elf};
use crate::cli::bounded::within;

const CHECK: &str = "program";
const FIX: &str = "its build.rs is to pass `-Wl,--no-as-needed` and `-ltorch`, as the front page \
     of tch-checkpoint shows, with LIBTORCH set to one that has CUDA";

/// What the program asks the loader for.
pub(super) fn linked(path: &Path) -> Vec<Finding> {
    let file = path.to_owned();
    let shown = path.display();
    vec![match within(FILES_DEADLINE, move || elf::needed(&file)) {
        Some(Ok(names)) => judge(&shown.to_string(), &names),
        Some(Err(error)) => {
            Finding::problem(CHECK, format!("{shown}: {error}"), "name a program that was built")
        }
        None => Finding::problem(CHECK, format!("{shown} cannot be read"), "a file system hangs"),
    }]
}

fn judge(program: &str, names: &[String]) -> Finding {
    let needs = |library: &str| names.iter().any(|name| name == library);
    if needs("libtorch_cuda.so") {
        return Finding::ok(
            CHECK,
            format!("{program} needs libtorch_cuda: CUDA is loaded with it"),
        );
    }
    if needs("libtorch.so") {
        let said = format!("{program} needs libtorch: CUDA is loaded with it, if that one has it");
        return Finding::ok(CHECK, said);
    }
    if needs("libtorch_cpu.so") {
        let said = format!(
            "{program} needs libtorch_cpu alone: CUDA is loaded only if the libtorch it finds at \
             run time has it, and only by `NNHandler` or `torch::cuda_devices`"
        );
        return Finding::warning(CHECK, said, FIX);
    }
    let said = format!("{program} needs no libtorch as a library of its own");
    Finding::warning(CHECK, said, "nothing, if it does not train")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_asks_for_tells_whether_it_keeps_cuda() {
        for (names, level, word) in [
            (&["libtorch_cuda.so", "libtorch_cpu.so"][..], "ok", "needs libtorch_cuda:"),
            (&["libc.so.6", "libtorch.so", "libtorch_cpu.so"], "ok", "needs libtorch:"),
            (&["libtorch_cpu.so", "libc10.so"], "warning", "libtorch_cpu alone"),
            (&["libc.so.6"], "warning", "no libtorch"),
        ] {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let found = judge("train", &names);
            assert_eq!(found.level.as_str(), level, "{names:?}");
            assert!(found.said.contains(word), "{found:?}");
        }
    }

    #[test]
    fn what_is_no_program_is_told() {
        let found = &linked(Path::new("/nonexistent/train"))[0];
        assert_eq!(found.level.as_str(), "problem");
        assert!(found.said.contains("/nonexistent/train"), "{found:?}");
    }
}
