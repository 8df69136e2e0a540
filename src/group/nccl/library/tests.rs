use super::super::api::Api;
use super::*;

fn file(path: &str) -> Candidate {
    Candidate::File(path.into())
}

#[test]
fn the_places_are_those_of_the_user_else_of_the_process_the_system_and_the_wheels() {
    let known = Known { variable: Some("/own/libnccl.so".into()), ..Known::default() };
    assert_eq!(candidates(&known), [file("/own/libnccl.so")]);
    let known = Known {
        torch_folder: Some("/site/torch/lib".into()),
        libtorch: Some("/site/torch".into()),
        variable: None,
    };
    assert_eq!(
        candidates(&known),
        [
            Candidate::Loaded("libnccl.so.2"),
            Candidate::Named("libnccl.so.2"),
            file("/site/torch/lib/../../nvidia/nccl/lib/libnccl.so.2"),
            file("/site/torch/lib/libnccl.so.2"),
            Candidate::Named("libnccl.so"),
        ]
    );
    assert_eq!(candidates(&Known::default()).len(), 3);
}

#[test]
fn off_is_a_word_and_no_path() {
    for (value, off) in [("off", true), ("OFF", true), ("/off", false), ("", false)] {
        assert_eq!(is_off(Some(OsStr::new(value))), off, "{value}");
    }
    assert!(!is_off(None));
}

#[test]
fn whatever_is_wrong_with_a_place_is_said_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text.so");
    std::fs::write(&text, "no library").unwrap();
    let places = [
        file("/nowhere/libnccl.so.2"),
        Candidate::File(text.clone()),
        Candidate::Loaded("libnever.so"),
        // A library, but another one.
        Candidate::Named("libc.so.6"),
    ];
    let error = find_among(&places).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let message = error.message();
    let texts = [
        "/nowhere/libnccl.so.2: ",
        "text.so: ",
        "libnever.so, loaded already: it is not",
        "libc.so.6, by the system's loader: it has no `ncclGetVersion`",
    ];
    for text in texts {
        assert!(message.contains(text), "`{text}` is not in {message}");
    }
    assert!(error.help().unwrap().contains(VARIABLE));
}

/// The real one, where the machine has it and the variable names it.
#[test]
fn the_real_library_makes_ids_and_says_in_its_own_words_why_it_cannot_join() {
    let Some(path) = std::env::var_os(VARIABLE).filter(|path| !is_off(Some(path))) else {
        eprintln!("SKIPPED: {VARIABLE} names no libnccl.so.2");
        return;
    };
    let found = find_among(&[Candidate::File(path.into())]).unwrap();
    assert!(found.version >= Version::OLDEST, "{}", found.version);
    let id = found.functions.unique_id();
    if std::path::Path::new("/dev/nvidia0").exists() {
        eprintln!("SKIPPED: there is a GPU; the checks of GPUs join for real");
        return;
    }
    let error = match id {
        Ok(id) => {
            assert_eq!(id.0.len(), 128);
            assert_ne!(id, found.functions.unique_id().unwrap());
            found.functions.init(1, &id, 0).err()
        }
        Err(error) => Some(error),
    };
    let error = error.expect("no GPU is here");
    assert_eq!(error.kind(), ErrorKind::Device);
    assert!(error.message().contains("CUDA") || error.message().contains("cuda"), "{error}");
}
