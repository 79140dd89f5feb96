//! `include` patterns: `*`, `?` and `[...]` in any component of a path.

use std::io;
use std::path::{Component, Path, PathBuf};

/// The files that a pattern stands for, in order. A path without wildcards stands for itself, whether it exists
/// or not; a pattern may match nothing.
pub(super) fn expand(base: &Path, pattern: &str) -> io::Result<Vec<PathBuf>> {
    let mut found = vec![PathBuf::from(base)];
    for component in Path::new(pattern).components() {
        match component {
            Component::Normal(part) if part.to_str().is_some_and(has_wildcard) => {
                let part = part.to_str().unwrap_or_default();
                let mut next = Vec::new();
                for dir in found {
                    next.extend(list(&dir, part)?);
                }
                found = next;
            }
            other => found.iter_mut().for_each(|path| path.push(other)),
        }
    }
    Ok(found)
}

fn has_wildcard(part: &str) -> bool {
    part.contains(['*', '?', '['])
}

fn list(dir: &Path, pattern: &str) -> io::Result<Vec<PathBuf>> {
    let here = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    let entries = match std::fs::read_dir(here) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(e) => return Err(e),
    };
    let pattern: Vec<char> = pattern.chars().collect();
    let mut out = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let Some(text) = name.to_str() else { continue };
        let text: Vec<char> = text.chars().collect();
        // As in a shell, a leading dot is matched only by a dot.
        let hidden = text.first() == Some(&'.') && pattern.first() != Some(&'.');
        if !hidden && matches(&pattern, &text) {
            out.push(dir.join(name));
        }
    }
    out.sort();
    Ok(out)
}

/// Whether `text` fits `pattern`. Runs in time proportional to the product of the lengths.
fn matches(pattern: &[char], text: &[char]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&'*') {
            star = Some((p, t));
            p += 1;
        } else if let Some(width) = one(&pattern[p..], text[t]) {
            p += width;
            t += 1;
        } else if let Some((star_p, star_t)) = star {
            star = Some((star_p, star_t + 1));
            p = star_p + 1;
            t = star_t + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// How much of the pattern stands for the character `c`, if it does.
fn one(pattern: &[char], c: char) -> Option<usize> {
    match pattern.first()? {
        '?' => Some(1),
        '[' => {
            // A class with its closing bracket; without one the bracket means itself.
            let Some(close) = pattern.iter().skip(2).position(|c| *c == ']').map(|at| at + 2) else {
                return (c == '[').then_some(1);
            };
            let class = &pattern[1..close];
            let (negated, class) = match class {
                ['!' | '^', rest @ ..] if !rest.is_empty() => (true, rest),
                other => (false, other),
            };
            (class_has(class, c) != negated).then_some(close + 1)
        }
        literal => (*literal == c).then_some(1),
    }
}

fn class_has(class: &[char], c: char) -> bool {
    let mut rest = class;
    loop {
        match rest {
            [first, '-', last, tail @ ..] => {
                if (*first..=*last).contains(&c) {
                    return true;
                }
                rest = tail;
            }
            [one, tail @ ..] => {
                if *one == c {
                    return true;
                }
                rest = tail;
            }
            [] => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_match_as_in_a_shell() {
        for (pattern, text, fits) in [
            ("*.conf", "a.conf", true),
            ("*.conf", "a.conf.bak", false),
            ("?.conf", "ab.conf", false),
            ("[a-c]?*", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[^a-c]x", "dx", true),
            ("[]]x", "]x", true),
            ("[x", "[x", true),
            ("a**b*", "aXbbY", true),
            ("", "a", false),
        ] {
            let chars = |s: &str| s.chars().collect::<Vec<_>>();
            assert_eq!(matches(&chars(pattern), &chars(text)), fits, "{pattern} on {text}");
        }
    }
}
