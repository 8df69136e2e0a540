//! From any text to a name that every file system takes as one component.

/// Longest name in bytes: with the decorations of an attempt it stays under 255.
pub(super) const NAME_BYTES_MAX: usize = 200;
const HASH_DIGITS: usize = 8;
const KEPT: &str = "._-+=,%@~(){} ";
/// Names of the links beside the checkpoints.
pub(super) const RESERVED: [&str; 2] = ["latest", "best"];

/// `text` with everything but ASCII letters, digits, `._-+=,%@~(){}` and inner spaces replaced
/// by `_`; no dot in front; cut and hashed above 200 bytes; never empty, `latest` or `best`.
pub(super) fn sanitise(text: &str) -> String {
    let mut name: String = text.chars().map(|c| if is_kept(c) { c } else { '_' }).collect();
    if name.len() > NAME_BYTES_MAX {
        let hash = blake3::hash(text.as_bytes()).to_hex();
        name.truncate(NAME_BYTES_MAX - HASH_DIGITS - 1);
        name.push('-');
        name.extend(hash.chars().take(HASH_DIGITS));
    }
    let inner = name.trim_matches(' ');
    if inner.len() != name.len() {
        let front = name.len() - name.trim_start_matches(' ').len();
        let back = name.len() - inner.len() - front;
        name = format!("{}{inner}{}", "_".repeat(front), "_".repeat(back));
    }
    if name.starts_with('.') {
        name.replace_range(..1, "_");
    }
    if name.is_empty() || RESERVED.contains(&name.as_str()) {
        name.push('_');
    }
    name
}

fn is_kept(c: char) -> bool {
    c.is_ascii_alphanumeric() || KEPT.contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_characters_become_underscores() {
        for (text, name) in [
            ("model_epoch5", "model_epoch5"),
            ("a.b_c-d+e=f,g%h@i~j(k){l} m", "a.b_c-d+e=f,g%h@i~j(k){l} m"),
            ("a/b\\c:d*e?f\"g<h>i|j\n\0k", "a_b_c_d_e_f_g_h_i_j__k"),
            ("é½", "__"),
            ("  two  words ", "__two  words_"),
            ("   ", "___"),
            (".hidden", "_hidden"),
            ("..", "_."),
            ("", "_"),
            ("best", "best_"),
            ("latest", "latest_"),
            ("latest1", "latest1"),
        ] {
            assert_eq!(sanitise(text), name, "{text:?}");
        }
    }

    #[test]
    fn long_names_are_cut_and_stay_apart() {
        let exact = "x".repeat(NAME_BYTES_MAX);
        assert_eq!(sanitise(&exact), exact);
        let (a, b) = (exact.clone() + "a", exact.clone() + "b");
        let (short_a, short_b) = (sanitise(&a), sanitise(&b));
        assert_eq!(short_a.len(), NAME_BYTES_MAX);
        assert_ne!(short_a, short_b);
        let hash = blake3::hash(a.as_bytes()).to_hex();
        assert!(short_a.ends_with(&format!("x-{}", &hash[..8])), "{short_a}");
        assert_eq!(sanitise(&"é".repeat(300)).len(), NAME_BYTES_MAX);
    }
}
