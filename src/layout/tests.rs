use super::*;

const ID: SaveId = SaveId::from_bytes([0xab; 16]);

fn name(text: &str) -> CheckpointName {
    CheckpointName::new(text).unwrap()
}

#[test]
fn save_ids_are_read_as_written() {
    let id = SaveId::random().unwrap();
    assert_ne!(id, SaveId::random().unwrap());
    assert_eq!(SaveId::parse(&id.to_string()).unwrap(), id);
    let hex = ID.to_string();
    let (upper, long, sign) = (hex.to_uppercase(), format!("{hex}0"), format!("+{}", &hex[1..]));
    for bad in ["", &hex[1..], &upper, &long, &sign, &"é".repeat(16)] {
        assert!(SaveId::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn checkpoint_names_are_one_visible_component() {
    for good in ["a", "model_epoch5_valloss0.1234", "x y", "größe", &"x".repeat(200)] {
        assert_eq!(name(good).as_str(), good);
    }
    let long = "x".repeat(201);
    for bad in ["", ".", "..", ".a", "a/b", "/", "a\0", "a\nb", "latest", "best.json", &long] {
        let error = CheckpointName::new(bad).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad}");
    }
}

#[test]
fn names_of_data_files_are_read_as_written() {
    let (model, world) = (Component::model(), WorldSize::new(4).unwrap());
    let first = data_file(&model, Rank::new(0), world, 0, &ID);
    assert_eq!(first, format!("model-00001-of-00004.{ID}.safetensors"));
    let second = data_file(&model, Rank::new(3), world, 1, &ID);
    assert_eq!(second, format!("model-00004-of-00004-2.{ID}.safetensors"));
    let longest = data_file(
        &Component::new("x".repeat(32)).unwrap(),
        Rank::new(u32::MAX - 1),
        WorldSize::new(u32::MAX).unwrap(),
        u32::MAX,
        &ID,
    );
    for (nth, file) in [(0, &first), (1, &second), (u32::MAX, &longest)] {
        assert!(is_file_name(file), "{file}");
        let parsed = DataFileName::parse(file).unwrap();
        assert_eq!((parsed.nth, parsed.save_id), (nth, ID));
    }
    for bad in [
        format!("model-00005-of-00004.{ID}.safetensors"),
        format!("model-00000-of-00004.{ID}.safetensors"),
        format!("model-1-of-00004.{ID}.safetensors"),
        format!("model-00001-of-00004-1.{ID}.safetensors"),
        format!("model-00001-of-00004-02.{ID}.safetensors"),
        format!("model-00001-of-00004-2-3.{ID}.safetensors"),
        format!("sums-00001-of-00004.{ID}.safetensors"),
        format!("../l-00001-of-00004.{ID}.safetensors"),
        "model-00001-of-00004.safetensors".to_owned(),
        format!("model.{ID}.safetensors"),
        format!("{first}x"),
    ] {
        assert_eq!(DataFileName::parse(&bad), None, "{bad}");
    }
}

#[test]
fn names_of_sums_files_are_read_as_written() {
    let world = WorldSize::new(4).unwrap();
    let file = sums_file(Rank::new(1), world, &ID);
    assert_eq!(file, format!("sums-00002-of-00004.{ID}.bin"));
    assert_eq!(parse_sums_file(&file), Some(ID));
    assert_eq!(parse_sums_file(&file.replace("sums", "soms")), None);
    assert_eq!(parse_sums_file(&file.replace("00002", "+0002")), None);
}

#[test]
fn file_names_from_outside_are_harmless() {
    assert!(is_file_name("a.b-c_D9") && is_file_name(&"x".repeat(160)));
    for bad in ["", ".", "..", ".x", "a/b", "a\\b", "a b", "ä", "a\0", &"x".repeat(161)] {
        assert!(!is_file_name(bad), "{bad}");
        assert!(!is_other_file_name(bad), "{bad}");
    }
    assert!(is_other_file_name(HF_INDEX) && is_other_file_name("code/src/model.rs"));
    let deep = format!("code{}", "/a".repeat(8));
    for bad in [MANIFEST, "src/a", "code/", "code//a", "code/../a", "/code/a", &deep] {
        assert!(!is_other_file_name(bad), "{bad}");
    }
}

#[test]
fn debris_is_recognised_and_nothing_else() {
    let save_id = ID;
    let tricky = name("trash-a.partial");
    let partial = Debris::Partial { name: tricky.clone(), save_id };
    assert_eq!(Debris::parse(&partial_dir(&tricky, &ID)), Some(partial));
    let old = Debris::Old { name: name("a.old"), save_id };
    assert_eq!(Debris::parse(&old_dir(&name("a.old"), &ID)), Some(old));
    assert_eq!(Debris::parse(&trash_dir(&ID)), Some(Debris::Trash { save_id }));
    assert_eq!(Debris::parse(&pointer_temporary(&ID)), Some(Debris::Pointer { save_id }));
    let visible = partial_dir(&tricky, &ID)[1..].to_owned();
    let nameless = format!(".{ID}.partial");
    let pin = pin_file(&tricky);
    for other in ["a", LOCK, ".", ".trash-1", ".pointer-1", &pin, ".x.partial", &visible, &nameless]
    {
        assert_eq!(Debris::parse(other), None, "{other}");
    }
    assert!(partial_dir(&name(&"x".repeat(200)), &ID).len() <= 255);
}

#[test]
fn pins_are_read_as_written_and_are_no_debris() {
    for pinned in ["a", "a.pin", "x y", &"x".repeat(200)] {
        let pin = pin_file(&name(pinned));
        assert_eq!(parse_pin_file(&pin), Some(name(pinned)));
        assert_eq!(Debris::parse(&pin), None);
        assert!(pin.len() <= 255);
    }
    for other in ["a.pin", ".pin", "..pin", ".latest.pin", ".a.pin2", &partial_dir(&name("a"), &ID)]
    {
        assert_eq!(parse_pin_file(other), None, "{other}");
    }
}
