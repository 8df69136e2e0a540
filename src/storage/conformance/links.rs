//! Files with two names.

use super::*;

on_every_storage!(
    a_linked_file_is_one_file,
    either_name_goes_without_the_other,
    a_link_takes_no_name_that_is_there,
    only_a_regular_file_gets_a_second_name,
    what_is_linked_must_be_there,
    every_name_of_a_link_is_one_component,
);

/// Two directories, of which the first has the file `f`.
fn two(place: &Place) -> [Arc<dyn Directory>; 2] {
    let dir = place.dir();
    let made = ["a", "b"].map(|name| dir.create_dir(name).unwrap());
    put(&*made[0], "f", b"0123456789");
    made
}

fn a_linked_file_is_one_file(place: &Place) {
    let [a, b] = two(place);
    place.dir().link_file("a", "b", "f").unwrap();
    assert_eq!(get(&*b, "f"), b"0123456789");
    let file = b.open_for_writing("f").unwrap();
    file.write_at(2, b"ab").unwrap();
    file.finish().unwrap();
    assert_eq!(get(&*a, "f"), b"01ab456789", "what is written by one name");
    let facts = [&a, &b].map(|dir| dir.file_facts("f").unwrap());
    assert_eq!(facts[0], facts[1]);
    assert!(facts[0].is_none_or(|facts| facts.names == 2), "{facts:?}");
    b.sync().unwrap();
}

fn either_name_goes_without_the_other(place: &Place) {
    for (gone, left) in [(0, 1), (1, 0)] {
        let dirs = two(place);
        place.dir().link_file("a", "b", "f").unwrap();
        dirs[gone].remove_file("f").unwrap();
        assert_eq!(get(&*dirs[left], "f"), b"0123456789");
        assert!(names(&*dirs[gone]).is_empty());
        dirs[left].remove_file("f").unwrap();
        for name in ["a", "b"] {
            place.dir().remove_dir(name).unwrap();
        }
    }
}

fn a_link_takes_no_name_that_is_there(place: &Place) {
    let [a, b] = two(place);
    for name in ["file", "directory", "link"] {
        put(&*a, name, b"of a");
    }
    put(&*b, "file", b"of b");
    b.create_dir("directory").unwrap();
    b.create_link("link", "nowhere").unwrap();
    let link = |to: &str, name: &str| kind(place.dir().link_file("a", to, name), name);
    for name in ["file", "directory", "link"] {
        assert_eq!(link("b", name), ErrorKind::AlreadyExists, "{name}");
    }
    assert_eq!(link("a", "f"), ErrorKind::AlreadyExists, "onto itself");
    place.dir().link_file("a", "b", "f").unwrap();
    assert_eq!(link("b", "f"), ErrorKind::AlreadyExists, "a second time");
    assert_eq!(get(&*b, "file"), b"of b");
    assert_eq!(names(&*b), ["directory", "f", "file", "link"]);
}

fn only_a_regular_file_gets_a_second_name(place: &Place) {
    let [a, b] = two(place);
    a.create_dir("directory").unwrap();
    a.create_link("link", "f").unwrap();
    for other in ["directory", "link"] {
        let linked = place.dir().link_file("a", "b", other);
        assert_eq!(kind(linked, other), ErrorKind::Corrupt, "{other}");
    }
    assert!(names(&*b).is_empty());
}

fn what_is_linked_must_be_there(place: &Place) {
    let [a, b] = two(place);
    put(&*place.dir(), "f", b"x");
    place.dir().create_link("to_a", "a").unwrap();
    place.dir().create_link("to_b", "b").unwrap();
    let absent = [
        ("a", "b", "missing"),
        ("missing", "b", "f"),
        ("a", "missing", "f"),
        ("f", "b", "f"),
        ("a", "f", "f"),
        ("to_a", "b", "f"),
        ("a", "to_b", "f"),
    ];
    for (from, to, name) in absent {
        let linked = place.dir().link_file(from, to, name);
        assert_eq!(kind(linked, name), ErrorKind::NotFound, "{from} {to} {name}");
    }
    assert_eq!((names(&*a), names(&*b)), (vec!["f".to_owned()], vec![]));
}

fn every_name_of_a_link_is_one_component(place: &Place) {
    let [_, b] = two(place);
    put(&*place.dir(), "f", b"x");
    let too_long = "n".repeat(256);
    for bad in ["", ".", "..", "/", "../f", "a/f", "a\0b", &too_long] {
        for (from, to, name) in [(bad, "b", "f"), ("a", bad, "f"), ("a", "b", bad)] {
            let linked = place.dir().link_file(from, to, name);
            assert_eq!(kind(linked, bad), ErrorKind::InvalidInput, "{from:?} {to:?} {name:?}");
        }
    }
    assert!(names(&*b).is_empty());
}
