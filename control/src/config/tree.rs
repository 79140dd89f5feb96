//! Sections, settings and included files, with their places; no meaning yet.

use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::error::{Issues, Pos};
use super::include;
use super::lexer::{Cursor, Value};

/// How deep sections may nest.
const MAX_DEPTH: usize = 16;
/// How deep files may include each other.
const MAX_INCLUDES: usize = 10;
/// The largest file that is read, in octets.
const MAX_FILE: u64 = 16 << 20;

/// `name = value`
pub(super) struct Setting {
    pub(super) name: String,
    pub(super) at: Pos,
    pub(super) value: Value,
}

/// `name { ... }`
pub(super) struct Section {
    pub(super) name: String,
    pub(super) at: Pos,
    pub(super) settings: Vec<Setting>,
    pub(super) sections: Vec<Section>,
}

impl Section {
    fn new(name: &str, at: Pos) -> Self {
        Self { name: name.to_string(), at, settings: Vec::new(), sections: Vec::new() }
    }
}

/// Reads a file and everything that it includes.
pub(super) fn read_file(path: &Path, issues: &mut Issues) -> Section {
    let mut reader = Reader { issues, open: Vec::new() };
    let mut root = Section::new("", Pos { file: 0, line: 0, column: 0 });
    reader.file(path, None, &mut root, false);
    root
}

/// Reads a text as if it were the file `name`.
pub(super) fn read_text(name: &str, text: &str, issues: &mut Issues) -> Section {
    let path = Path::new(name);
    let file = issues.add_file(path);
    let mut reader = Reader { issues, open: vec![path.to_path_buf()] };
    let mut root = Section::new("", Pos { file, line: 0, column: 0 });
    reader.text(file, path, text, &mut root, false);
    root
}

struct Reader<'a> {
    issues: &'a mut Issues,
    /// The files being read, outermost first.
    open: Vec<PathBuf>,
}

impl Reader<'_> {
    /// `from` is the include statement that asked for the file.
    fn file(&mut self, path: &Path, from: Option<Pos>, into: &mut Section, secret: bool) {
        let file = self.issues.add_file(path);
        let at = from.unwrap_or(Pos { file, line: 0, column: 0 });
        let shown = path.display();
        let real = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        if self.open.contains(&real) {
            return self.issues.push(at, format!("found an include of '{shown}' from inside itself"));
        }
        if self.open.len() >= MAX_INCLUDES {
            return self.issues.push(at, format!("found includes nested deeper than {MAX_INCLUDES} files"));
        }
        match read_limited(path) {
            Ok(text) => {
                self.open.push(real);
                self.text(file, path, &text, into, secret);
                self.open.pop();
            }
            Err(reason) => self.issues.push(at, format!("cannot read '{shown}': {reason}")),
        }
    }

    fn text(&mut self, file: usize, path: &Path, text: &str, into: &mut Section, secret: bool) {
        // When it gives up early, the reason is among the issues.
        let _ = self.entries(&mut Cursor::new(file, text), path, into, 0, secret);
    }

    /// Entries up to the `}` that closes `into`, or to the end of the file at depth 0. `None` = give up. Inside
    /// `secrets` no unknown word is repeated in a message, since it could be a key.
    fn entries(
        &mut self,
        cursor: &mut Cursor<'_>,
        path: &Path,
        into: &mut Section,
        depth: usize,
        secret: bool,
    ) -> Option<()> {
        loop {
            cursor.skip_space();
            let at = cursor.pos();
            match cursor.peek() {
                None if depth == 0 => return Some(()),
                None => {
                    let place = self.issues.place(into.at);
                    let message = format!(
                        "found the end of the file; expected '}}' for section '{}' of {place}",
                        into.name
                    );
                    self.issues.push(at, message);
                    return None;
                }
                Some('}') => {
                    cursor.bump();
                    if depth > 0 {
                        return Some(());
                    }
                    self.issues.push(at, "found '}' without a section to close");
                    continue;
                }
                _ => {}
            }
            let name = cursor.name();
            if name.is_empty() {
                let found = cursor.describe_next();
                self.issues.push(at, format!("found {found}; expected a name or '}}'"));
                cursor.skip_line();
                continue;
            }
            cursor.skip_blanks();
            let shown = if secret { "this name".to_string() } else { format!("'{name}'") };
            match cursor.peek() {
                Some('=') => {
                    cursor.bump();
                    match cursor.value() {
                        Ok(value) => into.settings.push(Setting { name: name.to_string(), at, value }),
                        Err((at, message)) => {
                            self.issues.push(at, message);
                            cursor.skip_line();
                        }
                    }
                    continue;
                }
                _ if name == "include" && !matches!(cursor.peek(), Some('{')) => {
                    self.include(cursor, path, at, into, secret);
                    continue;
                }
                Some('\n' | '#') => {
                    // As in swanctl.conf the brace may stand on a later line.
                    let mut ahead = cursor.clone();
                    ahead.skip_space();
                    if ahead.peek() == Some('{') {
                        *cursor = ahead;
                    }
                }
                _ => {}
            }
            if cursor.peek() == Some(':') {
                let message = "references to other sections (':') are not available in this version";
                self.issues.push(cursor.pos(), message);
                cursor.skip_references();
            }
            if cursor.peek() == Some('{') {
                cursor.bump();
                if depth >= MAX_DEPTH {
                    self.issues.push(at, format!("found sections nested deeper than {MAX_DEPTH}"));
                    return None;
                }
                let mut section = Section::new(name, at);
                let secret = secret || (depth == 0 && name == "secrets");
                let closed = self.entries(cursor, path, &mut section, depth + 1, secret);
                into.sections.push(section);
                closed?;
            } else {
                let found = cursor.describe_next();
                self.issues.push(cursor.pos(), format!("found {found} after {shown}; expected '=' or '{{'"));
                cursor.skip_line();
            }
        }
    }

    fn include(&mut self, cursor: &mut Cursor<'_>, path: &Path, at: Pos, into: &mut Section, secret: bool) {
        let pattern = match cursor.value() {
            Ok(pattern) => pattern,
            Err((at, message)) => {
                self.issues.push(at, message);
                return cursor.skip_line();
            }
        };
        if pattern.text.is_empty() {
            return self.issues.push(at, "found 'include' without a file; expected a path or a pattern");
        }
        let base = path.parent().unwrap_or_else(|| Path::new(""));
        match include::expand(base, &pattern.text) {
            Ok(files) => {
                for file in files {
                    self.file(&file, Some(pattern.at), into, secret);
                }
            }
            Err(reason) => {
                let message = format!("cannot list '{}': {reason}", &*pattern.text);
                self.issues.push(pattern.at, message);
            }
        }
    }
}

fn read_limited(path: &Path) -> Result<Zeroizing<String>, String> {
    let about = std::fs::metadata(path).map_err(|e| e.to_string())?;
    if !about.is_file() {
        return Err("it is not a regular file".to_string());
    }
    if about.len() > MAX_FILE {
        return Err(format!("it is larger than {MAX_FILE} octets"));
    }
    let bytes = Zeroizing::new(std::fs::read(path).map_err(|e| e.to_string())?);
    match std::str::from_utf8(&bytes) {
        Ok(text) => Ok(Zeroizing::new(text.to_string())),
        Err(e) => Err(format!("octet {} is not UTF-8", e.valid_up_to())),
    }
}
