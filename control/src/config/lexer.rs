//! The characters of one file: names, values and where they stand.
//!
//! As in swanctl.conf a value runs to the end of its line, to `#` or to `}`; white space inside counts as one
//! space and double quotes keep everything. Beside that, two or more spaces before `name =` end a value, so
//! that several short options fit on one line.

use zeroize::Zeroizing;

use super::error::Pos;

/// A value, and where its pieces come from. Values may be secrets, so they are wiped and never printed.
#[derive(Clone)]
pub(super) struct Value {
    pub(super) text: Zeroizing<String>,
    pub(super) at: Pos,
    /// Start of every piece in `text` (octets) and in the file.
    pieces: Vec<(usize, Pos)>,
}

impl Value {
    /// Where the octet `offset` of the text stands in the file.
    pub(super) fn position(&self, offset: usize) -> Pos {
        let Some((start, at)) = self.pieces.iter().rev().find(|(start, _)| *start <= offset) else {
            return self.at;
        };
        let chars = self.text.get(*start..offset).map_or(0, |t| t.chars().count());
        Pos { column: at.column + chars as u32, ..*at }
    }

    /// The elements of a comma-separated list, each with its place; empty ones are left out.
    pub(super) fn elements(&self) -> Vec<(&str, Pos)> {
        let mut at = 0;
        let mut out = Vec::new();
        for part in self.text.split(',') {
            let trimmed = part.trim_start();
            let start = at + part.len() - trimmed.len();
            at += part.len() + 1;
            if !trimmed.trim_end().is_empty() {
                out.push((trimmed.trim_end(), self.position(start)));
            }
        }
        out
    }
}

/// Walks over a text.
#[derive(Clone)]
pub(super) struct Cursor<'a> {
    rest: &'a str,
    pos: Pos,
}

/// Whether `c` can stand in a name.
fn in_name(c: char) -> bool {
    !c.is_whitespace() && !c.is_control() && !"#{}=\",:".contains(c)
}

fn is_blank(c: char) -> bool {
    c == ' ' || c == '\t' || c == '\r'
}

impl<'a> Cursor<'a> {
    pub(super) fn new(file: usize, text: &'a str) -> Self {
        let rest = text.strip_prefix('\u{feff}').unwrap_or(text);
        Self { rest, pos: Pos { file, line: 1, column: 1 } }
    }

    pub(super) fn pos(&self) -> Pos {
        self.pos
    }

    pub(super) fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    pub(super) fn bump(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.rest = &self.rest[c.len_utf8()..];
        if c == '\n' {
            self.pos.line += 1;
            self.pos.column = 1;
        } else {
            self.pos.column += 1;
        }
        Some(c)
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let len = self.rest.find(|c| !wanted(c)).unwrap_or(self.rest.len());
        let taken = &self.rest[..len];
        for _ in taken.chars() {
            self.bump();
        }
        taken
    }

    /// Passes spaces and tabs; how wide they were (a tab counts as two).
    pub(super) fn skip_blanks(&mut self) -> usize {
        self.take_while(is_blank).chars().map(|c| if c == '\t' { 2 } else { 1 }).sum()
    }

    /// Passes white space, line ends and comments.
    pub(super) fn skip_space(&mut self) {
        loop {
            self.take_while(char::is_whitespace);
            if self.peek() != Some('#') {
                return;
            }
            self.skip_line();
        }
    }

    /// Passes everything up to the end of the line.
    pub(super) fn skip_line(&mut self) {
        self.take_while(|c| c != '\n');
    }

    /// A name, empty when none starts here.
    pub(super) fn name(&mut self) -> &'a str {
        self.take_while(in_name)
    }

    /// Passes the names after a `:`.
    pub(super) fn skip_references(&mut self) {
        self.take_while(|c| in_name(c) || is_blank(c) || c == ':' || c == ',');
    }

    /// What a person sees here. A name is not shown: it could be a misplaced secret.
    pub(super) fn describe_next(&self) -> String {
        match self.peek() {
            None => "the end of the file".to_string(),
            Some('\n' | '\r') => "the end of the line".to_string(),
            Some('"') => "a quoted string".to_string(),
            Some(c) if in_name(c) => "a word".to_string(),
            Some(c) => format!("'{}'", c.escape_default()),
        }
    }

    /// True when `name =` or `name {` follows; `blank_before_equals` asks for white space between.
    fn option_follows(&self, blank_before_equals: bool) -> bool {
        let after_name = self.rest.trim_start_matches(in_name);
        let after_blanks = after_name.trim_start_matches(is_blank);
        let blanks = after_blanks.len() < after_name.len();
        after_name.len() < self.rest.len()
            && (after_blanks.starts_with('=') || (after_blanks.starts_with('{') && !blank_before_equals))
            && (blanks || !blank_before_equals)
    }

    /// A value, up to what ends it. The error says what is wrong, and where.
    pub(super) fn value(&mut self) -> Result<Value, (Pos, String)> {
        self.skip_blanks();
        let mut value = Value { text: Zeroizing::new(String::new()), at: self.pos, pieces: Vec::new() };
        loop {
            let blanks = self.skip_blanks();
            let start = self.pos;
            match self.peek() {
                None | Some('\n' | '#' | '}') => return Ok(value),
                _ if blanks >= 2 && !value.pieces.is_empty() && self.option_follows(false) => {
                    return Ok(value);
                }
                _ if blanks == 1 && !value.pieces.is_empty() && self.option_follows(true) => {
                    return Err((
                        start,
                        "found another '=' in a value; expected at least two spaces or a new line before the next \
                         option (or quotes around the value)"
                            .to_string(),
                    ));
                }
                _ => {}
            }
            if !value.pieces.is_empty() {
                value.text.push(' ');
            }
            value.pieces.push((value.text.len(), start));
            match self.peek() {
                Some('"') => self.quoted(&mut value.text)?,
                Some('{') if self.rest[1..].starts_with(|c: char| c.is_whitespace()) => {
                    return Err((
                        start,
                        "found '{' in a value; expected the value's end, or quotes around it".into(),
                    ));
                }
                _ => {
                    let word = self.take_while(|c| !c.is_whitespace() && !"#}\"".contains(c));
                    if word.is_empty() {
                        // White space of other alphabets; it separates words like a blank.
                        self.bump();
                    }
                    value.text.push_str(word);
                }
            }
        }
    }

    fn quoted(&mut self, text: &mut String) -> Result<(), (Pos, String)> {
        let open = self.pos;
        let unclosed =
            || (open, "found a quoted string that does not end on its line; expected '\"'".to_string());
        self.bump();
        loop {
            match self.bump() {
                Some('"') => return Ok(()),
                Some('\\') => match self.bump().ok_or_else(unclosed)? {
                    'n' => text.push('\n'),
                    't' => text.push('\t'),
                    'r' => text.push('\r'),
                    '\n' => {}
                    other => text.push(other),
                },
                None | Some('\n') => return Err(unclosed()),
                Some(c) => text.push(c),
            }
        }
    }
}
